from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from mdi.cluster.home import Home
from mdi.cluster.key import ClusterKey
from mdi.errors import UserError
from mdi.node.prepare import COMPLAINT_NAME, KEY_NAME, SETTINGS_NAME, found_cluster, keep_key, take_over
from mdi.node.settings import read_settings

SETTINGS = b'name = "attic"\r\nkey_file = "house.key"\r\n'


@dataclass(frozen=True)
class Card:
    """A boot partition and the system's directory of settings."""

    boot: Path
    etc: Path

    @property
    def boot_file(self) -> Path:
        return self.boot / "mdi.toml"

    @property
    def key_on_card(self) -> Path:
        return self.boot / "house.key"

    @property
    def complaint(self) -> Path:
        return self.boot / COMPLAINT_NAME

    def kept(self) -> ClusterKey:
        return ClusterKey.parse((self.etc / KEY_NAME).read_text())

    def boots(self) -> bool:
        return take_over(self.boot_file, self.etc, None)


@pytest.fixture
def card(tmp_path: Path) -> Card:
    card = Card(tmp_path / "boot", tmp_path / "etc")
    card.boot.mkdir()
    card.etc.mkdir()
    card.boot_file.write_bytes(SETTINGS)
    return card


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_key_moves_off_the_card_at_the_first_boot_and_stays_for_the_next(card: Card) -> None:
    key = ClusterKey.generate()
    card.key_on_card.write_text(f"\ufeff{key.text.upper()}\r\n", encoding="utf-8")
    card.key_on_card.chmod(0o755)  # as FAT shows it
    assert card.boots()
    assert card.kept() == key
    assert mode(card.etc / KEY_NAME) == 0o600
    assert not card.key_on_card.exists()
    assert read_settings(card.etc / SETTINGS_NAME).name == "attic"
    card.boot_file.write_bytes(SETTINGS.replace(b"attic", b"cellar"))
    assert not card.boots()
    assert card.kept() == key
    assert read_settings(card.etc / SETTINGS_NAME).name == "cellar"


def test_a_new_key_on_the_card_replaces_the_old_one(card: Card) -> None:
    keep_key(ClusterKey.generate(), card.etc, None)
    key = ClusterKey.generate()
    card.key_on_card.write_text(key.text)
    assert card.boots()
    assert card.kept() == key


def test_without_any_key_the_device_founds_no_cluster_and_the_card_tells_why(card: Card) -> None:
    with pytest.raises(UserError, match="no key that is there"):
        card.boots()
    assert list(card.etc.iterdir()) == []
    assert "has none yet" in card.complaint.read_text()


@pytest.mark.parametrize("content", [b"not a key", b"\xff\xfe", b"", b"x" * (1 << 20)])
def test_a_wrong_key_stays_on_the_card_and_the_old_one_is_kept(card: Card, content: bytes) -> None:
    old = ClusterKey.generate()
    keep_key(old, card.etc, None)
    card.key_on_card.write_bytes(content)
    with pytest.raises(UserError, match=r"house\.key"):
        card.boots()
    assert card.key_on_card.exists()
    assert card.kept() == old
    assert not (card.etc / SETTINGS_NAME).exists()


def test_the_complaint_goes_when_its_reason_went(card: Card) -> None:
    keep_key(ClusterKey.generate(), card.etc, None)
    card.boot_file.write_text("threads = 0")
    with pytest.raises(UserError, match="leaves nobody to compute"):
        card.boots()
    assert card.complaint.exists()
    card.boot_file.write_text("threads = 1")
    card.boots()
    assert not card.complaint.exists()


def test_a_new_cluster_begins_only_where_no_key_is(tmp_path: Path) -> None:
    key = found_cluster(tmp_path, None)
    assert key is not None
    assert found_cluster(tmp_path, None) is None
    assert ClusterKey.load(Home(tmp_path)) == key


def test_a_group_may_read_the_key_and_nobody_else(tmp_path: Path) -> None:
    found_cluster(tmp_path, os.getgid())
    assert mode(tmp_path / KEY_NAME) == 0o640
    assert found_cluster(tmp_path, os.getgid()) is None  # read again by its owner, although ssh would complain
