from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from mdi.hub.cache import HubCache
from mdi.hub.client import Hub
from mdi.hub.pull import DownloadProgress, pull
from mdi.hub.reference import parse
from tests.hub_server import HubServer, hub_server
from tools.make_checkpoint import make_checkpoint
from tools.shapes import SHAPES

NAME = "house/tiny"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real checkpoint in several files with an index, and beside it what repositories hold besides."""
    made = make_checkpoint(SHAPES["tiny"], tmp_path_factory.mktemp("hub") / "tiny", shard_bytes=40_000)
    assert made.shards > 2
    for junk in ("consolidated.safetensors", "pytorch_model-00001-of-00001.bin", "original/consolidated.00.pth", "README.md"):
        path = made.path / junk
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"junk" * 1000)
    return made.path


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server
        close_session()


@pytest.fixture
def published(server: HubServer, checkpoint: Path) -> HubServer:
    server.publish(NAME, checkpoint)
    return server


@pytest.fixture
def cache(tmp_path: Path) -> HubCache:
    return HubCache(tmp_path / "hub")


class Puller:
    """Pulls without ever sleeping: pauses are written down."""

    def __init__(self, server: HubServer, cache: HubCache) -> None:
        self.server, self.cache = server, cache
        self.token: str | None = None
        self.pauses: list[float] = []
        self.progress: list[DownloadProgress] = []

    def __call__(self, typed: str = NAME, *, weights: bool = True, verify: bool = False) -> Path:
        self.pauses.clear()
        self.progress.clear()
        hub = Hub(self.server.endpoint, self.token)
        return pull(
            parse(typed), hub, self.cache, self.progress.append, weights=weights, verify=verify, sleep=self.pauses.append
        )


@pytest.fixture
def puller(published: HubServer, cache: HubCache) -> Puller:
    return Puller(published, cache)
