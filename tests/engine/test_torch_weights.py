"""Products with coded weights equal their definition, in both ways of computing them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mdi.engine.torch_weights import CodedPart, PlainPart, dequantise, linear, linear_bytes, load_linear
from mdi.errors import ModelError
from mdi.model.packs import Pack, PackKind, linear_tensors, open_pack, write_pack
from mdi.model.quantise import BLOCK_SIZES, WeightFormat

MAPS = Path("/proc/self/maps")
CPU = torch.device("cpu")
N = 24
FORMATS = [(bits, block) for bits in (4, 8) for block in BLOCK_SIZES]


def random_part(rng: np.random.Generator, bits: int, block: int, k: int, *, shift: bool, order: bool) -> CodedPart:
    blocks = -(-k // block)
    return CodedPart(
        torch.from_numpy(rng.integers(0, 256, (N, blocks, block * bits // 8), np.uint8)),
        torch.from_numpy(rng.normal(0, 0.1, (N, blocks)).astype(np.float32)),
        torch.from_numpy(rng.normal(0, 1, (N, blocks)).astype(np.float32)) if shift else None,
        torch.from_numpy(rng.permutation(k)) if order else None,
        bits,
        k,
    )


def by_definition(part: CodedPart) -> NDArray[np.float64]:
    """[N, K], value by value."""
    block = part.codes.shape[2] * 8 // part.bits
    weight = np.empty((N, part.columns))
    all_codes, scales = part.codes.numpy().astype(int), part.scales.numpy().astype(np.float64)
    shifts = -float(1 << (part.bits - 1)) * scales if part.shift is None else part.shift.numpy()
    for j in range(part.columns):
        b, i = divmod(j, block)
        codes = all_codes[:, b, i if part.bits == 8 else i // 2]
        if part.bits == 4:
            codes = codes >> 4 if i % 2 else codes & 15
        weight[:, j if part.order is None else int(part.order[j])] = codes * scales[:, b] + shifts[:, b]
    return weight


@pytest.mark.parametrize(("bits", "block"), FORMATS)
@pytest.mark.parametrize("k", [256, 200])
@pytest.mark.parametrize(("shift", "order"), [(False, False), (True, False), (False, True), (True, True)])
def test_both_products_equal_the_definition(bits: int, block: int, k: int, shift: bool, order: bool) -> None:
    rng = np.random.default_rng(bits * block + k)
    part = random_part(rng, bits, block, k, shift=shift, order=order)
    x = rng.standard_normal((3, k), dtype=np.float32)
    expected = x.astype(np.float64) @ by_definition(part).T
    scale = np.abs(x).astype(np.float64) @ np.abs(by_definition(part)).T
    for expand in (dequantise, None):
        found = linear(torch.from_numpy(x), (part,), torch.float32, expand).numpy()
        assert np.abs((found - expected) / scale).max() < 1e-5


def test_parts_are_rows_from_top_to_bottom() -> None:
    rng = np.random.default_rng(0)
    coded = random_part(rng, 4, 32, 64, shift=False, order=False)
    plain = PlainPart(torch.from_numpy(rng.standard_normal((5, 64), dtype=np.float32)))
    x = torch.from_numpy(rng.standard_normal((2, 64), dtype=np.float32))
    both = linear(x, (coded, plain), torch.float32, dequantise)
    torch.testing.assert_close(both[:, :N], linear(x, (coded,), torch.float32, dequantise))
    torch.testing.assert_close(both[:, N:], x @ plain.weight.T)


def written(tmp_path: Path, fmt: WeightFormat, weight: NDArray[np.float32]) -> Pack:
    ref = write_pack(tmp_path, PackKind.HEAD, fmt, linear_tensors("head", weight, fmt))
    return open_pack(tmp_path / ref.filename)


def test_codes_stay_codes_and_are_mapped_not_copied(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 256), dtype=np.float32)
    fmt = WeightFormat(4, 128)
    pack = written(tmp_path, fmt, weight)
    layer = load_linear(pack, "head", 256, CPU, torch.float32)
    assert linear_bytes(layer) == fmt.linear_bytes(64, 256)
    if MAPS.exists():
        assert str(pack.path) in MAPS.read_text()


def test_fp32_weights_take_the_compute_type(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 256), dtype=np.float32)
    (part,) = load_linear(written(tmp_path, WeightFormat(32), weight), "head", 256, CPU, torch.bfloat16)
    assert isinstance(part, PlainPart)
    torch.testing.assert_close(part.weight, torch.from_numpy(weight).to(torch.bfloat16))


@pytest.mark.parametrize("fmt", [WeightFormat(32), WeightFormat(8, 32)])
def test_a_layer_of_other_columns_or_without_its_tensors_is_refused(tmp_path: Path, fmt: WeightFormat) -> None:
    pack = written(tmp_path, fmt, np.ones((4, 64), np.float32))
    with pytest.raises(ModelError, match="columns in head"):
        load_linear(pack, "head", 128, CPU, torch.float32)
    with pytest.raises(ModelError, match="no tensor qkv"):
        load_linear(pack, "qkv", 64, CPU, torch.float32)
