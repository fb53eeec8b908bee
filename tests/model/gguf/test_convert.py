from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.gguf import types
from mdi.model.gguf.blocks import UNPACKERS
from mdi.model.gguf.convert import FLOATS, TARGETS, codes, floats, readable
from mdi.model.gguf.types import GGML_TYPES, GgmlType
from mdi.model.linear import dequantise
from tests.model.gguf.written import random_rows

BY_NAME = {ggml_type.name: ggml_type for ggml_type in (*FLOATS, *UNPACKERS)}
EXACT = [ggml_type.name for ggml_type, target in TARGETS.items() if not target.correction]
CORRECTED = [ggml_type.name for ggml_type, target in TARGETS.items() if target.correction]
ROWS, COLUMNS = 37, 512


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# Written from the definitions of ggml-common.h, one value at a time: slow, and nothing like what it checks.
def q4_0(block: bytes, i: int) -> float:
    (d,), byte = struct.unpack_from("<e", block), block[2 + i % 16]
    return d * ((byte & 15 if i < 16 else byte >> 4) - 8)


def q4_1(block: bytes, i: int) -> float:
    (d, m), byte = struct.unpack_from("<ee", block), block[4 + i % 16]
    return d * (byte & 15 if i < 16 else byte >> 4) + m


def q5_0(block: bytes, i: int) -> float:
    d, high = struct.unpack_from("<eI", block)
    byte = block[6 + i % 16]
    return d * (((byte & 15 if i < 16 else byte >> 4) | (high >> i & 1) << 4) - 16)


def q5_1(block: bytes, i: int) -> float:
    d, m, high = struct.unpack_from("<eeI", block)
    byte = block[8 + i % 16]
    return d * ((byte & 15 if i < 16 else byte >> 4) | (high >> i & 1) << 4) + m


def q8_0(block: bytes, i: int) -> float:
    return struct.unpack_from("<e", block)[0] * struct.unpack_from("<b", block, 2 + i)[0]


def sub_scales(scales: bytes, j: int) -> tuple[int, int]:
    if j < 4:
        return scales[j] & 63, scales[j + 4] & 63
    return scales[j + 4] & 15 | scales[j - 4] >> 6 << 4, scales[j + 4] >> 4 | scales[j] >> 6 << 4


