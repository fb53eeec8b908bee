"""What a request gives, over the real engine on one device: tokens, texts and logprobs that belong together."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mdi.cluster.home import Home
from mdi.engine.constraint import Constraint, Guide, Language
from mdi.engine.sampling import SamplingParams
from mdi.errors import UserError
from mdi.model.quantise import Quant
from mdi.pipeline.api import Answer, FinishReason, Request, StarterOptions
from mdi.pipeline.starter import Starter, open_starter
from tests.checkpoints import make_checkpoint
from tests.model.tokenizers_made import make_byte_level
from tools.quoting import make_quoting, text_ids
from tools.shapes import SHAPES

PROMPT = tuple(range(10, 40))
REPEATING = (7, 8, 9, 10, 11, 12) * 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", vocab_size=405)
    make_byte_level(directory)
    return directory


@pytest.fixture
async def starter(model: Path, tmp_path: Path) -> AsyncIterator[Starter]:
    options = StarterOptions(str(model), Quant.NONE, ctx=200, n_slots=3, discovery=False, threads=1)
    async with open_starter(options, Home(tmp_path / "home").create(), lambda _: None) as starter:
        yield starter


async def ask(starter: Starter, prompt: tuple[int, ...] = PROMPT, **changes: object) -> Answer:
    return (await events(starter, prompt, **changes))[-1]


async def events(starter: Starter, prompt: tuple[int, ...] = PROMPT, **changes: object) -> list:
    request = Request(prompt, **({"max_tokens": 40, "ignore_eos": True} | changes))
    return [event async for event in starter.generate(request)]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(repetition_penalty=1.05),
        SamplingParams(temperature=0.3, seed=2),
        SamplingParams(temperature=1.0, top_p=0.9, seed=4),
    ],
)
async def test_guesses_change_no_answer_of_the_real_engine(starter: Starter, params: SamplingParams) -> None:
    for prompt in (PROMPT, REPEATING):
        plain = await ask(starter, prompt, params=params, max_tokens=120, speculate=False)
        fast = await ask(starter, prompt, params=params, max_tokens=120)
        assert fast.token_ids == plain.token_ids
        assert plain.timings.drafted_tokens == 0
        assert fast.timings.accepted_tokens <= fast.timings.drafted_tokens


@pytest.mark.parametrize("quant", [Quant.NONE, Quant.INT4])
async def test_a_quotation_is_guessed_right_and_saves_its_steps(quant: Quant, tmp_path: Path) -> None:
    model = make_quoting(SHAPES["tiny"], tmp_path / "quoting")
    options = StarterOptions(str(model), quant, ctx=300, discovery=False, threads=1)
    answers, steps = [], []
    async with open_starter(options, Home(tmp_path / "home").create(), lambda _: None) as starter:
        for speculate in (False, True):
            before = starter._core.steps
            answers.append(await ask(starter, text_ids() * 2, max_tokens=150, speculate=speculate))
            steps.append(starter._core.steps - before)
    plain, fast = answers
    assert plain.token_ids == fast.token_ids == (text_ids() * 4)[:150]
    assert steps[0] == 150
    assert steps[1] == 150 - fast.timings.accepted_tokens <= 20


async def test_logprobs_are_those_of_transformers(starter: Starter, model: Path) -> None:
    """The model's own, whatever the settings made of them."""
    params = SamplingParams(temperature=0.8, repetition_penalty=1.4, logit_bias=((9, 3.0),), seed=3, logprobs=4)
    *pieces, answer = await events(starter, params=params)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        logits = reference(torch.tensor([[*PROMPT, *answer.token_ids]])).logits[0]
    expected = torch.log_softmax(logits.double(), -1)[len(PROMPT) - 1 : -1]
    assert [told.token_id for told in answer.logprobs] == list(answer.token_ids)
    assert [piece.logprobs for piece in pieces if piece.token_id is not None] == list(answer.logprobs)
    found = np.array([told.logprob for told in answer.logprobs])
    np.testing.assert_allclose(found, expected[range(40), list(answer.token_ids)], atol=1e-3)
    for told, row in zip(answer.logprobs, expected, strict=True):
        values, ids = torch.topk(row, 4)
        assert [token for token, _ in told.top] == ids.tolist()
        np.testing.assert_allclose([value for _, value in told.top], values, atol=1e-3)


