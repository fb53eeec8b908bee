from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.cluster.home import Home
from mdi.cluster.key import ClusterKey
from mdi.errors import UserError

keys = st.binary(min_size=16, max_size=16).map(ClusterKey)
SYMBOLS = "0123456789abcdefghjkmnpqrstvwxyz"


@settings(deadline=None)
@given(keys)
def test_what_is_printed_can_be_typed(key: ClusterKey) -> None:
    assert ClusterKey.parse(key.text) == key
    assert ClusterKey.parse(f"  {key.text.upper().replace('-', ' ')}\n") == key
    assert ClusterKey.parse(key.text.replace("-", "").replace("0", "O").replace("1", "l")) == key


def test_the_form_of_a_key() -> None:
    assert ClusterKey(bytes(range(16))).text == "000g-40r4-0m30-e209-185g-r38e-1y4e-5kpe"


@settings(deadline=None, max_examples=20)  # each tries all 32 places
@given(keys)
def test_every_wrong_character_is_noticed(key: ClusterKey) -> None:
    text = key.text.replace("-", "")
    for i, right in enumerate(text):
        for wrong in set(SYMBOLS + "u!é") - {right}:
            with pytest.raises(UserError, match="typing error"):
                ClusterKey.parse(text[:i] + wrong + text[i + 1 :])


@settings(deadline=None)
@given(keys)
def test_swapped_lost_and_doubled_characters_are_noticed(key: ClusterKey) -> None:
    text = key.text.replace("-", "")
    for i in range(len(text)):
        wrong = [text[:i] + text[i + 1 :], text[:i] + text[i] + text[i:]]
        if i and text[i] != text[i - 1]:
            wrong.append(text[: i - 1] + text[i] + text[i - 1] + text[i + 1 :])
        for typed in wrong:
            with pytest.raises(UserError):
                ClusterKey.parse(typed)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_key_or_a_user_error(text: str) -> None:
    try:
        ClusterKey.parse(text)
    except UserError as error:
        assert error.hint  # noqa: PT017


@settings(deadline=None)
@given(keys)
def test_the_fingerprint_is_public_and_the_secret_is_not_shown(key: ClusterKey) -> None:
    assert key.fingerprint == ClusterKey(key.secret).fingerprint
    assert len(key.fingerprint) == 8
    assert key.fingerprint not in key.secret.hex()
    assert key.secret.hex() not in repr(key)
    assert key.text not in repr(key)
    assert repr(key.secret) not in repr(key)
    assert key.derive("a", 16) != key.derive("b", 16)


def test_generated_keys_differ() -> None:
    assert len({ClusterKey.generate().secret for _ in range(10)}) == 10


def test_a_key_is_kept(home: Home) -> None:
    with pytest.raises(UserError, match="no cluster key"):
        ClusterKey.load(home)
    key, created = ClusterKey.load_or_create(home)
    assert created
    assert ClusterKey.load(home) == key
    assert ClusterKey.load_or_create(home) == (key, False)
    key.save(home)
    other = ClusterKey.generate()
    with pytest.raises(UserError, match="another cluster") as refused:
        other.save(home)
    assert key.text not in f"{refused.value} {refused.value.hint}"
    assert ClusterKey.load(home) == key
    other.save(home, replace=True)
    assert ClusterKey.load(home) == other


def test_a_key_file_that_is_named_must_exist(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "credential").create()
    with pytest.raises(UserError, match="no cluster key"):
        ClusterKey.load_or_create(home)
    ClusterKey.generate().save(home)
    assert ClusterKey.load_or_create(home) == (ClusterKey.load(home), False)


def test_a_damaged_key_file_is_named_but_not_shown(home: Home) -> None:
    key = ClusterKey.generate()
    key.save(home)
    for content in (b"\xff\xfe", key.text[:-1].encode(), b""):
        home.key_path.write_bytes(content)
        with pytest.raises(UserError, match=r"cluster\.key") as refused:
            ClusterKey.load(home)
        assert key.text[:9] not in str(refused.value)
