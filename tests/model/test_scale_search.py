"""Searched scales never make the weighed error larger than plain rounding does, and much smaller where inputs differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mdi.model.linear import dequantise
from mdi.model.quantise import WeightFormat, quantise
from mdi.model.scale_search import FLOOR, block_weights


def block_errors(weight: NDArray[np.float32], fmt: WeightFormat, squares: NDArray[np.float32], *, searched: bool) -> NDArray:
    """Of every row and block, the error that the search is to make small."""
    rounded = dequantise(quantise(weight, fmt, squares if searched else None))
    n, k = weight.shape
    errors = np.zeros((n, -(-k // fmt.block) * fmt.block))
    errors[:, :k] = (rounded.astype(np.float64) - weight) ** 2
    return (errors.reshape(n, -1, fmt.block) * block_weights(squares, fmt.block)).sum(-1)


@given(
    seed=st.integers(0, 2**32 - 1),
    columns=st.sampled_from([16, 40, 64, 96]),
    bits=st.sampled_from([4, 8]),
    tail=st.floats(0.5, 8),
    spread=st.floats(0, 4),
)
def test_no_block_gets_worse(seed: int, columns: int, bits: int, tail: float, spread: float) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(tail, (3, columns)).astype(np.float32)
    weight[0, :16] = 0
    squares = np.exp(spread * rng.standard_normal(columns)).astype(np.float32)
    fmt = WeightFormat(bits, 32)
    plain, searched = (block_errors(weight, fmt, squares, searched=searched) for searched in (False, True))
    padded = np.zeros((3, -(-columns // 32) * 32))
    padded[:, :columns] = weight
    energy = (padded.reshape(3, -1, 32) ** 2 * block_weights(squares, 32)).sum(-1)
    # The search compares sums of squares in fp32: beside one value of thousands, errors of hundreds are below their rounding.
    assert (searched <= plain * (1 + 1e-4) + 1e-6 * energy + 1e-12).all()


def test_outputs_are_much_nearer_where_some_inputs_are_large() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 512), dtype=np.float32)
    sizes = np.where(rng.random(512) < 0.02, 30, 1).astype(np.float32)
    x = rng.standard_normal((1000, 512), dtype=np.float32) * sizes
    fmt = WeightFormat(4, 128)

    def error(squares: NDArray[np.float32] | None) -> float:
        return float(np.square(x @ (dequantise(quantise(weight, fmt, squares)) - weight).T).mean())

    assert error((x * x).mean(0)) < 0.55 * error(None)  # measured: 0.35


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros_and_unseen_inputs_are_rounded_all_the_same(bits: int) -> None:
    weight = np.zeros((2, 64), np.float32)
    weight[1] = np.linspace(-1, 1, 64)
    found = dequantise(quantise(weight, WeightFormat(bits, 32), np.zeros(64, np.float32)))
    assert not found[0].any()
    assert np.abs(found[1] - weight[1]).max() < 2 / (1 << bits)


def test_rows_are_rounded_alike_whatever_stands_beside_them() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((3000, 128), dtype=np.float32)  # several pieces of work
    squares = rng.random(128, np.float32)
    whole = quantise(weight, WeightFormat(4, 64), squares)
    part = quantise(weight[1234:1300], WeightFormat(4, 64), squares)
    np.testing.assert_array_equal(part.codes, whole.codes[1234:1300])
    np.testing.assert_array_equal(part.scales, whole.scales[1234:1300])


def test_a_column_that_was_never_seen_weighs_a_little() -> None:
    weights = block_weights(np.array([0, 4, 0, 0], np.float32), 2)
    np.testing.assert_allclose(weights, np.array([[0, 2], [1, 1]]) + FLOOR)
