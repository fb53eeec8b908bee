from __future__ import annotations

import pytest

from mdi.hub.names import GB, close_names, known_models
from mdi.hub.reference import parse
from mdi.model.families import FAMILIES
from tools.shapes import SHAPES

BYTES_PER_VALUE = 2  # what all of them are published with: bf16 or fp16


@pytest.mark.parametrize("name", known_models())
def test_each_name_is_one_that_can_be_typed_of_a_family_that_is_known(name: str) -> None:
    model = known_models()[name]
    assert model.family in FAMILIES
    reference = parse(name)
    assert (reference.repository, reference.revision, str(reference)) == (model.repository, model.revision, name)
    # Rounded, and files may hold a tied head twice; a slip of a digit or a unit is more.
    assert 0.9 < model.download_bytes / (BYTES_PER_VALUE * model.parameters) < 1.3
    assert name == name.lower()


@pytest.mark.parametrize(
    ("name", "shape"), [("llama-7b", "llama-7b"), ("llama-3.2-1b", "llama-3.2-1b"), ("tinyllama", "tinyllama-1.1b")]
)
def test_parameters_are_those_of_the_published_shapes(name: str, shape: str) -> None:
    assert known_models()[name].parameters == SHAPES[shape].parameters()


def test_the_models_of_the_readme_are_there() -> None:
    wanted = "llama-7b llama-2-7b-chat llama-3.1-8b llama-3.2-1b llama-3.2-3b tinyllama mistral-7b qwen2.5-0.5b qwen2.5-14b "
    wanted += "qwen3-0.6b qwen3-30b-a3b gemma-2-2b gemma-3-1b phi-3-mini phi-4 smollm2-135m smollm3-3b mixtral-8x7b"
    assert set(wanted.split()) <= set(known_models())
    assert {model.gated for model in known_models().values() if model.repository.startswith(("meta-llama/", "google/"))} == {
        True
    }
    assert known_models()["tinyllama"].download_bytes == round(2.2 * GB)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("lama-7b", "llama-7b"), ("tinylama", "tinyllama"), ("qwen3-30b", "qwen3-30b-a3b"), ("MISTRAL", "mistral-7b")],
)
def test_a_slip_finds_the_name_that_was_meant(typed: str, meant: str) -> None:
    assert meant in close_names(typed)


def test_what_is_like_no_name_finds_none() -> None:
    assert close_names("zzzzzz") == []
    assert close_names("") == []
