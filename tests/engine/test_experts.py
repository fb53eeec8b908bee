"""Experts by definition: numpy over the checkpoint's own weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from mdi.engine.experts_graph import experts
from mdi.engine.graph import GraphBuilder
from mdi.engine.onnx_engine import open_session
from mdi.errors import ModelError
from mdi.model.checkpoint import Checkpoint
from mdi.model.experts import Experts
from mdi.model.families import Role
from mdi.model.packed import open_packs, prepare
from mdi.model.packs import PackKind, open_pack, write_pack
from mdi.model.quantise import WeightFormat, quantise
from tests.checkpoints import make_checkpoint

N_TOKENS = 12
# Largest error, of the largest output. int8 weights and activations: measured 1.4 %; int4 weights: 15 %. A wrong choice or weight: 30 %.
FORMATS = {WeightFormat(32): 1e-5, WeightFormat(8, 32): 0.025, WeightFormat(4, 32): 0.2}


def reference(checkpoint: Checkpoint, block: int, mix: Experts, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each token by itself, through the experts of the highest probability."""
    logits = x @ checkpoint.tensor(checkpoint.block_tensors(block)[Role.ROUTER]).T
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    out = np.zeros_like(x)
    for t, row in enumerate(probabilities):
        chosen = np.argsort(-row)[: mix.n_chosen]
        weights = row[chosen] / (row[chosen].sum() if mix.normalised else 1)
        for expert, weight in zip(chosen, weights, strict=True):
            names = checkpoint.expert_tensors(block, int(expert))
            gate, up, down = (checkpoint.tensor(names[role]) for role in (Role.GATE, Role.UP, Role.DOWN))
            gated = x[t] @ gate.T
            out[t] += weight * (down @ (gated / (1 + np.exp(-gated)) * (up @ x[t])))
    return out


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("kind", ["qwen3moe", "qwen3moe-normalised", "mixtral"])
def test_tokens_go_to_the_likeliest_experts_weighted_by_the_router(tmp_path: Path, kind: str, fmt: WeightFormat) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "model", kind))
    config, block = checkpoint.config, checkpoint.config.sparse_blocks[-1]
    assert config.experts is not None
    packed = prepare(checkpoint, fmt, tmp_path / "packs")
    (pack,) = open_packs(packed, tmp_path / "packs", block, block + 1)
    g = GraphBuilder("experts")
    x = g.input("x", TensorProto.FLOAT, ["T", config.d_model])
    g.output(experts(g, pack, config.experts, "b0", x, config.d_model), TensorProto.FLOAT, ["T", config.d_model])
    session = open_session(g.model(), tmp_path / "packs", threads=1)

    rows = np.random.default_rng(0).standard_normal((N_TOKENS, config.d_model), dtype=np.float32)
    wanted = reference(checkpoint, block, config.experts, rows)
    (together,) = session.run(None, {"x": rows})
    apart = np.concatenate([session.run(None, {"x": row[None]})[0] for row in rows])
    for found in (together, apart):
        assert np.abs(found - wanted).max() < FORMATS[fmt] * np.abs(wanted).max()


def test_experts_in_two_forms_are_refused(tmp_path: Path) -> None:
    """The kernel would read the one as the other."""
    rng = np.random.default_rng(0)
    mix = Experts(n_experts=2, n_chosen=1, d_ffn=64, normalised=True)
    tensors = {
        "router": rng.standard_normal((2, 64), np.float32),
        "experts_gate_up": (quantise(rng.standard_normal((256, 64), np.float32), WeightFormat(4, 32)),),
        "experts_down": (quantise(rng.standard_normal((128, 64), np.float32), WeightFormat(8, 32)),),
    }
    pack = open_pack(tmp_path / write_pack(tmp_path, PackKind.BLOCK, tensors).filename)
    g = GraphBuilder("experts")
    with pytest.raises(ModelError, match="several forms"):
        experts(g, pack, mix, "b0", g.input("x", TensorProto.FLOAT, ["T", 64]), 64)
