"""Models by name, as a user types them: real processes against a hub on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdi.cluster.home import Home
from mdi.hub.names import known_models
from tests.hub_server import OWNER, Fault, HubServer, hub_server
from tools.make_checkpoint import make_checkpoint
from tools.shapes import SHAPES

from .programs import MDI, TIMEOUT_S, Terminal, environment

NAME = "house/tiny"
RUN = (
    "--no-discovery",
    "--ctx",
    "200",
    "--prompt",
    "hello",
    "--json",
    "--max-tokens",
    "2",
    "--ignore-eos",
    "--temperature",
    "0",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(SHAPES["tiny"], tmp_path_factory.mktemp("hub") / "tiny", shard_bytes=100_000).path


@pytest.fixture
def server(checkpoint: Path) -> Iterator[HubServer]:
    with hub_server() as server:
        server.publish(NAME, checkpoint)
        yield server


class User:
    """Somebody with an empty cache, whose hub is the server."""

    def __init__(self, home: Home, server: HubServer, place: Path) -> None:
        self.home = home
        self.place = place
        self.variables = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(place), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def types(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in environment(self.home).items() if not name.startswith(("HF_", "HUGGING"))}
        return subprocess.run(
            [*MDI, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S,
            env={**inherited, **self.variables, **variables},
        )  # fmt: skip


@pytest.fixture
def user(home: Home, server: HubServer, tmp_path: Path) -> User:
    return User(home, server, tmp_path / "hf")


def test_a_model_is_downloaded_and_runs_and_the_next_time_it_is_here(user: User, server: HubServer, checkpoint: Path) -> None:
    here = json.loads(user.types("run", "--model", str(checkpoint), *RUN).stdout)
    first = user.types("run", "--model", NAME, *RUN)
    assert (first.returncode, first.stderr) == (0, "")
    answer = json.loads(first.stdout)
    assert answer["token_ids"] == here["token_ids"]
    assert answer["model"] == "tiny"
    server.asked.clear()
    for further in (("--offline",), ()):
        again = user.types("run", "--model", NAME, *RUN, *further)
        assert json.loads(again.stdout)["token_ids"] == here["token_ids"]
    assert json.loads(user.types("run", "--model", NAME, *RUN, HF_HUB_OFFLINE="1").stdout)["token_ids"] == here["token_ids"]
    assert server.asked == []


def test_without_a_terminal_a_download_is_told_in_lines(user: User, server: HubServer) -> None:
    server.fail("info", Fault(status=429, headers={"Retry-After": "0"}))
    done = user.types("models", "pull", NAME)
    assert done.returncode == 0
    first, begun, last = done.stderr.splitlines()
    assert first == "house/tiny: the hub asks for fewer requests; next try in 0 s"
    assert begun.startswith("downloading house/tiny: 0 of ")
    assert last.startswith("house/tiny is here: ")
    assert Path(done.stdout.strip()).is_dir()
    assert user.place in Path(done.stdout.strip()).parents


def test_ctrl_c_says_that_nothing_is_lost_and_the_next_start_goes_on(user: User, server: HubServer, checkpoint: Path) -> None:
    shard = next(path for path in sorted(checkpoint.glob("model-*.safetensors")))
    children: list[subprocess.Popen[str]] = []
    gone = threading.Event()

    def interrupt() -> None:
        children[0].send_signal(signal.SIGINT)
        assert gone.wait(TIMEOUT_S)

    server.fail(shard.name, Fault(cut_after=1000), Fault(before=interrupt, silent=True))
    command, pipe = [*MDI, "run", "--model", NAME, "--prompt", "x"], subprocess.PIPE
    variables = environment(user.home) | user.variables
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=variables) as child:
        children.append(child)
        out, error = child.communicate(timeout=TIMEOUT_S)
    gone.set()
    assert (child.returncode, out) == (130, "")
    assert error.splitlines()[-1] == "stopped; what has come is kept, and the next start goes on from there"
    assert "Traceback" not in error
    assert user.types("models", "pull", NAME).returncode == 0
    assert server.requests(shard.name)[-1].range == "bytes=1000-"


def test_at_a_terminal_a_download_is_a_bar(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in user.variables.items():
        monkeypatch.setenv(name, value)
    with Terminal(user.home, "models", "pull", NAME) as terminal:
        terminal.wait_for("house/tiny is here: ")
        terminal.wait_for("hub/models--house--tiny")
        terminal.wait_for("snapshots")
        assert terminal.process.wait(TIMEOUT_S) == 0


def test_a_plan_needs_no_weights(user: User, server: HubServer) -> None:
    done = user.types("plan", "--model", NAME, "--no-discovery", "--json")
    assert json.loads(done.stdout)["model"] == "tiny", done.stderr
    assert not [asked for asked in server.asked if asked.path.endswith(".safetensors")]
    assert "is not on this device" in user.types("models", "inspect", NAME, "--offline").stderr


def test_a_model_is_inspected_before_it_is_downloaded(user: User, server: HubServer, checkpoint: Path) -> None:
    there = json.loads(user.types("models", "inspect", NAME, "--json").stdout)
    assert there == json.loads(user.types("models", "inspect", str(checkpoint), "--json").stdout)
    assert not (user.place / "hub").exists()


def test_a_gated_model_says_which_page_to_visit_and_comes_with_a_token(user: User, server: HubServer) -> None:
    server.gated.add(NAME)
    refused = user.types("models", "pull", NAME)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is gated" in refused.stderr
    assert f"{server.endpoint}/{NAME}" in refused.stderr
    assert user.types("models", "pull", NAME, HF_TOKEN=OWNER).returncode == 0
    user.types("models", "rm", NAME, "--yes")
    (user.place / "token").write_text(OWNER)
    assert user.types("models", "pull", NAME).returncode == 0


def test_models_are_listed_inspected_and_removed(user: User) -> None:
    user.types("models", "pull", NAME)
    listed = json.loads(user.types("models", "list", "--json").stdout)
    assert {row["name"] for row in listed["models"]} == {*known_models(), None}
    (tiny,) = [row for row in listed["models"] if row["repository"] == NAME]
    assert Path(tiny["whole"][0]["path"]).is_dir()
    assert listed["directory"] == str(user.place / "hub")
    shown = user.types("models", "list").stdout
    assert "llama-3.2-1b" in shown
    assert "llama3.2, gated" in shown
    assert str(user.place / "hub") in shown
    here = user.types("models", "list", "--here").stdout
    assert NAME in here
    assert "llama-3.2-1b" not in here
    assert json.loads(user.types("models", "inspect", NAME, "--json").stdout)["name"] == "tiny"
    asked = user.types("models", "rm", NAME)
    assert asked.returncode == 2
    assert "--yes" in asked.stderr
    assert json.loads(user.types("models", "rm", NAME, "--yes", "--json").stdout)["freed_bytes"] > 0
    assert NAME not in user.types("models", "list", "--here").stdout
    assert user.types("models", "rm", NAME, "--yes").returncode == 2


@pytest.mark.parametrize(("key", "left"), [("y", False), ("n", True)])
def test_deleting_is_asked_for_at_a_terminal(user: User, monkeypatch: pytest.MonkeyPatch, key: str, left: bool) -> None:
    path = Path(user.types("models", "pull", NAME).stdout.strip())
    for name, value in user.variables.items():
        monkeypatch.setenv(name, value)
    with Terminal(user.home, "models", "rm", NAME) as terminal:
        terminal.wait_for("which other programs share.*y/N")
        terminal.type(f"{key}\r")
        assert terminal.process.wait(TIMEOUT_S) == int(left)
    assert path.exists() == left


def test_search_finds_names_and_repositories_that_can_be_run(user: User, server: HubServer) -> None:
    server.found = [
        {"id": "a/llama-x", "config": {"architectures": ["LlamaForCausalLM"]}, "safetensors": {"total": 10**9}},
        {"id": "a/y"},
    ]
    rows = json.loads(user.types("models", "search", "llama", "--json").stdout)["models"]
    assert {"tinyllama", "llama-7b"} <= {row["name"] for row in rows}
    assert [row["repository"] for row in rows if row["name"] is None] == ["a/llama-x"]
    assert "1.00 B" in user.types("models", "search", "llama").stdout
    server.asked.clear()
    assert "a/llama-x" not in user.types("models", "search", "llama", "--offline").stdout
    assert server.asked == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--model", "lama-7b", "--prompt", "x"), "did you mean llama-7b"),
        (("run", "--model", "tinyllama", "--offline", "--prompt", "x"), "mdi models pull tinyllama"),
        (("run", "--model", "./nothing", "--prompt", "x"), "no file or directory"),
        (("models", "pull", "house/nothing"), "has no model house/nothing"),
        (("models", "pull", "x y"), "names no model"),
    ],
)
def test_a_wrong_name_is_a_sentence(user: User, arguments: tuple[str, ...], said: str) -> None:
    done = user.types(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_where_downloads_are_forbidden_pull_says_so(user: User, server: HubServer) -> None:
    done = user.types("models", "pull", NAME, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE" in done.stderr
    assert server.asked == []


def test_a_directory_of_that_name_here_comes_first(user: User, checkpoint: Path, tmp_path: Path, server: HubServer) -> None:
    (tmp_path / "tinyllama").symlink_to(checkpoint)
    inherited = environment(user.home) | user.variables
    command = [*MDI, "run", "--model", "tinyllama", *RUN]
    done = subprocess.run(
        command, cwd=tmp_path, env=inherited, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert json.loads(done.stdout)["model"] == "tiny"
    assert server.asked == []


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("mdi run --model smollm2-1", {"smollm2-135m", "smollm2-1.7b"}),
        ("mdi models pull phi-3", {"phi-3-mini", "phi-3.5-mini"}),
        ("mdi models inspect dem", {"demo"}),
    ],
)
def test_the_shell_completes_names(user: User, line: str, names: set[str]) -> None:
    words = line.split()
    done = user.types(_MDI_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    assert set(done.stdout.split()) == names


def test_bash_takes_the_script_and_completes_by_it(user: User, tmp_path: Path) -> None:
    """bash itself calls the completion function that our script defines, on a line with a half-typed name."""
    script = user.types(_MDI_COMPLETE="source_bash").stdout
    mdi = tmp_path / "mdi"
    mdi.write_text(f'#!/bin/sh\nexec {" ".join(MDI)} "$@"\n')
    mdi.chmod(0o755)
    asking = "COMP_WORDS=(mdi run --model smollm3); COMP_CWORD=3; $(complete -p mdi | grep -o '_[a-z_]*completion') mdi; "
    asking += "echo ${COMPREPLY[@]}"
    variables = environment(user.home) | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{asking}"], env=variables, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.stdout.split() == ["smollm3-3b"], done.stderr
