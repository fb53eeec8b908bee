"""Linear layers in a pack are, bit for bit, what was given, in whatever form their parts are."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.linear import Linear, LinearPart, Part, Quantised, dequantise, described, fuse
from mdi.model.packs import PackKind, open_pack, write_pack
from mdi.model.quantise import WeightFormat, quantise
from tests.model.parts import random_part

FORMS = [
    LinearPart(6, 64, 32),
    LinearPart(6, 64, 4, 16),
    LinearPart(5, 96, 4, 32, zeros=True),
    LinearPart(5, 40, 4, 16, zeros=True),  # three blocks, the last padded; two nibbles to a byte and one left over
    LinearPart(6, 64, 8, 16),
    LinearPart(3, 64, 8, 64, zeros=True),
    LinearPart(6, 64, 4, 32, correction=True),
    LinearPart(6, 64, 8, 32, zeros=True, correction=True),
    LinearPart(7, 64, 4, 32, zeros=True, order=True),
]


def by_definition(part: Quantised) -> NDArray[np.float32]:
    """One value after the other, as the docstring of `mdi.model.linear` writes it."""
    n, k, block = part.part.rows, part.columns, part.part.block
    found = np.zeros((n, k), np.float32)
    for i in range(n):
        for j in range(k):
            b, at = divmod(j, block)
            code = part.codes[i, b, at] if part.bits == 8 else part.codes[i, b, at // 2] >> 4 * (at % 2) & 15
            zero = (8 if part.bits == 4 else 128) if part.zeros is None else part.zeros[i, b]
            value = (np.float32(code) - np.float32(zero)) * part.scales[i, b]
            if part.correction is not None:
                value += part.correction[i, b]
            found[i, j if part.order is None else part.order[j]] = value
    return found


def through_a_pack(directory: Path, linear: Linear) -> Linear:
    ref = write_pack(directory, PackKind.HEAD, {"norm": np.ones(4, np.float32), "head": linear})
    pack = open_pack(directory / ref.filename)
    np.testing.assert_array_equal(pack.read("norm"), np.ones(4, np.float32))
    assert [each.part for each in pack.linears["head"]] == [described(part) for part in linear]
    return pack.linear("head")


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_part_comes_back_from_its_pack_as_it_was(form: LinearPart, tmp_path: Path) -> None:
    part = random_part(form)
    (found,) = through_a_pack(tmp_path, (part,))
    np.testing.assert_array_equal(dequantise(found), dequantise(part))
    if isinstance(part, Quantised):
        np.testing.assert_array_equal(dequantise(part), by_definition(part))


def test_parts_of_many_forms_lie_in_one_pack(tmp_path: Path) -> None:
    linear = tuple(random_part(replace(form, columns=64)) for form in FORMS)
    found = through_a_pack(tmp_path, linear)
    for one, other in zip(found, linear, strict=True):
        np.testing.assert_array_equal(dequantise(one), dequantise(other))


def test_neighbours_of_one_form_are_joined_and_others_are_not() -> None:
    parts: list[Part] = [random_part(form, seed) for seed, form in enumerate(FORMS) if form.columns == 64]
    twice = [half for part in parts for half in (part, part)]
    fused = fuse(twice)
    assert [described(part).rows for part in fused] == [2 * described(part).rows for part in parts]
    np.testing.assert_array_equal(
        np.concatenate([dequantise(p) for p in fused]), np.concatenate([dequantise(p) for p in twice])
    )


def test_different_orders_of_columns_are_not_joined() -> None:
    form = LinearPart(4, 64, 4, 32, order=True)
    assert len(fuse([random_part(form, seed=1), random_part(form, seed=2)])) == 2


def test_zeros_that_are_the_default_are_left_out() -> None:
    part = random_part(LinearPart(4, 64, 4, 32))
    assert isinstance(part, Quantised)
    (plain,) = fuse([replace(part, zeros=np.full((4, 2), 8, np.uint8))])
    assert not described(plain).zeros
    np.testing.assert_array_equal(dequantise(plain), dequantise(part))


def test_rows_are_taken_in_the_order_asked_for() -> None:
    part = random_part(LinearPart(6, 64, 8, 32, zeros=True, correction=True))
    assert isinstance(part, Quantised)
    np.testing.assert_array_equal(dequantise(part.take(np.array([4, 0, 4]))), dequantise(part)[[4, 0, 4]])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_bytes_that_are_counted_are_those_of_the_tensors(form: LinearPart, tmp_path: Path) -> None:
    ref = write_pack(tmp_path, PackKind.HEAD, {"head": (random_part(form),)})
    pack = open_pack(tmp_path / ref.filename)
    assert sum(tensor.n_bytes for tensor in pack.tensors.values()) == form.n_bytes


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"columns": 1 << 40},
        {"bits": 3},
        {"block": 48},
        {"bits": 32, "block": 0, "order": True},
        {"columns": 72, "correction": True},
    ],
    ids=str,
)
def test_impossible_parts_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ModelError):
        LinearPart(**({"rows": 4, "columns": 64, "bits": 4, "block": 32} | wrong))


@pytest.mark.parametrize(
    "change",
    [
        {"scales": np.ones((6, 3), np.float32)},
        {"zeros": np.ones((2, 6), np.uint8)},
        {"correction": np.ones((6, 4), np.float32)},
        {"columns": 65},
        {"order": np.zeros(64, np.int32)},
        {"bits": 5},
    ],
    ids=str,
)
def test_arrays_that_contradict_each_other_are_refused(change: dict[str, object]) -> None:
    part = random_part(LinearPart(6, 64, 4, 32))
    assert isinstance(part, Quantised)
    with pytest.raises(ModelError):
        replace(part, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 7},
        {"columns": 32},
        {"bits": 8},
        {"zeros": 1},
        {"rows": -1},
        {"block": "x"},
        {"bits": None},
    ],
    ids=str,
)
def test_metadata_that_contradict_the_tensors_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    ref = write_pack(tmp_path, PackKind.HEAD, {"head": (random_part(LinearPart(6, 64, 4, 32)),)})
    path = tmp_path / ref.filename
    with pytest.raises(ModelError):
        open_pack(edited(path, change))


def edited(path: Path, change: dict[str, object]) -> Path:
    """The pack with other words about its linear layer."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["mdi"])
    about["linears"]["head"][0] |= change
    header["__metadata__"]["mdi"] = json.dumps(about)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


@pytest.mark.parametrize("fmt", [WeightFormat(4, 32), WeightFormat(8, 16)], ids=str)
def test_rounding_is_within_half_a_step_and_row_by_row(fmt: WeightFormat) -> None:
    weight = np.random.default_rng(0).standard_normal((7, 80), dtype=np.float32)
    part = quantise(weight, fmt)
    step = np.abs(part.scales).repeat(fmt.block, axis=1)[:, :80]
    # A value of the sign that reaches one code less far may be cut by one step.
    assert (np.abs(dequantise(part) - weight) <= step * (1 + 1e-6)).all()
    np.testing.assert_array_equal(dequantise(quantise(weight[2:5], fmt)), dequantise(part)[2:5])
