"""Mixtures of experts on torch equal their definition in all ways of computing them, and touch the chosen experts alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mdi.engine.torch_experts import Mixture, load_mixture, mixture
from mdi.engine.torch_weights import CodedPart, dequantise
from mdi.errors import ModelError
from mdi.model import linear as definition
from mdi.model.experts import Experts
from mdi.model.linear import LinearPart
from mdi.model.packs import Pack, PackKind, open_pack, write_pack
from tests.model.parts import random_part

CPU = torch.device("cpu")
D, D_FFN, N_EXPERTS = 32, 64, 6
FORMS = {
    "fp32": {"bits": 32},
    "int4": {"bits": 4, "block": 32},
    "int8": {"bits": 8, "block": 16},
    "int4 padded": {"bits": 4, "block": 128},
    "int4 with everything": {"bits": 4, "block": 32, "zeros": True, "correction": True, "order": True},
}
WAYS = {"grouped": (dequantise, False), "paired": (dequantise, True), "fused": (None, True)}


@pytest.fixture(params=FORMS)
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Pack:
    return pack_of(tmp_path, **FORMS[request.param])


def pack_of(directory: Path, **form: int) -> Pack:
    tensors = {
        "router": np.random.default_rng(1).standard_normal((N_EXPERTS, D), dtype=np.float32),
        "experts_gate_up": (random_part(LinearPart(N_EXPERTS * 2 * D_FFN, D, **form), 2),),
        "experts_down": (random_part(LinearPart(N_EXPERTS * D, D_FFN, **form), 3),),
    }
    return open_pack(directory / write_pack(directory, PackKind.BLOCK, tensors).filename)


def by_definition(pack: Pack, experts: Experts, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Token by token, expert by expert."""
    gate_up, down = (
        np.concatenate([definition.dequantise(part) for part in pack.linear(name)]).astype(np.float64).reshape(N_EXPERTS, -1, k)
        for name, k in (("experts_gate_up", D), ("experts_down", D_FFN))
    )
    out = np.zeros(x.shape)
    for row, token in zip(out, x, strict=True):
        probabilities = np.exp(pack.read("router") @ token)
        probabilities /= probabilities.sum()
        chosen = np.argsort(-probabilities)[: experts.n_chosen]
        total = probabilities[chosen].sum() if experts.normalised else 1.0
        for expert in chosen:
            gate, up = (gate_up[expert, i::2] @ token for i in (0, 1))
            row += probabilities[expert] / total * (down[expert] @ (gate / (1 + np.exp(-gate)) * up))
    return out


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("experts", [Experts(N_EXPERTS, 2, D_FFN, True), Experts(N_EXPERTS, 3, D_FFN, False)])
@pytest.mark.parametrize("n_rows", [1, 7])
def test_every_way_gives_the_sum_of_the_definition(pack: Pack, way: str, experts: Experts, n_rows: int) -> None:
    x = np.random.default_rng(4).standard_normal((n_rows, D), dtype=np.float32)
    expand, static = WAYS[way]
    weights = load_mixture(pack, experts, D, CPU, torch.float32)
    found = mixture(torch.from_numpy(x), weights, torch.float32, expand, static=static).numpy()
    wanted = by_definition(pack, experts, x)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("way", WAYS)
def test_weights_of_experts_that_nobody_chose_do_not_count(pack: Pack, way: str) -> None:
    weights = load_mixture(pack, Experts(N_EXPERTS, 2, D_FFN, True), D, CPU, torch.float32)
    x = torch.from_numpy(np.random.default_rng(5).standard_normal((2, D), dtype=np.float32))
    chosen = set((x @ weights.router.T).topk(2).indices.flatten().tolist())
    others = [expert for expert in range(N_EXPERTS) if expert not in chosen]
    assert others
    expand, static = WAYS[way]
    found = mixture(x, without(weights, others), torch.float32, expand, static=static)
    torch.testing.assert_close(found, mixture(x, weights, torch.float32, expand, static=static))


def without(weights: Mixture, experts: list[int]) -> Mixture:
    """With weights that are no numbers."""
    parts = []
    for part in (weights.gate_up, weights.down):
        tensor = (part.scales if isinstance(part, CodedPart) else part.weight).clone()
        tensor[experts] = float("nan")
        parts.append(part._replace(**{"scales" if isinstance(part, CodedPart) else "weight": tensor}))
    return weights._replace(gate_up=parts[0], down=parts[1])


def test_experts_of_other_numbers_or_several_forms_are_refused(tmp_path: Path) -> None:
    pack = pack_of(tmp_path, bits=32)
    with pytest.raises(ModelError, match="rows, not"):
        load_mixture(pack, Experts(N_EXPERTS + 1, 2, D_FFN, True), D, CPU, torch.float32)
    rows = N_EXPERTS * D_FFN
    parts = (random_part(LinearPart(rows, D, 32)), random_part(LinearPart(rows, D, 8, 32)))
    mixed = open_pack(tmp_path / write_pack(tmp_path, PackKind.BLOCK, {"experts_gate_up": parts}).filename)
    with pytest.raises(ModelError, match="several forms"):
        load_mixture(mixed, Experts(N_EXPERTS, 2, D_FFN, True), D, CPU, torch.float32)
