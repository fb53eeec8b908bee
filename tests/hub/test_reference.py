from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import ModelError
from mdi.hub.reference import Reference, is_plain_path, looks_like_path, parse


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("org/name", Reference("org/name")),
        ("org/name@v1.0", Reference("org/name", "v1.0")),
        ("org/name@refs/pr/3", Reference("org/name", "refs/pr/3")),
        ("org/name:model-Q4_K_M.gguf", Reference("org/name", file="model-Q4_K_M.gguf")),
        ("org/name@v1:sub/model.gguf", Reference("org/name", "v1", "sub/model.gguf")),
        ("TinyLlama", Reference("TinyLlama/TinyLlama-1.1B-Chat-v1.0", name="tinyllama")),
        ("tinyllama@abc", Reference("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "abc", name="tinyllama")),
    ],
)
def test_what_is_typed_has_a_meaning_and_can_be_typed_again(typed: str, meant: Reference) -> None:
    assert parse(typed) == meant
    assert parse(str(meant)) == meant


@pytest.mark.parametrize(
    "typed",
    ["", "/", "org/", "/name", "a/b/c", "org/name@", "org/name:", "org/na me", "org/..", "org/a--b", "x/y:../z.gguf", "x/y:/z.gguf",
     "x/y@../../main", "x/y@-", "a" * 500, "x/y:a:b", "org/name\n"],
)  # fmt: skip
def test_what_names_no_model_is_refused(typed: str) -> None:
    with pytest.raises(ModelError) as refused:
        parse(typed)
    assert refused.value.hint is not None
    assert "ORG/NAME" in refused.value.hint


def test_an_unknown_name_gets_close_ones_and_what_to_type() -> None:
    with pytest.raises(ModelError, match="no model 'lama-7b'") as refused:
        parse("lama-7b")
    assert "did you mean llama-7b" in str(refused.value.hint)
    assert "ORG/NAME" in str(refused.value.hint)


@given(st.text(max_size=40))
def test_whatever_is_typed_is_a_reference_or_a_sentence(typed: str) -> None:
    try:
        reference = parse(typed)
    except ModelError:
        return
    assert reference.file is None or is_plain_path(reference.file)
    assert ".." not in f"{reference.repository} {reference.revision}"


@pytest.mark.parametrize("typed", ["./x", "~/x", "/x", "..", "C:\\x", "model.gguf", "sub/model.gguf"])
def test_paths_are_told_from_names(typed: str) -> None:
    assert looks_like_path(typed)


@pytest.mark.parametrize("typed", ["org/name:model.gguf", "tinyllama", "org/name"])
def test_names_are_told_from_paths(typed: str) -> None:
    assert not looks_like_path(typed)
