"""What goes wrong on the way, against a real server: nothing half-written ever counts as whole, and nothing comes twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mdi.errors import HubError, MdiError, ModelError, UserError
from mdi.hub import pull as pulling
from mdi.hub.cache import HubCache
from mdi.hub.client import Hub
from mdi.hub.pace import FIRST_TRIES, LONGEST_ASKED_PAUSE_S, TRIES
from mdi.hub.pull import pull
from mdi.hub.reference import parse
from tests.hub_server import OWNER, STRANGER, Fault, HubServer

from .conftest import NAME, Puller

SHARD = "model-00001-of-00009.safetensors"
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0


@pytest.fixture
def shard(checkpoint: Path) -> bytes:
    paths = sorted(checkpoint.glob("model-00001-of-*.safetensors"))
    assert [path.name for path in paths] == [SHARD]
    return paths[0].read_bytes()


def refused(puller: Puller, kind: type[MdiError], said: str) -> MdiError:
    """The pull fails with one sentence, and the model does not count as here."""
    with pytest.raises(kind, match=said) as raised:
        puller()
    assert puller.cache.find(parse(NAME)) is None
    return raised.value


def whole(puller: Puller, path: Path, checkpoint: Path) -> bool:
    return puller.cache.find(parse(NAME)) == path and all(
        file.read_bytes() == (checkpoint / file.name).read_bytes() for file in path.iterdir()
    )


def test_a_cut_goes_on_at_the_byte_where_it_was(puller: Puller, checkpoint: Path, shard: bytes) -> None:
    puller.server.fail(SHARD, Fault(cut_after=1000), Fault(cut_after=500))
    assert whole(puller, puller(), checkpoint)
    asked = puller.server.requests(SHARD)
    assert [row.range for row in asked] == [None, "bytes=1000-", "bytes=1500-"]
    assert sum(row.sent for row in asked) == len(shard)
    assert puller.pauses == [1.0, 1.0]  # what came in between makes the count of failures begin again
    assert "next try in 1 s" in str(next(row.waiting for row in puller.progress if row.waiting))


def test_the_next_start_goes_on_where_the_last_gave_up(puller: Puller, checkpoint: Path, shard: bytes) -> None:
    puller.server.fail(SHARD, Fault(cut_after=1000), *(Fault(status=503) for _ in range(TRIES)))
    refused(puller, HubError, "503")
    assert puller.pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    puller.server.asked.clear()
    assert whole(puller, puller(), checkpoint)
    assert [(row.range, row.sent) for row in puller.server.requests(SHARD)] == [("bytes=1000-", len(shard) - 1000)]


def test_a_server_that_ignores_ranges_sends_all_of_it_again(puller: Puller, checkpoint: Path, shard: bytes) -> None:
    puller.server.fail(SHARD, Fault(cut_after=1000), Fault(ignore_range=True))
    assert whole(puller, puller(), checkpoint)
    assert [row.sent for row in puller.server.requests(SHARD)] == [1000, len(shard)]
    assert puller.progress[-1].bytes_done == puller.progress[-1].n_bytes


@pytest.mark.parametrize(
    "leavings", [b"\0" * 1000, b"", b"\0" * (1 << 20)], ids=["of something else", "empty", "longer than the file"]
)
def test_what_another_program_left_is_no_trap(puller: Puller, checkpoint: Path, leavings: bytes) -> None:
    listing = Hub(puller.server.endpoint).listing(parse(NAME))
    partial = puller.cache.partial(NAME, listing.files[SHARD])
    partial.parent.mkdir(parents=True)
    partial.write_bytes(leavings)
    assert whole(puller, puller(), checkpoint)


def test_wrong_content_is_asked_for_once_more_and_then_refused(puller: Puller, checkpoint: Path) -> None:
    puller.server.fail(SHARD, Fault(alter=lambda data: b"\0" + data[1:]))
    assert whole(puller, puller(), checkpoint)
    assert len(puller.server.requests(SHARD)) == 2


def test_content_that_stays_wrong_never_gets_its_name(puller: Puller) -> None:
    puller.server.fail(SHARD, *(Fault(alter=lambda data: data[:-1] + b"\1") for _ in range(2)))
    refused(puller, HubError, "another content than the hub lists, 2 times")
    listing = Hub(puller.server.endpoint).listing(parse(NAME))
    assert not puller.cache.blob(NAME, listing.files[SHARD]).exists()
    assert not (puller.cache.snapshot(NAME, listing.commit) / SHARD).exists()


@pytest.mark.parametrize("alter", [lambda data: data[:-7], lambda data: data + b"more"], ids=["short", "long"])
def test_a_size_other_than_listed_is_refused_at_once(puller: Puller, alter: Callable[[bytes], bytes]) -> None:
    puller.server.fail(SHARD, Fault(alter=alter))
    refused(puller, HubError, "bytes by the hub's list")
    assert len(puller.server.requests(SHARD)) == 1


def test_an_answer_that_never_ends_fills_no_disk(puller: Puller, shard: bytes) -> None:
    puller.server.fail(SHARD, Fault(unsized=True, alter=lambda data: data + b"x" * (1 << 20)))
    refused(puller, HubError, "more bytes came")
    listing = Hub(puller.server.endpoint).listing(parse(NAME))
    assert puller.cache.partial(NAME, listing.files[SHARD]).stat().st_size <= len(shard)


def test_an_answer_without_a_length_that_ends_early_goes_on(puller: Puller, checkpoint: Path, shard: bytes) -> None:
    puller.server.fail(SHARD, Fault(unsized=True, cut_after=1000))
    assert whole(puller, puller(), checkpoint)
    assert [row.sent for row in puller.server.requests(SHARD)] == [1000, len(shard) - 1000]


def test_a_range_that_was_not_asked_for_is_refused(puller: Puller) -> None:
    puller.server.fail(SHARD, Fault(cut_after=1000), Fault(content_range="bytes 999-4000/4001"))
    refused(puller, HubError, "another part")


def test_a_config_with_another_content_is_refused(puller: Puller) -> None:
    puller.server.fail("config.json", Fault(alter=lambda data: data.replace(b"4", b"5")))
    refused(puller, HubError, "config.json of house/tiny came with another content")


def test_the_hub_is_left_alone_for_as_long_as_it_asks(puller: Puller, checkpoint: Path) -> None:
    puller.server.fail("info", Fault(status=429, headers={"Retry-After": "7"}))
    puller.server.fail(SHARD, Fault(status=429, headers={"RateLimit": '"resolvers";r=0;t=55'}), Fault(status=500))
    assert whole(puller, puller(), checkpoint)
    assert puller.pauses == [7.0, 55.0, 2.0]


def test_failures_count_only_in_a_row(puller: Puller, checkpoint: Path) -> None:
    for asked in ("info", "config.json", "model.safetensors.index.json"):
        puller.server.fail(asked, *(Fault(status=503) for _ in range(FIRST_TRIES - 1)))
    assert whole(puller, puller(), checkpoint)
    assert puller.pauses == [1.0, 2.0] * 3


def test_an_hour_is_too_long_to_wait(puller: Puller) -> None:
    puller.server.fail("info", Fault(status=429, headers={"Retry-After": "3600"}))
    error = refused(puller, HubError, "asks to be left alone for 60 minutes")
    assert "HF_TOKEN" in str(error.hint)
    assert puller.pauses == []
    assert LONGEST_ASKED_PAUSE_S < 3600


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_hub_that_fails_is_given_up_within_seconds(puller: Puller, status: int) -> None:
    puller.server.fail("info", *(Fault(status=status) for _ in range(FIRST_TRIES)))
    refused(puller, HubError, f"the hub answers {status}")
    assert sum(puller.pauses) < 10


def test_a_hub_that_is_not_there_is_a_sentence(cache: HubCache) -> None:
    pauses: list[float] = []
    with pytest.raises(HubError, match=r"127\.0\.0\.1:9 cannot be reached") as raised:
        pull(parse(NAME), Hub("http://127.0.0.1:9"), cache, lambda _: None, sleep=pauses.append)
    assert "HF_ENDPOINT" in str(raised.value.hint)
    assert len(pauses) == FIRST_TRIES - 1


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_no_address_is_a_sentence(cache: HubCache, endpoint: str) -> None:
    with pytest.raises(UserError, match="is no address of a model hub"):
        pull(parse(NAME), Hub(endpoint), cache, lambda _: None)


def test_a_gated_model_names_the_page_to_visit(puller: Puller, checkpoint: Path) -> None:
    puller.server.gated.add(NAME)
    page = f"{puller.server.endpoint}/{NAME}"
    without = refused(puller, ModelError, "is gated: its owner")
    assert page in str(without.hint)
    assert "HF_TOKEN" in str(without.hint)
    puller.token = STRANGER
    assert page in str(refused(puller, ModelError, "your account has no access to it").hint)
    puller.token = OWNER
    assert whole(puller, puller(), checkpoint)


def test_a_token_goes_to_the_hub_and_to_nobody_else(puller: Puller) -> None:
    puller.token = OWNER
    puller()
    told = {asked.host: asked.authorised for asked in puller.server.asked}
    assert told == {"hub": True, "cdn": False}


def test_a_wrong_token_is_said_to_be_one(puller: Puller) -> None:
    puller.token = "hf_typo"
    assert "/settings/tokens" in str(refused(puller, UserError, "does not know your token").hint)


def test_a_model_that_does_not_exist_is_a_sentence(puller: Puller) -> None:
    with pytest.raises(ModelError, match="has no model house/nothing, or it is private") as raised:
        puller("house/nothing")
    assert "mdi models search nothing" in str(raised.value.hint)


def test_a_file_that_is_gone_is_a_sentence(puller: Puller) -> None:
    puller.server.fail(SHARD, Fault(status=404, headers={"X-Error-Code": "EntryNotFound"}))
    refused(puller, HubError, "no longer has a file")


def test_two_programs_do_not_write_one_file(puller: Puller, checkpoint: Path) -> None:
    listing = Hub(puller.server.endpoint).listing(parse(NAME))
    with puller.cache.lock(NAME, listing.files[SHARD]):
        refused(puller, UserError, "another program is downloading")
    assert whole(puller, puller(), checkpoint)


def test_verify_finds_a_damaged_file_and_brings_it_again(puller: Puller, checkpoint: Path, shard: bytes) -> None:
    path = puller()
    (path / SHARD).resolve().write_bytes(b"\0" + shard[1:])
    assert not whole(puller, puller(), checkpoint)
    puller.server.asked.clear()
    assert whole(puller, puller(verify=True), checkpoint)
    assert [row.sent for row in puller.server.requests(SHARD)] == [len(shard)]


def test_a_file_that_was_cut_short_comes_again_without_being_asked(puller: Puller, checkpoint: Path, shard: bytes) -> None:
    path = puller()
    (path / SHARD).resolve().write_bytes(shard[:100])
    assert whole(puller, puller(), checkpoint)


# Disks


def test_room_is_checked_before_the_first_byte(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=pulling.MARGIN_BYTES + 300_000))
    error = refused(puller, UserError, "needs 0.00 GB more, and some 0.27 GB to spare")
    assert "mdi models rm" in str(error.hint)
    assert not puller.cache.root.exists()
    assert not [asked for asked in puller.server.asked if asked.host == "cdn"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, three times as much as the model takes."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "mdi-test", path]).returncode:
        pytest.skip("only root can mount a file system")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_disk_that_fills_up_meanwhile_is_a_sentence_and_resumes(
    published: HubServer, small_disk: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "MARGIN_BYTES", 0)
    puller = Puller(published, HubCache(small_disk / "hub"))
    ballast = small_disk / "ballast"

    def fill() -> None:
        with suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(b"\0" * 4096)
                file.flush()

    puller.server.fail(SHARD, Fault(before=fill))
    error = refused(puller, UserError, "is full")
    assert "what is there already is kept" in str(error.hint)
    ballast.unlink()
    assert whole(puller, puller(), checkpoint)
    ballast.write_bytes(b"\0" * (1 << 19))
    shutil.rmtree(puller.cache.root)
    monkeypatch.setattr(pulling, "MARGIN_BYTES", 1 << 20)
    refused(puller, UserError, "free")


# The end of the process, at any moment

CHILD = """
import sys
from pathlib import Path
from mdi.hub.cache import HubCache
from mdi.hub.client import Hub
from mdi.hub.pull import pull
from mdi.hub.reference import parse
pull(parse(sys.argv[1]), Hub(sys.argv[2]), HubCache(Path(sys.argv[3])), lambda progress: None)
"""


@pytest.mark.parametrize(("number", "sent"), [(signal.SIGINT, 0), (signal.SIGTERM, 1), (signal.SIGKILL, 20_000)])
def test_a_killed_download_resumes(puller: Puller, checkpoint: Path, shard: bytes, number: int, sent: int) -> None:
    """The server holds the answer back while the process is killed: all that it got is `sent` bytes."""
    children: list[subprocess.Popen[bytes]] = []
    gone = threading.Event()
    listing = Hub(puller.server.endpoint).listing(parse(NAME))
    partial = puller.cache.partial(NAME, listing.files[SHARD])

    def kill() -> None:
        assert partial.stat().st_size == sent
        children[0].send_signal(number)
        assert gone.wait(TIMEOUT_S)

    puller.server.fail(SHARD, *([Fault(cut_after=sent)] if sent else []), Fault(before=kill, silent=True))
    command = [sys.executable, "-c", CHILD, NAME, puller.server.endpoint, str(puller.cache.root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as child:
        children.append(child)
        child.communicate(timeout=TIMEOUT_S)
    gone.set()
    assert child.returncode != 0
    assert puller.cache.find(parse(NAME)) is None
    puller.server.asked.clear()
    assert whole(puller, puller(), checkpoint)
    assert [(row.range, row.sent) for row in puller.server.requests(SHARD)] == [
        (f"bytes={sent}-" if sent else None, len(shard) - sent)
    ]
