"""One name for several nodes, as a headless service of Kubernetes gives it."""

from __future__ import annotations

import socket

import pytest

from mdi.errors import LinkError
from mdi.pipeline.survey import list_nodes
from tests.cluster.conftest import House, house  # noqa: F401 (fixture)

SERVICE = "mdi-nodes.mdi.svc"


def resolve_as(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *rest: object, **more: object) -> object:
        if host != SERVICE:
            return real(host, port, *rest, **more)  # type: ignore[arg-type]
        return [answer for address in addresses for answer in real(address, port, *rest, **more)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


async def test_every_node_behind_the_name_is_found(house: House, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    one = house.start("one")
    port = str(one.node.port)
    house.start("two", "--host", "127.0.0.2", "--port", port)
    resolve_as(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.3", "::1")  # nobody listens on the third
    found = await list_nodes(house.home("looking"), (f"{SERVICE}:{port}",), discovery=False, wait_s=0.1)
    assert {(row.name, row.address) for row in found.rows} == {("one", f"127.0.0.1:{port}"), ("two", f"127.0.0.2:{port}")}


async def test_a_name_behind_which_nobody_answers_is_an_error(house: House, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    with socket.create_server(("127.0.0.4", 0)) as taken:
        port = taken.getsockname()[1]
    resolve_as(monkeypatch, "127.0.0.4", "127.0.0.5")
    with pytest.raises(LinkError, match=rf"127\.0\.0\.[45]:{port} cannot be reached"):
        await list_nodes(house.home("looking"), (f"{SERVICE}:{port}",), discovery=False, wait_s=0.1)
