from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mdi.cli.wishes import parse_constraint, parse_logit_bias
from mdi.cluster.home import Home
from mdi.engine.constraint import Constraint, Language
from mdi.errors import UserError

from .programs import mdi

SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 50}}, "required": ["n"], "additionalProperties": false}'
ALONE = ("run", "--no-discovery", "--json", "--ctx", "500")


def test_biases_are_ids_and_numbers() -> None:
    assert parse_logit_bias(["15=-100", "3=1.5"]) == ((15, -100.0), (3, 1.5))
    assert parse_logit_bias(None) == ()


@pytest.mark.parametrize("wrong", ["15", "=3", "a=3", "15=x", "1.5=2", ""])
def test_other_biases_are_refused_and_shown(wrong: str) -> None:
    with pytest.raises(UserError, match=re.escape(repr(wrong))):
        parse_logit_bias([wrong])


def test_a_schema_is_a_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(SCHEMA)
    expected = Constraint(Language.JSON_SCHEMA, SCHEMA)
    assert parse_constraint(SCHEMA, None) == parse_constraint(str(file), None) == expected
    assert parse_constraint(None, "a+") == Constraint(Language.REGEX, "a+")
    assert parse_constraint(None, None) is None


@pytest.mark.parametrize(
    ("schema", "regex", "named"),
    [
        ("{}", "a", "cannot both hold"),
        ("/no/such/file", None, "/no/such/file"),
        ("/", None, "directory"),
        ("{", None, "not JSON"),
    ],
)
def test_other_constraints_are_refused_and_named(schema: str, regex: str | None, named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        parse_constraint(schema, regex)


def test_the_built_in_model_answers_as_a_schema_and_a_regex_ask(home: Home) -> None:
    done = mdi(home, *ALONE, "--prompt", "What is 7 + 5?", "--json-schema", SCHEMA)
    assert json.loads(json.loads(done.stdout)["text"])["n"] <= 50
    pattern = "The capital of France is (Berlin|Paris|Rome)"
    done = mdi(home, *ALONE, "--prompt", "What is the capital of France?", "--regex", pattern)
    answer = json.loads(done.stdout)
    assert (answer["text"], answer["finish_reason"]) == ("The capital of France is Paris", "stop")


def test_settings_are_reported_and_logprobs_stand_beside_their_tokens(home: Home) -> None:
    settings = (
        "--repetition-penalty",
        "1.05",
        "--frequency-penalty",
        "0.1",
        "--presence-penalty",
        "0.2",
        "--logit-bias",
        "7=-5",
    )
    done = mdi(home, *ALONE, "--prompt", "What is 7 + 5?", *settings, "--logprobs", "2", "--no-speculation")
    answer = json.loads(done.stdout)
    expected = {"repetition_penalty": 1.05, "frequency_penalty": 0.1, "presence_penalty": 0.2, "logit_bias": {"7": -5.0}}
    assert answer["sampling"].items() >= expected.items()
    assert answer["timings"]["drafted_tokens"] == 0
    told = answer["logprobs"]
    assert [entry["token_id"] for entry in told] == answer["token_ids"]
    assert bytes(byte for entry in told for byte in entry["bytes"]).decode() == answer["text"]
    assert "".join(entry["token"] for entry in told) == answer["text"]
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in told)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--regex", "[a"), "unclosed"),
        (("--json-schema", '{"type": "thing"}'), "thing"),
        (("--logit-bias", "x"), "--logit-bias"),
        (("--logit-bias", "99999=1"), "99999"),
        (("--logprobs", "21"), "logprobs"),
        (("--presence-penalty", "3"), "--presence-penalty"),
    ],
)
def test_what_cannot_be_is_the_users_error(home: Home, arguments: tuple[str, str], named: str) -> None:
    done = mdi(home, *ALONE, "--prompt", "x", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr


def test_logprobs_without_json_have_no_place(home: Home) -> None:
    done = mdi(home, "run", "--no-discovery", "--prompt", "x", "--logprobs", "1")
    assert done.returncode == 2
    assert "--json" in done.stderr
