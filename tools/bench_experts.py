"""How fast a mixture of experts decodes beside dense layers of as many bytes: `python -m tools.bench_experts`.

Both are stages of random weights in the real engine, and take turns. The dense one is as wide as the chosen experts together, so both read
the same weights for each token, and differ only in what it costs to choose. Every token chooses other experts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mdi.engine.onnx_engine import OnnxEngine
from mdi.engine.protocol import StageShape
from mdi.model.config import ModelConfig
from mdi.model.packed import packed_bytes
from mdi.model.quantise import WeightFormat
from mdi.profile.synthetic import block_packs, scratch_directory

CTX = 256
TOKENS = 64  # of one round
SHAPES = {
    "qwen3-30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "norm_topk_prob": True,
    },
    "mixtral-8x7b": {
        "architectures": ["MixtralForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


@dataclass(frozen=True, slots=True)
class _Span:
    position: int
    slot: int = 0
    count: int = 1


def configs(shape: str, n_blocks: int) -> tuple[ModelConfig, ModelConfig]:
    """The model, and its dense twin. A twin is of the other family that has the same attention."""
    sparse = ModelConfig.from_hf(SHAPES[shape] | {"num_hidden_layers": n_blocks, "vocab_size": 32_000})
    assert sparse.experts is not None
    architecture = {"Qwen3MoeForCausalLM": "Qwen3ForCausalLM"}.get(sparse.architecture, "LlamaForCausalLM")
    d_ffn = sparse.experts.n_chosen * sparse.experts.d_ffn
    return sparse, replace(sparse, architecture=architecture, sparse_blocks=(), experts=None, d_ffn=d_ffn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-30b-a3b")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    fmt = WeightFormat(options.bits, 128)
    sparse, dense = configs(options.shape, options.blocks)
    read_bytes = options.blocks * packed_bytes(dense, fmt)[0]
    stage = StageShape(n_slots=1, ctx=CTX, threads=options.threads)
    with scratch_directory(options.blocks * (packed_bytes(sparse, fmt)[0] + packed_bytes(dense, fmt)[0])) as directory:
        engines = {}
        for name, config in (("experts", sparse), ("dense", dense)):
            (directory / name).mkdir()
            engines[name] = OnnxEngine(config, block_packs(Path(directory / name), config, fmt, options.blocks), stage, 0)
        hidden = np.random.default_rng(0).standard_normal((TOKENS, 1, sparse.d_model), dtype=np.float32)
        rounds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(options.rounds + 1):
            for name, engine in engines.items():
                start = time.perf_counter()
                for position, row in enumerate(hidden):
                    engine.forward([_Span(position)], row)
                rounds[name].append((time.perf_counter() - start) / TOKENS)
    print(
        f"{options.shape}, {options.blocks} blocks, int{options.bits}, {options.threads} thread(s), {read_bytes / 1e6:.1f} MB per token"
    )
    for name, seconds in rounds.items():
        median = statistics.median(seconds[1:])  # the first warms up
        print(f"  {name:8} {median * 1e3:7.2f} ms per token  {read_bytes / median / 1e9:6.1f} GB/s")
    ratios = [dense_s / sparse_s for sparse_s, dense_s in zip(rounds["experts"][1:], rounds["dense"][1:], strict=True)]
    print(f"  experts run at {statistics.median(ratios):.2f} of the speed of dense layers of as many bytes")


if __name__ == "__main__":
    main()
