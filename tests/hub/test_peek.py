from __future__ import annotations

from pathlib import Path

import pytest

from mdi.errors import HubError, ModelError
from mdi.hub import peek
from mdi.hub.client import Hub
from mdi.hub.peek import peeked
from mdi.hub.reference import parse
from mdi.model.quantise import Quant
from mdi.model.source import resolve
from mdi.pipeline.inspection import inspect
from tests.hub_server import Fault, HubServer

from .conftest import NAME

SHARD = "model-00001-of-00009.safetensors"


def look(server: HubServer, typed: str = NAME) -> dict[str, object]:
    with peeked(parse(typed), Hub(server.endpoint), lambda _: None, lambda _: None) as directory:
        return inspect(resolve(str(directory)), Quant.AUTO).to_json()


@pytest.mark.parametrize("guess", [16, 256 << 10], ids=["headers are longer", "headers are shorter"])
def test_headers_tell_all_that_the_files_do(
    published: HubServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, guess: int
) -> None:
    monkeypatch.setattr(peek, "GUESSED_HEADER_BYTES", guess)
    assert look(published) == inspect(resolve(str(checkpoint)), Quant.AUTO).to_json()
    if guess == 16:
        weights = sum(path.stat().st_size for path in checkpoint.glob("model-*.safetensors"))
        assert sum(asked.sent for asked in published.asked if asked.host == "cdn") < weights / 20


def test_a_server_without_ranges_is_not_read_to_its_end(published: HubServer, checkpoint: Path) -> None:
    published.fail(SHARD, Fault(ignore_range=True))
    assert look(published) == inspect(resolve(str(checkpoint)), Quant.AUTO).to_json()


def test_what_is_no_safetensors_file_is_refused(published: HubServer, checkpoint: Path) -> None:
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.is_file()}
    published.publish("house/bad", files | {SHARD: b"\xff" * 100})
    with pytest.raises(HubError, match="not a safetensors file"):
        look(published, "house/bad")


def test_a_gguf_file_has_to_be_here(published: HubServer) -> None:
    published.publish("house/gguf", {"a.gguf": b"GGUF"})
    with pytest.raises(ModelError, match="is not on this device"):
        look(published, "house/gguf")
