"""Writes a GGUF of a real model's shape with random weights: `python -m tools.make_gguf llama-3.2-1b FILE`.

Q4_0 and Q8_0: every matrix is quantised, embedding and head too, and the codes are drawn at random, so nothing is computed and thrown
away. The mixtures of types that llama.cpp chooses itself (q4_k_m and others) it makes itself, from the Q8_0 file.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mdi.errors import MdiError, UserError
from tools.llama_cpp import QUANTISED, available_cores, quantise
from tools.make_checkpoint import (
    EMBEDDING_STD,
    Made,
    add_shape_arguments,
    exit_with_error,
    filler_vocabulary,
    new_path,
    progress_bar,
    report,
    tensor_rng,
)
from tools.shapes import BOS, CHAT_TEMPLATE, IM_END, SPECIAL_TOKENS, Shape, named_shape

BLOCK_VALUES = 32  # of Q4_0 and of Q8_0
SUPERBLOCK_VALUES = 256  # of the K types
PIECE_BLOCKS = 1 << 20

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


@dataclass(frozen=True, slots=True)
class Quantisation:
    """A block is one fp16 scale and `code_bytes` of codes; `code_std` is the standard deviation of random codes."""

    type: gguf.GGMLQuantizationType
    file_type: gguf.LlamaFileType
    code_bytes: int
    code_std: float

    @property
    def block_bytes(self) -> int:
        return 2 + self.code_bytes


QUANTISATIONS = {
    "q4_0": Quantisation(gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0, 16, 16 / math.sqrt(12)),
    "q8_0": Quantisation(gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0, 32, 256 / math.sqrt(12)),
}


def make_gguf(
    shape: Shape, path: Path, *, quantisation: str = "q4_0", seed: int = 0, force: bool = False, show_progress: bool = False
) -> Made:
    """Writes `shape` with random weights to the file `path`, whole or not at all.

    Raises `UserError` where the file exists (unless `force`), the disk is too full or a matrix has no whole blocks.
    """
    if quantisation in QUANTISED:
        return _make_mixture(shape, path, quantisation, seed=seed, force=force, show_progress=show_progress)
    if quantisation not in QUANTISATIONS:
        known = ", ".join([*QUANTISATIONS, *QUANTISED])
        raise UserError(f"{quantisation!r} is not a quantisation made here", hint=f"one of: {known}")
    quant = QUANTISATIONS[quantisation]
    if any(len(dims) == 2 and dims[1] % BLOCK_VALUES for _, dims in shape.matrices()):
        raise UserError(f"a row of this shape is not a whole number of blocks of {BLOCK_VALUES}", hint="choose another shape")
    total_bytes = sum(_tensor_bytes(dims, quant) for _, dims in shape.matrices())
    with (
        new_path(path, total_bytes, force=force) as partial,
        progress_bar(path.name, total_bytes, show=show_progress) as advance,
    ):
        writer = gguf.GGUFWriter(partial, "llama")
        try:
            _add_metadata(writer, shape, quant)
            _add_tensor_infos(writer, shape, quant)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if shape.rope_scaling:
                writer.write_tensor_data(_rope_factors(shape))
            for name, dims in shape.matrices():
                writer.write_tensor_data(_tensor(name, dims, quant, seed))
                advance(_tensor_bytes(dims, quant))
        finally:
            writer.close()
        size_bytes = partial.stat().st_size
    return Made(path, shape.parameters(), size_bytes, 1)


def _make_mixture(shape: Shape, path: Path, kind: str, *, seed: int, force: bool, show_progress: bool) -> Made:
    if any(len(dims) == 2 and dims[1] % SUPERBLOCK_VALUES for _, dims in shape.matrices()):
        raise UserError(
            f"a row of this shape is not a whole number of blocks of {SUPERBLOCK_VALUES}", hint="choose another shape"
        )
    whole = path.with_name(f".{path.name}.q8_0")
    with new_path(
        path, sum(_tensor_bytes(dims, QUANTISATIONS["q8_0"]) for _, dims in shape.matrices()), force=force
    ) as partial:
        try:
            make_gguf(shape, whole, quantisation="q8_0", seed=seed, force=True, show_progress=show_progress)
            quantise(whole, partial, kind, len(available_cores()))
        finally:
            whole.unlink(missing_ok=True)
        size_bytes = partial.stat().st_size
    return Made(path, shape.parameters(), size_bytes, 1)


def random_blocks(dims: tuple[int, int], quant: Quantisation, *, std: float, rng: np.random.Generator) -> np.ndarray:
    """Blocks of random codes, uint8 [rows, bytes of a row]; scales vary by a quarter around what gives `std`."""
    rows, columns = dims
    block = np.dtype([("scale", "<f2"), ("codes", "u1", quant.code_bytes)])
    blocks = np.empty(rows * columns // BLOCK_VALUES, dtype=block)
    for start in range(0, len(blocks), PIECE_BLOCKS):
        piece = blocks[start : start + PIECE_BLOCKS]
        piece["scale"] = (0.75 + 0.5 * rng.random(len(piece), dtype=np.float32)) * (std / quant.code_std)
        codes = rng.integers(0, 2**64, (len(piece), quant.code_bytes // 8), dtype=np.uint64)
        piece["codes"] = codes.view(np.uint8)
    return blocks.view(np.uint8).reshape(rows, -1)


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.weight"
    block, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{block}.{NAMES[part]}.weight"


def _tensor(name: str, dims: tuple[int, ...], quant: Quantisation, seed: int) -> np.ndarray:
    match dims:
        case (rows, columns):
            std = EMBEDDING_STD if name == "model.embed_tokens.weight" else 1 / math.sqrt(columns)
            return random_blocks((rows, columns), quant, std=std, rng=tensor_rng(seed, name))
        case _:  # every vector is a norm
            return np.ones(dims, dtype=np.float32)


def _tensor_bytes(dims: tuple[int, ...], quant: Quantisation) -> int:
    values = math.prod(dims)
    return values // BLOCK_VALUES * quant.block_bytes if len(dims) == 2 else values * 4


def _add_tensor_infos(writer: gguf.GGUFWriter, shape: Shape, quant: Quantisation) -> None:
    if shape.rope_scaling:
        writer.add_tensor_info("rope_freqs.weight", (shape.head_dim // 2,), np.dtype(np.float32), shape.head_dim * 2)
    for name, dims in shape.matrices():
        if len(dims) == 2:
            row_bytes = dims[1] // BLOCK_VALUES * quant.block_bytes
            writer.add_tensor_info(
                gguf_name(name), (dims[0], row_bytes), np.dtype(np.uint8), _tensor_bytes(dims, quant), raw_dtype=quant.type
            )
        else:
            writer.add_tensor_info(gguf_name(name), dims, np.dtype(np.float32), _tensor_bytes(dims, quant))


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape, quant: Quantisation) -> None:
    writer.add_name("random weights")
    writer.add_file_type(quant.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.max_positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    tokens, merges = filler_vocabulary(shape.vocab)
    kinds = [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS) + [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL_TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(IM_END)
    writer.add_pad_token_id(BOS)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _rope_factors(shape: Shape) -> np.ndarray:
    """Divisors of the rotary frequencies, float32 [head_dim / 2], as "llama3" scaling defines them.

    Waves shorter than the original context / high_freq_factor stay, longer than / low_freq_factor divide by `factor`, and
    between the two the frequency is interpolated.
    """
    scaling: dict[str, Any] = shape.rope_scaling or {}
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves = 2 * np.pi * shape.rope_theta ** (np.arange(0, shape.head_dim, 2) / shape.head_dim)
    smooth = np.clip((scaling["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / scaling["factor"] + smooth), dtype=np.float32)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.make_gguf", description=__doc__)
    add_shape_arguments(parser)
    parser.add_argument("file", type=Path)
    parser.add_argument("--quantisation", choices=[*QUANTISATIONS, *QUANTISED], default="q4_0")
    args = parser.parse_args(argv)
    try:
        shape = named_shape(args.shape, vocab=args.vocab, blocks=args.blocks)
        made = make_gguf(
            shape, args.file, quantisation=args.quantisation, seed=args.seed, force=args.force, show_progress=not args.json
        )
    except MdiError as error:
        return exit_with_error(error)
    except KeyboardInterrupt:
        return 130
    report(made, as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
