from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from mdi.cli.progress import quiet
from mdi.cluster.home import Home
from mdi.pipeline.api import StarterOptions
from mdi.pipeline.starter import Starter, open_starter
from tools.make_checkpoint import make_checkpoint
from tools.shapes import SHAPES

Opening = Callable[[], AbstractAsyncContextManager[Starter]]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights and a chat template: it babbles until it is stopped."""
    return make_checkpoint(SHAPES["tiny"], tmp_path_factory.mktemp("model") / "tiny").path


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home")).create()


@pytest.fixture
def opening(model: Path, home: Home) -> Opening:
    """Brings up the real pipeline on this device alone."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Starter]:
        async with open_starter(StarterOptions(model=str(model), discovery=False, ctx=512), home, quiet) as starter:
            yield starter

    return opened
