"""Products with weights in every form that packs have equal their definition, in all ways of computing them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mdi.engine.torch_weights import (
    CodedPart,
    Linear,
    PlainPart,
    dequantise,
    held_bytes,
    linear,
    load_linear,
    load_vector,
    paired_products,
    stacked,
    take,
)
from mdi.errors import ModelError
from mdi.model import linear as definition
from mdi.model.linear import BLOCK_SIZES, LinearPart
from mdi.model.packs import Pack, PackKind, open_pack, write_pack
from tests.model.parts import random_part

MAPS = Path("/proc/self/maps")
CPU = torch.device("cpu")
N, K = 24, 256
EXTRAS = {
    "": {},
    "zeros": {"zeros": True},
    "correction": {"correction": True},
    "zeros and correction": {"zeros": True, "correction": True},
    "order": {"order": True},
    "everything": {"zeros": True, "correction": True, "order": True},
}
PADDED = 200  # columns that no block of `BLOCK_SIZES` divides: the last one is padded, and cannot be corrected
CLOSE = 1e-5  # of the sum of the products' magnitudes, in fp32; measured: 4e-7


def pack_of(directory: Path, parts: definition.Linear) -> Pack:
    return open_pack(directory / write_pack(directory, PackKind.HEAD, {"head": parts}).filename)


def loaded(directory: Path, parts: definition.Linear, dtype: torch.dtype = torch.float32) -> Linear:
    return load_linear(pack_of(directory, parts), "head", definition.described(parts[0]).columns, CPU, dtype)


def assert_product(found: torch.Tensor, x: NDArray[np.float32], weight: NDArray[np.float32]) -> None:
    """`found` is x [R, K] times `weight` [N, K] transposed."""
    wanted, scale = (a.astype(np.float64) @ b.astype(np.float64).T for a, b in ((x, weight), (np.abs(x), np.abs(weight))))
    assert (np.abs(found.numpy() - wanted) / scale).max() < CLOSE


def rows_of(k: int, n: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(9).standard_normal((n, k), dtype=np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("extras", EXTRAS)
def test_every_form_is_computed_as_it_is_defined(bits: int, block: int, extras: str, tmp_path: Path) -> None:
    for k in (K,) if "correction" in EXTRAS[extras] else (K, PADDED):
        part = random_part(LinearPart(N, k, bits, block, **EXTRAS[extras]), seed=bits * block)
        layer, x = loaded(tmp_path, (part,)), rows_of(k)
        for expand in (dequantise, None):
            assert_product(linear(torch.from_numpy(x), layer, torch.float32, expand), x, definition.dequantise(part))


def test_parts_of_all_forms_are_rows_from_top_to_bottom(tmp_path: Path) -> None:
    forms = [LinearPart(5, K, 32), *(LinearPart(N, K, bits, 32, **extras) for bits in (4, 8) for extras in EXTRAS.values())]
    parts = tuple(random_part(form, seed) for seed, form in enumerate(forms))
    layer, x = loaded(tmp_path, parts), rows_of(K)
    assert len(layer) == len(forms)
    for expand in (dequantise, None):
        found = linear(torch.from_numpy(x), layer, torch.float32, expand)
        assert_product(found, x, np.concatenate([definition.dequantise(part) for part in parts]))


@pytest.mark.parametrize(
    "form", [LinearPart(4 * N, K, 32), LinearPart(4 * N, K, 8, 64), LinearPart(4 * N, K, 4, 32, True, True, True)]
)
@pytest.mark.parametrize("k", [K, PADDED])
def test_a_stack_of_weights_gives_one_or_one_to_each_row(form: LinearPart, k: int, tmp_path: Path) -> None:
    form = LinearPart(form.rows, k, form.bits, form.block, form.zeros, form.correction and k == K, form.order)
    part = random_part(form)
    weights = definition.dequantise(part).reshape(4, N, k)
    stack, x = stacked(loaded(tmp_path, (part,))[0], 4), rows_of(k)
    tokens = torch.from_numpy(x)
    for i in range(4):
        for which in (i, torch.tensor(i)):
            assert_product(linear(tokens, (take(stack, which),), torch.float32, dequantise), x, weights[i])
    chosen = [2, 0, 2]
    found = paired_products(tokens, take(stack, torch.tensor(chosen)))
    for row, i in enumerate(chosen):
        assert_product(found[row : row + 1], x[row : row + 1], weights[i])


def test_codes_stay_codes_and_are_mapped_not_copied(tmp_path: Path) -> None:
    form = LinearPart(64, K, 4, 128)
    pack = pack_of(tmp_path, (random_part(form),))
    layer = load_linear(pack, "head", K, CPU, torch.float32)
    assert held_bytes(layer) == form.n_bytes
    if MAPS.exists():
        assert str(pack.path) in MAPS.read_text()


def test_zeros_and_corrections_together_take_one_number_for_each_block(tmp_path: Path) -> None:
    (part,) = loaded(tmp_path, (random_part(LinearPart(64, K, 4, 128, zeros=True, correction=True)),))
    assert isinstance(part, CodedPart)
    assert held_bytes((part,)) == LinearPart(64, K, 4, 128, correction=True).n_bytes


def test_fp32_weights_take_the_compute_type(tmp_path: Path) -> None:
    weight = rows_of(K, 64)
    (part,) = loaded(tmp_path, (weight,), torch.bfloat16)
    assert isinstance(part, PlainPart)
    torch.testing.assert_close(part.weight, torch.from_numpy(weight).to(torch.bfloat16))


@pytest.mark.parametrize("form", [LinearPart(4, 64, 32), LinearPart(4, 64, 8, 32)])
def test_a_layer_of_another_shape_or_that_is_missing_is_refused(form: LinearPart, tmp_path: Path) -> None:
    pack = pack_of(tmp_path, (random_part(form),))
    for name, columns in (("head", 128), ("qkv", 64)):
        with pytest.raises(ModelError, match=f"no linear layer {name} of {columns} columns"):
            load_linear(pack, name, columns, CPU, torch.float32)
    with pytest.raises(ModelError, match="has 4 rows, not 5"):
        load_linear(pack, "head", 64, CPU, torch.float32, rows=5)


def test_a_vector_of_another_shape_or_that_is_missing_is_refused(tmp_path: Path) -> None:
    pack = open_pack(tmp_path / write_pack(tmp_path, PackKind.HEAD, {"norm": np.ones(8, np.float32)}).filename)
    with pytest.raises(ModelError, match="no tensor bias"):
        load_vector(pack, "bias", CPU, (8,))
    with pytest.raises(ModelError, match=r"shape \[8\], not \[9\]"):
        load_vector(pack, "norm", CPU, (9,))
