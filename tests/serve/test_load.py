"""Many clients at once, and clients that do not behave: none of them is another one's trouble."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest

from mdi.serve import protocol
from tests.serve.servers import TIMEOUT_S, Running, raw_post

N_CLIENTS = 64
ENDLESS: dict[str, Any] = {
    "prompt": "Once upon a time",
    "max_tokens": 2000,
    "ignore_eos": True,
    "temperature": 1,
    "stream": True,
}
SHORT: dict[str, Any] = {"prompt": "Once", "max_tokens": 2, "ignore_eos": True}


@pytest.fixture(autouse=True)
def _nothing_is_left_over(demo: Running, babble: Running) -> Iterator[None]:
    yield
    demo.check_idle()
    babble.check_idle()


def events(data: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: {")]


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    return data


@contextmanager
def begun(server: Running, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A connection on which an answer has begun to come."""
    with server.connect() as connection:
        connection.sendall(raw_post("/v1/completions", body))
        seen = b""
        while b"data: " not in seen:
            seen += connection.recv(4096)
        yield connection


def test_many_clients_get_the_answers_that_they_would_get_alone(demo: Running, client: openai.OpenAI) -> None:
    questions = [f"What is {i % 8} + {i // 8}?" for i in range(N_CLIENTS)]

    def ask(question: str) -> str:
        messages: Any = [{"role": "user", "content": question}]
        wanted: Any = {"model": "demo", "messages": messages, "max_tokens": 24}
        if questions.index(question) % 2:
            return client.chat.completions.create(**wanted).choices[0].message.content or ""
        return "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**wanted, stream=True))

    with ThreadPoolExecutor(N_CLIENTS) as threads:
        together = list(threads.map(ask, questions))
    assert together == [ask(question) for question in questions]


def test_whoever_finds_the_queue_full_is_told_when_to_come_again(babble: Running) -> None:
    with begun(babble, ENDLESS), ThreadPoolExecutor(12) as threads:
        asked = [threads.submit(babble.post, "/v1/completions", SHORT | {"max_tokens": 1}) for _ in range(12)]
        babble.wait_for_metric("vllm:num_requests_waiting", 3)
        refused = [each.result(TIMEOUT_S) for each in asked if each.done()]
        for reply in refused:
            assert reply.status_code == 429
            assert 1 <= int(reply.headers["retry-after"]) <= 60
            assert reply.json()["error"]["type"] == "rate_limit_error"
    codes = sorted(each.result(TIMEOUT_S).status_code for each in asked)
    assert codes == [200] * 3 + [429] * 9


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(babble: Running, stream: bool) -> None:
    """There is one slot, and the answer would go on for 2000 tokens."""
    before = babble.metric("vllm:generation_tokens_total")
    if stream:
        with begun(babble, ENDLESS):
            pass
    else:
        with babble.connect() as connection:
            connection.sendall(raw_post("/v1/completions", ENDLESS | {"stream": False}))
            babble.wait_for_metric("vllm:num_requests_running", 1)
    assert babble.post("/v1/completions", SHORT).status_code == 200
    assert babble.metric("vllm:generation_tokens_total") - before < 1500


def test_a_client_that_goes_away_while_it_waits_gives_its_place_back(babble: Running) -> None:
    with begun(babble, ENDLESS):
        with babble.connect() as connection:
            connection.sendall(raw_post("/v1/completions", ENDLESS))
            babble.wait_for_metric("vllm:num_requests_waiting", 1)
        babble.wait_for_metric("vllm:num_requests_waiting", 0)
        assert babble.metric("vllm:num_requests_running") == 1


def test_a_reader_that_takes_nothing_stalls_nobody(babble: Running) -> None:
    """Its answer goes on into the server's own buffer and frees the only slot; the others do not wait for it to read."""
    with babble.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = ENDLESS | {"logprobs": 20}  # 2000 events of 1 KiB: more than all buffers of the system take
        connection.sendall(raw_post("/v1/completions", body))
        babble.wait_for_metric("vllm:num_requests_running", 1)
        assert babble.post("/v1/completions", SHORT).status_code == 200
        babble.wait_for_metric("vllm:num_requests_running", 0)
        assert babble.has_stalled_reader
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        data = b""
        while b"data: [DONE]" not in data:
            data += connection.recv(1 << 16)
    assert sum(event["choices"][0]["finish_reason"] is None for event in events(_unchunked(data))) >= 2000


def test_a_reader_that_takes_nothing_for_long_is_given_up(babble: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "READER_TIMEOUT_S", 0.2)
    with babble.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(raw_post("/v1/completions", ENDLESS | {"logprobs": 20}))
        babble.wait_for_metric("vllm:num_requests_running", 1)
        babble.wait_for_metric("vllm:num_requests_running", 0)
        while babble.has_stalled_reader:
            pass
        assert b"[DONE]" not in read_all(connection)


def test_one_who_floods_the_queue_does_not_keep_another_client_out(babble: Running) -> None:
    """The second client comes from another address of this device."""
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            babble.post("/v1/completions", SHORT | {"max_tokens": 20})

    with ThreadPoolExecutor(8) as threads:
        floods = [threads.submit(flood) for _ in range(8)]
        babble.wait_for_metric("vllm:num_requests_waiting", 3)
        try:
            transport = httpx2.HTTPTransport(local_address="127.0.0.2")
            with httpx2.Client(transport=transport, base_url=babble.url, timeout=TIMEOUT_S) as other:
                codes = [other.post("/v1/completions", json=SHORT).status_code for _ in range(10)]
        finally:
            stop.set()
    assert [each.result(TIMEOUT_S) for each in floods] == [None] * 8
    assert codes == [200] * 10


def test_connections_are_kept_for_further_requests(babble: Running) -> None:
    with httpx2.Client(base_url=babble.url, timeout=TIMEOUT_S) as client:
        for _ in range(3):
            assert client.post("/v1/completions", json=SHORT).status_code == 200
            with client.stream("POST", "/v1/completions", json=SHORT | {"stream": True}) as reply:
                assert b"[DONE]" in reply.read()


def _unchunked(data: bytes) -> bytes:
    """The body of a chunked reply."""
    _, _, rest = data.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
        if not length:
            break
    return body


def test_time_is_measured_from_the_arrival(babble: Running) -> None:
    first = babble.metric("vllm:time_to_first_token_seconds_count")
    between = babble.metric("vllm:inter_token_latency_seconds_count")
    started = time.perf_counter()
    babble.post("/v1/completions", SHORT | {"max_tokens": 5, "seed": 1})
    took = time.perf_counter() - started
    assert babble.metric("vllm:time_to_first_token_seconds_count") - first == 1
    assert babble.metric("vllm:inter_token_latency_seconds_count") - between == 4
    assert babble.metric("vllm:e2e_request_latency_seconds_count") > 0
    assert took > 0


def test_a_stream_that_waits_for_its_slot_says_that_it_lives(babble: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdi.serve.streaming.SILENCE_S", 0.05)
    with begun(babble, ENDLESS), babble.connect() as waiting:
        waiting.sendall(raw_post("/v1/completions", SHORT | {"stream": True}))
        seen = b""
        while seen.count(b": still working") < 3:
            seen += waiting.recv(4096)
    assert seen.startswith(b"HTTP/1.1 200 ")
