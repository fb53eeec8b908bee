"""The ways that the bench compares compute the same: else it would compare nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tools.bench_expert_nodes import Shape, branches, dense, qmoe


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_both_ways_to_choose_give_the_same(rng: np.random.Generator) -> None:
    shape = Shape(experts=5, chosen=2, d_ffn=32, d_model=64, block=32)
    weights = [(shape.matrix(rng, 64, 64), shape.matrix(rng, 64, 32)) for _ in range(shape.experts)]
    ways = [way(shape, weights, 1) for way in (qmoe, branches)]
    for _ in range(4):
        x, router = rng.standard_normal((1, 64), np.float32), 4 * rng.standard_normal((1, 5), np.float32)
        (one,), (other,) = (way(x, router) for way in ways)
        np.testing.assert_allclose(one, other, atol=2e-2 * np.abs(other).max())
        assert np.abs(one).max() > 0


def test_dense_layers_change_with_every_token(rng: np.random.Generator) -> None:
    shape = Shape(experts=4, chosen=2, d_ffn=32, d_model=64, block=32)
    run, x = dense(shape, rng, 1), rng.standard_normal((1, 64), np.float32)
    first, second, third = (run(x, x)[0] for _ in range(3))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, third)


def test_bytes_of_a_token_are_those_of_the_chosen_experts() -> None:
    assert Shape(128, 8, 768, 2048, 128).token_bytes == 8 * 3 * 768 * 2048 * 4.5 / 8
