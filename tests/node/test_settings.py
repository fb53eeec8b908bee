from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import UserError
from mdi.node.settings import MAX_FILE_BYTES, MAX_PEERS, NodeSettings, parse_settings, read_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
WHOLE = """
name = "attic"
key_file = "cluster.key"
max_memory = "2GiB"
threads = 3
peers = ["desk.local", "[fe80::1]:52701"]
"""
MEANT = NodeSettings("attic", "cluster.key", 2 << 30, 3, ("desk.local", "[fe80::1]:52701"))


@pytest.mark.parametrize("written", [WHOLE, WHOLE.replace("\n", "\r\n"), "\ufeff" + WHOLE], ids=["unix", "crlf", "bom"])
def test_the_file_says_the_same_from_whatever_editor(tmp_path: Path, written: str) -> None:
    path = tmp_path / "mdi.toml"
    path.write_bytes(written.encode())
    assert read_settings(path) == MEANT


def test_an_empty_file_leaves_everything_to_the_node() -> None:
    assert parse_settings(b"", "mdi.toml") == NodeSettings()


def test_the_example_changes_nothing_until_its_lines_are_uncommented() -> None:
    example = (DEPLOY / "pi" / "mdi.toml").read_text()
    assert parse_settings(example.encode(), "mdi.toml") == NodeSettings()
    lines = [line.removeprefix("# ") for line in example.splitlines() if line.startswith("# ") and " = " in line]
    assert parse_settings("\n".join(lines).encode(), "mdi.toml").name == "attic"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("name = 3", "name must be a text"),
        ('name = ""', "name must be a text of 1 to"),
        (f'name = "{"x" * 41}"', "name must be a text of 1 to"),
        ('name = "a\\u001b[31m"', "name must be a text of 1 to"),
        ('key_file = "../../etc/shadow"', "is not the name of a file beside"),
        ('key_file = "/etc/shadow"', "is not the name of a file beside"),
        ('key_file = ".."', "is not the name of a file beside"),
        ('key_file = ""', "is not the name of a file beside"),
        ('key_file = "a\\u0000"', "is not the name of a file beside"),
        ("max_memory = 2", "max_memory must be a text"),
        ('max_memory = "lots"', "not an amount of memory"),
        ("threads = true", "threads must be a whole number"),
        ("threads = 2.5", "threads must be a whole number"),
        ("threads = 0", "leaves nobody to compute"),
        ("threads = 99999999999", "is more than"),
        ('peers = "desk"', "peers must be a list"),
        ("peers = [1]", "peers must be a list"),
        ('peers = ["-"]', "not a host name"),
        ('peers = ["a:99999"]', "not a port"),
        (f"peers = {['a'] * (MAX_PEERS + 1)}", "are more than"),
        ('nmae = "attic"', "'nmae' is not known"),
        ("name = attic", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
    ],
)
def test_what_cannot_be_is_refused_by_file_and_key(line: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as refused:
        parse_settings(line.encode(), "mdi.toml")
    assert str(refused.value).startswith("mdi.toml")
    assert refused.value.hint


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_bytes_are_settings_or_a_user_error(data: bytes) -> None:
    try:
        settings = parse_settings(data, "mdi.toml")
    except UserError:
        return
    assert settings == NodeSettings() or tomllib.loads(data.decode("utf-8-sig"))


def test_what_is_no_small_file_is_not_read(tmp_path: Path) -> None:
    large, pipe = tmp_path / "large", tmp_path / "pipe"
    large.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    os.mkfifo(pipe)
    for path, complaint in ((large, "larger than"), (pipe, "no file"), (tmp_path / "gone", "not there"), (tmp_path, "no file")):
        with pytest.raises(UserError, match=complaint):
            read_settings(path)
