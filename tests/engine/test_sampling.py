from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mdi.engine.sampling import SamplingParams, sample
from mdi.errors import InternalError, UserError

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def draws(params: SamplingParams, n: int = 4000) -> Counter[int]:
    return Counter(sample(LOGITS, params, index) for index in range(n))


def test_temperature_zero_takes_the_likeliest() -> None:
    assert sample(LOGITS, SamplingParams(), 0) == 1


def test_draws_follow_the_probabilities() -> None:
    counts = draws(SamplingParams(temperature=1.0, seed=5))
    assert [counts[i] / 4000 for i in range(4)] == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.03)


def test_a_high_temperature_flattens_and_a_low_one_sharpens() -> None:
    assert draws(SamplingParams(temperature=100.0, seed=1))[0] / 4000 == pytest.approx(0.25, abs=0.03)
    assert draws(SamplingParams(temperature=0.1, seed=1))[1] / 4000 > 0.9


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        (SamplingParams(temperature=1.0, top_k=2), {1, 3}),
        (SamplingParams(temperature=1.0, top_p=0.65), {1, 3}),
        (SamplingParams(temperature=1.0, top_p=0.75), {1, 2, 3}),
        (SamplingParams(temperature=1.0, min_p=0.6), {1, 3}),
        (SamplingParams(temperature=1.0, top_k=3, top_p=0.5), {1, 3}),
    ],
)
def test_filters_leave_only_the_likely(params: SamplingParams, allowed: set[int]) -> None:
    assert set(draws(params, 500)) == allowed


def test_the_same_seed_and_index_repeat_the_token_whatever_was_drawn_before() -> None:
    params = SamplingParams(temperature=1.0, seed=9)
    first = [sample(LOGITS, params, index) for index in range(50)]
    assert [sample(LOGITS, params, index) for index in reversed(range(50))] == first[::-1]
    assert [sample(LOGITS, SamplingParams(temperature=1.0, seed=10), index) for index in range(50)] != first


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InternalError, match="not finite"):
        sample(np.array([0.0, np.nan], np.float32), SamplingParams(), 0)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -1}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        SamplingParams(**wrong)
