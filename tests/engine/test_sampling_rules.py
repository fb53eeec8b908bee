"""Penalties, filters and logprobs are those of transformers and torch, at vocabularies large enough for the fast paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mdi.engine.logits import Penalties, adjust, likeliest, logprobs
from mdi.engine.sampling import SamplingParams, candidates, sample
from mdi.errors import UserError

SEEDS = st.integers(0, 1 << 20)
VOCABS = st.sampled_from([7, 300, 9000])  # the last takes the paths that look at groups and blocks


def random_logits(seed: int, vocab: int, spread: float = 3.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(vocab) * spread).astype(np.float32)


@settings(max_examples=400, deadline=None)
@given(
    seed=SEEDS,
    vocab=VOCABS,
    spread=st.sampled_from([0.3, 2.0, 6.0]),
    temperature=st.floats(0.2, 3.0),
    top_k=st.sampled_from([0, 1, 5, 40, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_probabilities_are_those_of_transformers(seed, vocab, spread, temperature, top_k, top_p, min_p) -> None:
    logits = random_logits(seed, vocab, spread)
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    scores = LogitsProcessorList(warpers)(
        torch.zeros((1, 1), dtype=torch.long), torch.from_numpy(logits.astype(np.float64))[None]
    )
    expected = torch.softmax(scores[0], -1).numpy()
    ids, weights = candidates(logits, SamplingParams(temperature, top_k, top_p, min_p), float(logits.max()))
    found = np.zeros(vocab)
    found[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    assert ids is None or np.all(np.diff(ids) > 0)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, vocab=VOCABS, tokens=st.lists(st.integers(0, 6), max_size=12), penalty=st.floats(0.5, 2.0))
def test_the_repetition_penalty_is_that_of_transformers(seed, vocab, tokens, penalty) -> None:
    logits = random_logits(seed, vocab)
    before = logits.copy()
    found = adjust(logits, tokens, 0, allowed=None, bias=(), penalties=Penalties(repetition=penalty))
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([tokens], dtype=torch.long), torch.from_numpy(before)[None])[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(logits, before)


def test_frequency_counts_and_presence_does_not_and_both_leave_the_prompt_alone() -> None:
    found = adjust(np.zeros(5, np.float32), [0, 0, 1, 2, 2, 2], 4, allowed=None, bias=(), penalties=Penalties(1.0, 0.5, 0.25))
    assert found.tolist() == [0.0, -0.75, -1.75, 0.0, 0.0]


def test_bias_is_added_before_penalties_and_cannot_bring_back_what_is_not_allowed() -> None:
    allowed = np.array([True, True, False])
    found = adjust(
        np.array([1.0, 1.0, 9.0], np.float32), [0], 1, allowed=allowed, bias=((0, 3.0), (2, 100.0)), penalties=Penalties(2.0)
    )
    assert found.tolist() == [2.0, 1.0, -np.inf]
    assert sample(np.array([1.0, 1.0, 9.0], np.float32), SamplingParams(), 0, [0], allowed) == 0


@pytest.mark.parametrize(
    "params", [SamplingParams(1.0), SamplingParams(1.0, top_k=50), SamplingParams(2.0, top_p=0.9, min_p=0.01)]
)
def test_what_is_not_allowed_is_never_drawn(params: SamplingParams) -> None:
    allowed = np.zeros(9000, np.bool_)
    allowed[[5, 300, 8999]] = True
    drawn = {sample(random_logits(1, 9000), params, index, (), allowed) for index in range(300)}
    assert drawn <= {5, 300, 8999}


def test_draws_from_a_large_vocabulary_follow_the_probabilities() -> None:
    logits = np.full(9000, -30.0, np.float32)
    logits[[3, 4000, 8998]] = np.log([0.2, 0.5, 0.3])
    drawn = [sample(logits, SamplingParams(1.0, seed=4), index) for index in range(4000)]
    shares = [drawn.count(token) / 4000 for token in (3, 4000, 8998)]
    assert shares == pytest.approx([0.2, 0.5, 0.3], abs=0.03)


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, vocab=VOCABS, n_top=st.integers(0, 7))
def test_logprobs_are_those_of_torch(seed, vocab, n_top) -> None:
    logits = random_logits(seed, vocab)
    expected = torch.log_softmax(torch.from_numpy(logits.astype(np.float64)), -1)
    found = logprobs(logits, 3, n_top)
    assert found.token_id == 3
    assert found.logprob == pytest.approx(float(expected[3]), abs=1e-5)
    values, ids = torch.topk(expected, n_top)
    assert [token for token, _ in found.top] == ids.tolist()
    assert [value for _, value in found.top] == pytest.approx(values.tolist(), abs=1e-5)


@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=40), k=st.integers(1, 40))
def test_of_equal_logits_the_lower_ids_are_likelier(values: list[int], k: int) -> None:
    expected = sorted(range(len(values)), key=lambda token: (-values[token], token))[:k]
    assert likeliest(np.array(values, np.float32), k).tolist() == expected


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logit_bias": ((3, 101.0),)}, "token 3"),
        ({"logit_bias": ((-1, 1.0),)}, "token -1"),
        ({"logit_bias": ((3, 1.0), (3, 2.0))}, "twice"),
        ({"logit_bias": tuple((i, 1.0) for i in range(1025))}, "1024"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        SamplingParams(**wrong)


def test_a_bias_of_a_token_that_the_model_lacks_is_refused() -> None:
    params = SamplingParams(logit_bias=((320, 1.0),))
    params.check_vocabulary(321)
    with pytest.raises(UserError, match="only 320"):
        params.check_vocabulary(320)
