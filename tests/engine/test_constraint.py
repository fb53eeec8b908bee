"""Answers under a constraint: whatever the model wants, the text that comes out matches; for every kind of tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.engine.constraint import Constraint, Guide, Guides, Language
from mdi.engine.sampling import SamplingParams, sample
from mdi.errors import UserError
from mdi.model.config import ModelConfig
from mdi.model.source import Model, resolve
from mdi.model.tokenizer import Tokenizer
from tests.checkpoints import TINY
from tests.model.tokenizers_made import make_byte_level, make_sentencepiece

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["é", "b b", "☃"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
REGEX = r"(yes|no|vielleicht), \d{2,3}( ü+)?\."
VOCAB = 640  # more than the tokenizers have, as padded checkpoints do
MAX_TOKENS = 400
MAKERS: dict[str, Callable[[Path], Path]] = {
    "byte-level": make_byte_level,
    "sentencepiece": lambda directory: make_sentencepiece(directory, add_bos_token=True),
    "demo": lambda directory: resolve("demo").directory,
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = MAKERS[request.param](tmp_path_factory.mktemp("tokenizer"))
    values = TINY | {"architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "eos_token_id": 1}
    return Tokenizer.load(directory, ModelConfig.from_hf(values))


@pytest.fixture(scope="module")
def guides(tokenizer: Tokenizer) -> Guides:
    return Guides(tokenizer, VOCAB)


def write(guide: Guide, stop_ids: frozenset[int], seed: int, wishes: np.ndarray | None = None) -> list[int] | None:
    """A model of random logits writes until it ends; None when it had not ended after MAX_TOKENS."""
    rng, answer = np.random.default_rng(seed), []
    params = SamplingParams(temperature=1.0, seed=seed)
    while len(answer) < MAX_TOKENS:
        logits = rng.standard_normal(VOCAB).astype(np.float32)
        token = sample(logits if wishes is None else logits + wishes, params, len(answer), answer, guide.allowed(answer))
        if token in stop_ids:
            return answer
        answer.append(token)
        if guide.is_complete(answer):
            return answer
    return None


@pytest.mark.parametrize("ends", [True, False])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 20), continues=st.booleans())
def test_random_answers_match_the_regex(tokenizer: Tokenizer, guides: Guides, ends: bool, seed: int, continues: bool) -> None:
    stop_ids = tokenizer.stop_ids if ends else frozenset()
    guide = guides.compile(Constraint(Language.REGEX, REGEX), stop_ids=stop_ids, continues=continues)
    answer = write(guide, stop_ids, seed)
    assert answer is not None
    assert re.fullmatch(REGEX, tokenizer.stream(continues=continues).text(answer), re.ASCII)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 20))
def test_random_answers_obey_the_schema(tokenizer: Tokenizer, guides: Guides, seed: int) -> None:
    guide = guides.compile(Constraint(Language.JSON_SCHEMA, json.dumps(SCHEMA)), stop_ids=tokenizer.stop_ids)
    answer = write(guide, tokenizer.stop_ids, seed)
    assert answer is not None
    value = json.loads(tokenizer.decode(answer))
    assert list(value) == ["name", "age", "tags"]
    assert len(value["name"]) <= 6
    assert 0 <= value["age"] <= 120
    assert len(value["tags"]) <= 2
    assert set(value["tags"]) <= {"é", "b b", "☃"}


def test_any_json_is_any_json(tokenizer: Tokenizer, guides: Guides) -> None:
    texts = ['{"a": [1, -2.5e3, null, {"b": "é ☃"}]}', '"x"', "[]", "true", '{\n  "a": {\n    "b": 1\n  }\n}']
    for text in texts:
        guide = guides.compile(Constraint(Language.JSON_SCHEMA, "{}"), stop_ids=tokenizer.stop_ids)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert guide.possible([], ids) == len(ids), text
    assert guide.possible([], tokenizer.encode("{a: 1}")) < len(tokenizer.encode("{a: 1}"))


def test_a_new_guide_goes_on_from_the_tokens_alone(tokenizer: Tokenizer, guides: Guides) -> None:
    constraint = Constraint(Language.REGEX, REGEX)
    guide = guides.compile(constraint, stop_ids=tokenizer.stop_ids)
    answer = write(guide, tokenizer.stop_ids, 1)
    assert answer is not None
    old = guides.compile(constraint, stop_ids=tokenizer.stop_ids)
    for n in range(len(answer)):
        new = guides.compile(constraint, stop_ids=tokenizer.stop_ids)
        np.testing.assert_array_equal(new.allowed(answer[:n]), old.allowed(answer[:n]))
        assert new.is_complete(answer[:n]) == old.is_complete(answer[:n])


def test_what_must_come_is_known_before_it_is_sampled() -> None:
    model = Model(resolve("demo"))
    guides = Guides(model.tokenizer, model.config.vocab_size)
    guide = guides.compile(Constraint(Language.REGEX, "c-a-t[.!]"), stop_ids=model.tokenizer.stop_ids)
    assert guide.forced([]) == model.tokenizer.encode("c-a-t")
    assert guide.forced(model.tokenizer.encode("c-a-t")) == []


def test_the_end_is_allowed_only_where_the_text_is_whole(tokenizer: Tokenizer, guides: Guides) -> None:
    guide = guides.compile(Constraint(Language.REGEX, "ab?"), stop_ids=tokenizer.stop_ids, continues=True)
    (stop_id, *_) = sorted(tokenizer.stop_ids)
    assert not guide.allowed([])[stop_id]
    answer = tokenizer.encode("xa")[-1:]
    assert tokenizer.stream(continues=True).text(answer) == "a"
    assert guide.allowed(answer)[stop_id]
    assert not guide.is_complete(answer)


@pytest.mark.parametrize(
    ("language", "source", "named"),
    [
        (Language.REGEX, "[a", "unclosed character class"),
        (Language.REGEX, "(?=x)", "look-ahead"),
        (Language.REGEX, "", "not a regular expression"),
        (Language.REGEX, "a\\", "not a regular expression"),
        (Language.REGEX, "a" * (1 << 20) + "b", "characters long"),
        (Language.JSON_SCHEMA, "{", "not JSON"),
        (Language.JSON_SCHEMA, "[" * 100_000, "not JSON"),
        (Language.JSON_SCHEMA, "[]", "is an object"),
        (Language.JSON_SCHEMA, '{"type": "obj"}', "Invalid type: obj"),
        (Language.JSON_SCHEMA, '{"not": {}}', "not"),
        (Language.JSON_SCHEMA, '{"$ref": "http://example.com/s"}', "http://example.com/s"),
        (Language.JSON_SCHEMA, '{"type": "string", "pattern": "["}', "unclosed character class"),
    ],
)
def test_what_cannot_be_used_is_refused_and_named(language: Language, source: str, named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)) as error:
        Constraint(language, source)
    assert len(str(error.value)) < 300


def test_a_model_without_the_tokens_says_so(tmp_path: Path) -> None:
    values = TINY | {"architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "eos_token_id": 1}
    tokenizer = Tokenizer.load(make_sentencepiece(tmp_path), ModelConfig.from_hf(values))
    n_tokens = 3 + ord("b")  # <unk>, <s>, </s> and the bytes up to the letter a
    guide = Guides(tokenizer, n_tokens).compile(Constraint(Language.REGEX, "(ab|aab)"), stop_ids=frozenset(), continues=True)
    assert np.flatnonzero(guide.allowed([])).tolist() == [n_tokens - 1]
    with pytest.raises(UserError, match="cannot go on as the regex asks"):
        guide.allowed([n_tokens - 1] * 2)