def q4_k(block: bytes, i: int) -> float:
    d, dmin = struct.unpack_from("<ee", block)
    sub, at = divmod(i, 32)
    byte = block[16 + 32 * (sub // 2) + at]
    scale, minimum = sub_scales(block[4:16], sub)
    return d * scale * (byte >> 4 if sub % 2 else byte & 15) - dmin * minimum


def q5_k(block: bytes, i: int) -> float:
    d, dmin = struct.unpack_from("<ee", block)
    sub, at = divmod(i, 32)
    byte, high = block[48 + 32 * (sub // 2) + at], block[16 + at] >> sub & 1
    scale, minimum = sub_scales(block[4:16], sub)
    return d * scale * ((byte >> 4 if sub % 2 else byte & 15) | high << 4) - dmin * minimum


def q6_k(block: bytes, i: int) -> float:
    half, at = divmod(i, 128)
    low, high = block[64 * half :], block[128 + 32 * half :]
    quarter, at = divmod(at, 32)
    four = low[at + 32 * (quarter % 2)] >> (4 if quarter > 1 else 0) & 15
    two = high[at] >> 2 * quarter & 3
    (scale,) = struct.unpack_from("<b", block, 192 + i // 16)
    return struct.unpack_from("<e", block, 208)[0] * scale * ((four | two << 4) - 32)


def q2_k(block: bytes, i: int) -> float:
    d, dmin = struct.unpack_from("<ee", block, 80)
    half, at = divmod(i, 128)
    two = block[16 + 32 * half + at % 32] >> 2 * (at // 32) & 3
    return d * (block[i // 16] & 15) * two - dmin * (block[i // 16] >> 4)


def q3_k(block: bytes, i: int) -> float:
    half, at = divmod(i, 128)
    two = block[32 + 32 * half + at % 32] >> 2 * (at // 32) & 3
    third = block[i % 32] >> (i // 32) & 1
    group = i // 16
    low = block[96 + group % 8] >> (4 if group > 7 else 0) & 15
    scale = (low | (block[104 + group % 4] >> 2 * (group // 4) & 3) << 4) - 32
    return struct.unpack_from("<e", block, 108)[0] * scale * (two - (0 if third else 4))


def iq4_nl(block: bytes, i: int) -> float:
    table = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
    byte = block[2 + i % 16]
    return struct.unpack_from("<e", block)[0] * table[byte & 15 if i < 16 else byte >> 4]


DEFINITIONS: dict[str, Callable[[bytes, int], float]] = {
    "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0, "Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q5_k,
    "Q6_K": q6_k, "IQ4_NL": iq4_nl,
}  # fmt: skip


def test_every_block_format_has_a_definition_and_an_exact_form() -> None:
    assert set(DEFINITIONS) == {ggml_type.name for ggml_type in UNPACKERS} == {ggml_type.name for ggml_type in TARGETS}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_values_are_those_of_the_definition(name: str, rng: np.random.Generator) -> None:
    ggml_type = BY_NAME[name]
    raw = random_rows(ggml_type, 3, 512, rng)
    blocks = raw.reshape(-1, ggml_type.n_bytes)
    expected = [[DEFINITIONS[name](block.tobytes(), i) for i in range(ggml_type.values)] for block in blocks]
    np.testing.assert_allclose(floats(ggml_type, raw), np.reshape(expected, (3, 512)), rtol=1e-6, atol=1e-6)
    assert 0.05 < np.std(expected) < 1  # not all zero: the comparison would say nothing


@pytest.mark.parametrize("name", BY_NAME)
def test_values_are_those_of_the_gguf_package_to_the_last_bit(name: str, rng: np.random.Generator) -> None:
    gguf = pytest.importorskip("gguf")
    raw = rng.standard_normal((ROWS, COLUMNS), np.float32).view(np.uint8) if name == "F32" else None
    if raw is None:
        half = rng.standard_normal((ROWS, COLUMNS)).astype("<f2").view(np.uint8)
        raw = half if BY_NAME[name] in FLOATS else random_rows(BY_NAME[name], ROWS, COLUMNS, rng)
    if name == "F16":  # the package's own dequantisation of F16 is a plain cast
        expected: NDArray[np.float32] = raw.view("<f2").astype(np.float32)
    else:
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(floats(BY_NAME[name], raw), expected.reshape(ROWS, -1).view(np.float32))


@pytest.mark.parametrize("name", EXACT)
def test_codes_mean_the_same_values_to_the_last_bit(name: str, rng: np.random.Generator) -> None:
    raw = random_rows(BY_NAME[name], ROWS, COLUMNS, rng)
    part = codes(BY_NAME[name], raw)
    assert part.correction is None
    np.testing.assert_array_equal(dequantise(part), floats(BY_NAME[name], raw))


@pytest.mark.parametrize("name", CORRECTED)
def test_codes_with_correction_mean_the_same_values_to_rounding(name: str, rng: np.random.Generator) -> None:
    raw = random_rows(BY_NAME[name], ROWS, COLUMNS, rng)
    part, exact = codes(BY_NAME[name], raw), floats(BY_NAME[name], raw)
    size = np.abs(part.scales).max() * 32 + np.abs(exact).max()  # of the terms that are added
    assert np.abs(dequantise(part) - exact).max() <= 4 * np.finfo(np.float32).eps * size


@pytest.mark.parametrize("name", CORRECTED)
def test_blocks_whose_scale_is_zero_keep_their_minimum(name: str, rng: np.random.Generator) -> None:
    raw = random_rows(BY_NAME[name], 2, COLUMNS, rng)
    at = 80 if name == "Q2_K" else 0
    raw.reshape(-1, BY_NAME[name].n_bytes)[:, at : at + 2] = 0
    exact = floats(BY_NAME[name], raw)
    assert np.abs(exact).max() > 0
    np.testing.assert_array_equal(dequantise(codes(BY_NAME[name], raw)), exact)


@pytest.mark.parametrize("name", [ggml_type.name for ggml_type in TARGETS])
def test_rows_are_converted_apart(name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_rows(BY_NAME[name], ROWS, COLUMNS, rng)
    whole, whole_floats = codes(BY_NAME[name], raw), floats(BY_NAME[name], raw)
    monkeypatch.setattr("mdi.model.gguf.convert.CHUNK_VALUES", 3 * COLUMNS)
    order = rng.permutation(ROWS)
    np.testing.assert_array_equal(dequantise(codes(BY_NAME[name], raw[order])), dequantise(whole)[order])
    np.testing.assert_array_equal(floats(BY_NAME[name], raw[order]), whole_floats[order])


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_what_the_gguf_package_quantises_is_read_back(name: str, rng: np.random.Generator) -> None:
    gguf = pytest.importorskip("gguf")
    weight = rng.standard_normal((ROWS, COLUMNS), np.float32)
    found = floats(BY_NAME[name], gguf.quants.quantize(weight, gguf.GGMLQuantizationType[name]))
    step = {"Q4": 0.5, "Q5": 0.25, "Q8": 0.04}[name[:2]]
    assert np.abs(found - weight).max() < step


@pytest.mark.parametrize("name", DEFINITIONS)
@given(data=st.data())
def test_any_bytes_are_converted_without_a_warning(name: str, data: st.DataObject) -> None:
    n_bytes = BY_NAME[name].n_bytes
    raw = np.frombuffer(data.draw(st.binary(min_size=n_bytes, max_size=n_bytes)), np.uint8)[None]
    values, part = floats(BY_NAME[name], raw), codes(BY_NAME[name], raw).part
    assert values.shape == (part.rows, part.columns) == (1, BY_NAME[name].values)


@pytest.mark.parametrize(
    "ggml_type", [known for known in GGML_TYPES.values() if not readable(known)], ids=lambda known: known.name
)
def test_type_without_a_reader_is_named(ggml_type: GgmlType) -> None:
    with pytest.raises(ModelError, match=ggml_type.name) as refused:
        floats(ggml_type, np.zeros((1, ggml_type.n_bytes), np.uint8))
    assert "Q4_K" in (refused.value.hint or "")


def test_sizes_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    for number, ggml_type in GGML_TYPES.items():
        theirs = next((kind for kind in gguf.GGMLQuantizationType if kind == number), None)
        if theirs is not None and theirs.name != "Q8_1":  # older packages know fewer; Q8_1 is in no file, and has two sizes
            assert (ggml_type.name, (ggml_type.values, ggml_type.n_bytes)) == (theirs.name, gguf.GGML_QUANT_SIZES[theirs])
    assert types.Q4_K.bits_per_value == 4.5
