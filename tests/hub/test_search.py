from __future__ import annotations

from typing import Any

import pytest

from mdi.hub.client import Hub
from mdi.hub.search import runnable
from tests.hub_server import HubServer

LLAMA = {
    "id": "a/llama",
    "downloads": 9,
    "gated": "manual",
    "config": {"architectures": ["LlamaForCausalLM"]},
    "safetensors": {"total": 7},
}
GGUF = {"id": "a/llama-GGUF", "gated": False, "gguf": {"architecture": "llama", "total": 5}}


def test_what_can_be_run_is_found_with_its_family_and_size(server: HubServer) -> None:
    server.found = [LLAMA, GGUF]
    llama, gguf = runnable(Hub(server.endpoint).search("llama", 10))
    assert (llama.repository, llama.family, llama.gated, llama.parameters, llama.downloads) == (
        "a/llama", "LlamaForCausalLM", True, 7, 9,
    )  # fmt: skip
    assert (gguf.repository, gguf.family, gguf.gated, gguf.parameters) == ("a/llama-GGUF", "GGUF, llama", False, 5)


@pytest.mark.parametrize(
    "entry",
    [
        {"id": "a/b"},
        {"id": "a/b", "config": {"architectures": ["MambaForCausalLM"]}, "safetensors": {"total": 7}},
        {"id": "a/b", "config": {"architectures": ["LlamaForCausalLM"]}},  # an adapter, or pickled weights
        {"id": "a/b", "config": {"architectures": []}, "safetensors": {}},
        {"id": "a/b", "config": {"architectures": 3}, "safetensors": {}},
        {"id": "a/b", "gguf": {"architecture": "mamba"}},
        {"id": "a/b", "gguf": {"architecture": ["llama"]}},
        {"id": "a/b", "config": [], "gguf": "x"},
    ],
)
def test_what_cannot_be_run_is_left_out(entry: dict[str, Any]) -> None:
    assert list(runnable([entry])) == []


def test_answers_of_another_shape_are_left_out(server: HubServer) -> None:
    server.found = ["x", {"id": 3}, LLAMA]  # type: ignore[list-item]
    assert [entry["id"] for entry in Hub(server.endpoint).search("x", 10)] == ["a/llama"]
