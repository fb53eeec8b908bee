"""`mdi serve` as a process: what it prints, whom it lets in, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from mdi.cluster.home import Home
from tests.serve.servers import TIMEOUT_S, raw_post

ROOT = Path(__file__).parents[2]
ALONE = ("--no-discovery", "--threads", "1", "--quant", "none", "--parallel", "1")


class Process:
    """`mdi serve`, once it has said where."""

    def __init__(self, home: Home, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mdi.cli.app", "serve", *ALONE, *arguments],
            env={**os.environ, "MDI_HOME": str(home.path), "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        found = re.search(r"http://(\S+):(\d+)/v1", self.said)
        assert found, self.said + self.process.communicate(timeout=TIMEOUT_S)[1]
        self.port = int(found[2])

    def begin(self, path: str, body: dict[str, object]) -> socket.socket:
        """A connection on which an answer has begun to come."""
        connection = socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)
        connection.sendall(raw_post(path, body))
        seen = b""
        while b"data: " not in seen:
            seen += connection.recv(4096)
        return connection

    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S).close()
        except ConnectionError:
            return False
        return True

    def ended(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, errors


@contextmanager
def process(home: Home, *arguments: str, **environment: str) -> Iterator[Process]:
    started = Process(home, *arguments, **environment)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def rest_of(connection: socket.socket) -> str:
    data = b""
    with connection:
        while piece := connection.recv(1 << 16):
            data += piece
    return data.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_answer_come_to_its_end(home: Home, babbler: Path, number: signal.Signals) -> None:
    with process(home, "--model", str(babbler), "--port", "0", "--ctx", "2048") as server:
        wanted = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "temperature": 1, "stream": True}
        running = server.begin("/v1/completions", wanted)
        waiting = socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)
        waiting.sendall(raw_post("/v1/completions", {"prompt": "Once", "max_tokens": 400, "ignore_eos": True}))
        while json.loads(httpx2.get(f"http://127.0.0.1:{server.port}/health", timeout=TIMEOUT_S).text)["waiting"] != 1:
            pass
        server.process.send_signal(number)
        assert rest_of(waiting).startswith("HTTP/1.1 503 ")
        told = rest_of(running)
        assert "[DONE]" in told
        assert '"finish_reason":"length"' in told
        assert server.ended()[0] == 0
        assert not server.listens()


def test_a_second_signal_cuts_the_answer_and_says_so(home: Home, babbler: Path) -> None:
    with process(home, "--model", str(babbler), "--port", "0", "--ctx", "4096") as server:
        wanted = {"prompt": "Once", "ignore_eos": True, "temperature": 1, "stream": True, "max_tokens": 4000}
        with server.begin("/v1/completions", wanted) as running:
            server.process.send_signal(signal.SIGINT)
            while server.listens():  # until it drains
                pass
            server.process.send_signal(signal.SIGINT)
            told = rest_of(running)
        assert "shutting down" in told
        assert '"finish_reason":"length"' not in told
        assert server.ended()[0] == 0


def test_on_the_network_a_key_is_made_and_needed_everywhere_but_at_health(home: Home) -> None:
    with process(home, "--host", "0.0.0.0", "--port", "0") as server:
        assert server.process.stdout is not None
        said = "".join(server.process.stdout.readline() for _ in range(4))
        found = re.search(r"^ +(mdi-\S+)$", said, re.MULTILINE)
        assert found, said
        base = f"http://127.0.0.1:{server.port}"
        for path in ("/v1/models", "/metrics", "/version", "/nowhere"):
            assert httpx2.get(base + path, timeout=TIMEOUT_S).status_code == 401
        assert httpx2.get(f"{base}/health", timeout=TIMEOUT_S).json() == {"status": "ok"}
        key = {"authorization": f"Bearer {found[1]}"}
        assert httpx2.get(f"{base}/v1/models", headers=key, timeout=TIMEOUT_S).status_code == 200
        assert "stages" in httpx2.get(f"{base}/health", headers=key, timeout=TIMEOUT_S).json()
        server.process.terminate()
        _, errors = server.ended()
        assert found[1] not in errors


def test_a_key_may_come_from_the_environment(home: Home) -> None:
    with process(home, "--port", "0", MDI_API_KEY="a-key-that-is-long-enough") as server:
        base = f"http://127.0.0.1:{server.port}"
        assert httpx2.get(f"{base}/v1/models", timeout=TIMEOUT_S).status_code == 401
        key = {"x-api-key": "a-key-that-is-long-enough"}
        assert httpx2.get(f"{base}/v1/models", headers=key, timeout=TIMEOUT_S).status_code == 200


def test_pages_of_an_allowed_origin_may_ask_and_read(home: Home) -> None:
    page = {"origin": "https://chat.example"}
    with process(home, "--port", "0", "--allow-origin", page["origin"], MDI_API_KEY="a-key-that-is-long-enough") as server:
        url = f"http://127.0.0.1:{server.port}/v1/models"
        wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        asked = httpx2.options(url, headers=page | wanted, timeout=TIMEOUT_S)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == page["origin"]
        assert asked.headers["access-control-allow-headers"] == "authorization"
        key = {"authorization": "Bearer a-key-that-is-long-enough"}
        told = httpx2.get(url, headers=page | key, timeout=TIMEOUT_S)
        assert (told.status_code, told.headers["access-control-allow-origin"]) == (200, page["origin"])
        assert "access-control-allow-origin" not in httpx2.get(url, headers=key, timeout=TIMEOUT_S).headers
        other = {"origin": "https://evil.example"}
        assert httpx2.options(url, headers=other | wanted, timeout=TIMEOUT_S).status_code == 403


def test_each_request_leaves_one_line_with_its_id(home: Home) -> None:
    with process(home, "--port", "0") as server:
        httpx2.get(f"http://127.0.0.1:{server.port}/version", headers={"x-request-id": "find-me"}, timeout=TIMEOUT_S)
        server.process.terminate()
        code, errors = server.ended()
    assert code == 0
    (line,) = [line for line in errors.splitlines() if "find-me" in line]
    assert "path=/version status=200" in line


def test_a_log_of_json_tells_what_an_answer_took(home: Home) -> None:
    with process(home, "--port", "0", "--log-json") as server:
        asked = {"prompt": "Hello", "max_tokens": 3}
        url = f"http://127.0.0.1:{server.port}/v1/completions"
        used = httpx2.post(url, json=asked, headers={"x-request-id": "find-me"}, timeout=TIMEOUT_S).json()["usage"]
        server.process.terminate()
        _, errors = server.ended()
    (told,) = [json.loads(line) for line in errors.splitlines() if "find-me" in line]
    assert (told["id"], told["client"], told["status"]) == ("find-me", "@127.0.0.1", 200)
    assert (told["prompt_tokens"], told["new_tokens"]) == (used["prompt_tokens"], used["completion_tokens"])
    assert 0 < told["first_token_ms"] <= told["ms"]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("--port", "70000"), "port"),
        (("--max-queue", "-1"), "--max-queue"),
        (("--parallel", "0"), "--parallel"),
        (("--api-key", "short"), "API key"),
        (("--allow-origin", "chat.example"), "--allow-origin"),
        (("--temperature", "-1"), "--temperature"),
    ],
)
def test_what_is_typed_wrong_is_refused_before_anything_is_loaded(home: Home, typed: tuple[str, ...], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mdi.cli.app", "serve", *ALONE, *typed],
        env={**os.environ, "MDI_HOME": str(home.path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "loading" not in done.stderr


def test_a_port_that_is_taken_is_a_sentence(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "mdi.cli.app", "serve", *ALONE, "--port", str(port)],
            env={**os.environ, "MDI_HOME": str(home.path), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
