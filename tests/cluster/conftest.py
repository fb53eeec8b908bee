"""A house of real daemons: processes of their own, real TLS, real engines, on loopback."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mdi.cluster.home import Home, RunningNode
from mdi.cluster.key import ClusterKey
from tests.checkpoints import make_checkpoint
from tests.model.tokenizers_made import make_byte_level

START_TIMEOUT_S = 60.0
N_BLOCKS = 5


@dataclass
class Daemon:
    home: Home
    process: subprocess.Popen[str]
    node: RunningNode

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.node.port}"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        """Continues it first: a stopped process does not hear SIGTERM."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


class House:
    """Starts daemons of one cluster; ends them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.key = ClusterKey.generate()
        self.daemons: list[Daemon] = []

    def home(self, name: str, key: ClusterKey | None = None) -> Home:
        home = Home(self._directory / name).create()
        (key or self.key).save(home)
        return home

    def start(self, name: str, *arguments: str, key: ClusterKey | None = None, before: str = "") -> Daemon:
        """`before`: Python that the daemon's process runs first."""
        home = self.home(name, key)
        command = [sys.executable, "-c", f"{before}\nfrom mdi.cli.app import main\nmain()", "node", "start", "--name", name]
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--threads", "1", "--no-discovery", *arguments],
            env=os.environ | {"MDI_HOME": str(home.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            assert selector.select(START_TIMEOUT_S), f"{name} did not start"
        process.stdout.readline()
        node = home.running()
        assert node is not None, f"{name} did not start"
        self.daemons.append(Daemon(home, process, node))
        return self.daemons[-1]

    def end(self) -> None:
        for daemon in self.daemons:
            daemon.end()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "house")
    yield house
    house.end()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a tokenizer."""
    directory = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=N_BLOCKS)
    make_byte_level(directory)
    return directory
