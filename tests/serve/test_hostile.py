"""Requests that no well-meaning client sends: each is refused by a sentence, and the next one is answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdi.serve import protocol
from mdi.serve.body import MAX_BODY_BYTES, MAX_DEPTH, MAX_THROWN_BYTES
from mdi.serve.protocol import MAX_HEADER_BYTES
from tests.serve.servers import TIMEOUT_S, Running, raw_post

HI: list[Any] = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def _still_answers(demo: Running) -> Iterator[None]:
    yield
    assert demo.post(CHAT, {"messages": HI, "max_tokens": 1}).status_code == 200
    demo.check_idle()


def send(server: Running, data: bytes) -> bytes:
    """All that comes back until the server closes."""
    with server.connect() as connection:
        connection.sendall(data)
        reply = b""
        while piece := connection.recv(1 << 16):
            reply += piece
        return reply


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b'{"temperature": NaN}', "not JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_what_is_no_usable_json_is_refused(demo: Running, body: bytes, says: str) -> None:
    reply = httpx2.post(demo.url + CHAT, content=body, timeout=TIMEOUT_S)
    assert reply.status_code == 400
    assert says in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"model": 5}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"seed": 1 << 64}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": "x" * 10_000}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, "logit_bias.1"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 1000}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tools": [{"type": "gun"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
    ],
)
def test_fields_of_wrong_types_and_values_are_named(demo: Running, fields: dict[str, Any], param: str) -> None:
    reply = demo.post(CHAT, {"messages": HI} | fields)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


@pytest.mark.parametrize("prompt", [None, 5, [], [[]], [1.5], [True], [-1], [10**6], ["a", 5], "", ["x"] * 1000, {"a": 1}])
def test_prompts_that_are_none_are_refused(demo: Running, prompt: object) -> None:
    reply = demo.post("/v1/completions", {"prompt": prompt})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("schema", [{"$ref": "#/nowhere"}, {"type": 5}, {"pattern": "(" * 500, "type": "string"}])
def test_schemas_that_cannot_be_used_are_refused(demo: Running, schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = demo.post(CHAT, {"messages": HI, "response_format": wanted})
    assert reply.status_code == 400, reply.text


def test_halves_of_characters_are_read_as_unknown_ones(demo: Running) -> None:
    body = b'{"messages": [{"role": "user", "content": "a\\ud800b"}], "max_tokens": 1}'
    assert httpx2.post(demo.url + CHAT, content=body, timeout=TIMEOUT_S).status_code == 200
    told = httpx2.post(demo.url + "/tokenize", content=b'{"prompt": "a\\ud800b"}', timeout=TIMEOUT_S).json()["tokens"]
    assert demo.post("/tokenize", {"prompt": "a\ufffdb"}).json()["tokens"] == told


def test_a_body_that_is_too_large_is_refused_before_it_is_read(demo: Running) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_THROWN_BYTES + 1}\r\n\r\n"
    reply = send(demo, head.encode())
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in reply


def test_a_body_that_is_a_little_too_large_is_told_so(demo: Running) -> None:
    reply = demo.post(CHAT, {"messages": [{"role": "user", "content": "x" * MAX_BODY_BYTES}]})
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"


def test_a_body_that_grows_too_large_is_refused(demo: Running) -> None:
    chunk = b"%x\r\n%s\r\n" % (1 << 16, b" " * (1 << 16))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with demo.connect() as connection:
        connection.sendall(head)
        sent = 0
        try:
            while sent <= MAX_THROWN_BYTES + (1 << 20):
                connection.sendall(chunk)
                sent += len(chunk)
        except ConnectionError:
            return  # it closed as soon as it was too much
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_in_json(demo: Running, data: bytes) -> None:
    reply = send(demo, data)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert "message" in json.loads(reply.partition(b"\r\n\r\n")[2])["error"]


def test_headers_that_are_too_large_are_refused_at_once_or_while_they_come(demo: Running) -> None:
    start = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: "
    whole = send(demo, start + b"x" * MAX_HEADER_BYTES + b"\r\n\r\n")
    assert whole.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))  # the latter if they came in several pieces
    assert send(demo, start + b"x" * MAX_HEADER_BYTES).startswith(b"HTTP/1.1 400 ")


def test_a_connection_that_never_asks_is_closed(demo: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", 0.2)
    assert send(demo, b"").startswith(b"HTTP/1.1 408 ")
    assert send(demo, b"GET /health HTTP/1.1\r\nHost: local").startswith(b"HTTP/1.1 408 ")
    with demo.connect() as connection:
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        told = b""
        while not told.endswith(b"}"):
            told += connection.recv(1 << 16)
        assert told.startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /ver")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408 ")


def test_more_connections_than_there_may_be_are_refused(demo: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 3)
    held = [demo.connect() for _ in range(3)]
    try:
        with demo.connect() as further:
            assert further.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
    finally:
        for connection in held:
            connection.close()


def test_a_body_that_never_comes_is_given_up(demo: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdi.serve.body.BODY_TIMEOUT_S", 0.2)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"
    assert send(demo, head.encode()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("header", [{"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}])
def test_pages_of_others_are_refused_on_every_route(demo: Running, header: dict[str, str]) -> None:
    for path in ("/health", "/metrics", "/v1/models", "/nowhere"):
        assert demo.get(path, **header).status_code == 403
    assert demo.post(CHAT, {"messages": HI}, **header).status_code == 403


def test_routes_and_methods_that_do_not_exist_are_told_in_json(demo: Running) -> None:
    assert demo.get("/nowhere").status_code == 404
    assert demo.get("/v1/chat/completions/").status_code == 404
    wrong = demo.get(CHAT)
    assert wrong.status_code == 405
    assert "POST" in wrong.headers["allow"]
    for reply in (demo.get("/nowhere"), wrong):
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_a_request_id_comes_back_if_it_is_harmless(demo: Running) -> None:
    assert demo.get("/version", **{"x-request-id": "my-id_1"}).headers["x-request-id"] == "my-id_1"
    for hostile in ("a b", "x" * 500, '"><script>'):
        assert demo.get("/version", **{"x-request-id": hostile}).headers["x-request-id"] != hostile


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["model", "temperature", "top_p", "n", "stop", "seed", "stream", "stream_options", "tools", "tool_choice", "logprobs",
     "response_format", "logit_bias", "structured_outputs", "chat_template_kwargs", "max_tokens", "messages", "prompt"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(NAMES, JSON, max_size=3), path=st.sampled_from([CHAT, "/v1/completions", "/tokenize", "/detokenize"])
)
def test_no_json_makes_the_server_fail(demo: Running, fields: dict[str, Any], path: str) -> None:
    reply = demo.post(path, {"messages": HI, "prompt": "hi", "max_tokens": 1} | fields)
    assert reply.status_code in (200, 400, 404), reply.text


def test_pipelined_requests_are_answered_in_order(demo: Running) -> None:
    asked = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    reply = send(demo, raw_post("/tokenize", {"prompt": "hi"}) + asked + last)
    assert reply.count(b"HTTP/1.1 200 ") == 3