async def test_the_rate_is_that_of_the_engine_however_late_its_tokens_are_read(starter: Starter) -> None:
    core, pieces = starter._core, starter.generate(Request(PROMPT, max_tokens=40, ignore_eos=True, speculate=False))
    first = asyncio.ensure_future(anext(pieces))
    while not core.steps:  # noqa: ASYNC110 - nothing tells of a first step
        await asyncio.sleep(0)
    started_s = time.perf_counter()
    while core.steps < 40:
        time.sleep(0)  # noqa: ASYNC251 - the loop is held up, as by a slow terminal
    held_up_s = time.perf_counter() - started_s
    await first
    timings = [event async for event in pieces][-1].timings
    assert timings.decode_tokens_per_s is not None
    assert 39 / timings.decode_tokens_per_s > 0.5 * held_up_s


async def test_no_logprobs_unless_they_are_asked_for(starter: Starter) -> None:
    *pieces, answer = await events(starter)
    assert answer.logprobs == ()
    assert all(piece.logprobs is None for piece in pieces)


def written(starter: Starter, ids: tuple[int, ...]) -> str:
    """The text that is certain after these tokens: without a character that they only begin."""
    return "".join(map(starter.model.tokenizer.stream().push, ids))


async def test_tokens_of_a_stop_string_alone_are_left_out(starter: Starter) -> None:
    full = await ask(starter, params=SamplingParams(logprobs=0))
    for start in range(4, 20):
        for length in (1, 3, 6):
            stop = full.text[start : start + length]
            if not stop or "�" in stop:
                continue
            cut = await ask(starter, params=SamplingParams(logprobs=0), stop=(stop,))
            assert cut.finish_reason is FinishReason.STOP
            assert cut.text == full.text[: full.text.index(stop)]
            assert cut.token_ids == full.token_ids[: len(cut.token_ids)]
            if cut.text:
                assert written(starter, cut.token_ids).startswith(cut.text)
                assert not written(starter, cut.token_ids[:-1]).startswith(cut.text)
            else:
                assert cut.token_ids == ()
            assert len(cut.logprobs) == len(cut.token_ids) <= cut.timings.new_tokens


async def test_a_bias_bans_and_forces_tokens(starter: Starter) -> None:
    plain = await ask(starter)
    banned = await ask(starter, params=SamplingParams(logit_bias=((plain.token_ids[0], -100.0),)))
    assert plain.token_ids[0] not in banned.token_ids
    forced = await ask(starter, params=SamplingParams(logit_bias=((42, 100.0),)))
    assert set(forced.token_ids) == {42}
    with pytest.raises(UserError, match="token 999"):
        await ask(starter, params=SamplingParams(logit_bias=((999, 1.0),)))


@pytest.mark.parametrize("speculate", [True, False])
async def test_an_answer_obeys_its_schema_and_ends_with_it(starter: Starter, speculate: bool) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "n": {"type": "integer", "maximum": 99}}}
    constraint = Constraint(
        Language.JSON_SCHEMA, json.dumps(schema | {"required": ["city", "n"], "additionalProperties": False})
    )
    answers = [
        await ask(starter, params=params, max_tokens=160, constraint=constraint, speculate=speculate)
        for params in (SamplingParams(), SamplingParams(temperature=1.5, seed=1))
    ]
    for answer in answers:
        value = json.loads(answer.text)
        assert value["city"] in ("Paris", "Rome")
        assert value["n"] <= 99
        assert answer.finish_reason is FinishReason.STOP


async def test_forced_text_is_guessed_and_the_answer_is_the_same(starter: Starter) -> None:
    constraint = Constraint(Language.REGEX, "The quick brown fox jumps over (the|a) lazy dog\\.")
    plain = await ask(starter, constraint=constraint, speculate=False)
    fast = await ask(starter, constraint=constraint)
    assert (fast.text, fast.token_ids) == (plain.text, plain.token_ids)
    assert fast.timings.accepted_tokens == fast.timings.drafted_tokens > 5


async def test_a_constraint_that_cannot_go_on_ends_its_answer_alone(starter: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    follow = Guide.allowed

    def fail_later(guide: Guide, answer: list[int]) -> object:
        if len(answer) > 2:
            raise UserError("too complex")
        return follow(guide, answer)

    monkeypatch.setattr(Guide, "allowed", fail_later)
    expected = await ask(starter)
    constraint = Constraint(Language.REGEX, "[a-z]+")
    failed, other = await asyncio.gather(
        ask(starter, constraint=constraint), ask(starter, max_tokens=40), return_exceptions=True
    )
    assert isinstance(failed, UserError)
    assert other.token_ids == expected.token_ids
    assert len((await ask(starter)).token_ids) == 40
