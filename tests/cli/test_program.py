from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from mdi.cluster.home import Home

from .programs import TIMEOUT_S, Terminal, mdi, started

ALONE = ("--no-discovery", "--ctx", "256")
ENDLESS = (*ALONE, "--ignore-eos")


@pytest.fixture
def run(model: Path) -> tuple[str, ...]:
    return ("run", "--model", str(model))


def test_json_is_one_object_and_nothing_else(home: Home, run: tuple[str, ...]) -> None:
    done = mdi(home, *run, *ALONE, "--prompt", "hello", "--json", "--max-tokens", "6", "--ignore-eos", "--temperature", "1")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert set(answer) == {
        "model", "text", "token_ids", "prompt_token_ids", "finish_reason", "sampling", "timings", "plan", "recoveries",
    }  # fmt: skip
    assert set(answer["timings"]) == {
        "ttft_s", "decode_tokens_per_s", "total_s", "prompt_tokens", "new_tokens", "reused_tokens",
        "drafted_tokens", "accepted_tokens",
    }  # fmt: skip
    assert answer["finish_reason"] == "length"
    assert len(answer["token_ids"]) == answer["timings"]["new_tokens"] == 6
    assert len(answer["prompt_token_ids"]) == answer["timings"]["prompt_tokens"]
    assert set(answer["plan"]["stages"][0]) == {"node", "name", "start", "stop", "bytes"}
    seed = ("--seed", str(answer["sampling"]["seed"]))
    again = mdi(
        home, *run, *ALONE, "--prompt", "hello", "--json", "--max-tokens", "6", "--ignore-eos", "--temperature", "1", *seed
    )
    assert json.loads(again.stdout)["token_ids"] == answer["token_ids"]


def test_an_error_with_json_leaves_stdout_empty(home: Home, run: tuple[str, ...]) -> None:
    done = mdi(home, *run, *ALONE, "--json", "--prompt", "word " * 3000)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mdi: ")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--prompt", ""), "prompt"),
        (("--prompt", "", "--raw"), "prompt"),
        (("--prompt", "hi", "--max-tokens", "0"), "--max-tokens"),
        (("--prompt", "hi", "--stop", ""), "--stop"),
        (("--prompt", "hi", "--raw", "--system", "Be kind."), "--system"),
        (("--prompt", "hi", "--wait", "-1"), "--wait"),
        (("--prompt", "hi", "--wait", "nan"), "--wait"),
        (("--prompt", "hi", "--threads", "100000"), "--threads"),
        (("--prompt", "hi", "--block", "0"), "--block"),
    ],
)
def test_what_is_typed_wrong_is_refused_before_anything_is_looked_for(
    home: Home, run: tuple[str, ...], typed: tuple[str, ...], said: str
) -> None:
    done = mdi(home, *run, *ALONE, *typed)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "looking for nodes" not in done.stderr


def test_each_line_of_a_pipe_is_a_turn(home: Home, run: tuple[str, ...]) -> None:
    done = mdi(home, *run, *ALONE, "--max-tokens", "3", "--ignore-eos", "--seed", "1", stdin="hello\nand again")
    assert done.returncode == 0
    assert sum(line.startswith("3 tokens") for line in done.stderr.splitlines()) == 2
    assert ">" not in done.stdout.splitlines()[0][:2]


def test_a_prompt_that_is_no_utf8_is_answered(home: Home, run: tuple[str, ...]) -> None:
    done = mdi(home, *run, *ALONE, "--prompt", "\udcff hi", "--system", "\udcfe", "--stop", "\udcfd", "--max-tokens", "3")
    assert done.returncode == 0, done.stderr


def test_a_whole_pipe_can_be_one_prompt(home: Home, run: tuple[str, ...]) -> None:
    prompts = [
        mdi(home, *run, *ALONE, "--raw", "--json", "--max-tokens", "1", *given, stdin="a\nb\n") for given in ((), ("-p", "-"))
    ]
    direct = mdi(home, *run, *ALONE, "--raw", "--json", "--max-tokens", "1", "--prompt", "a\nb")
    ids = [json.loads(done.stdout)["prompt_token_ids"] for done in (*prompts, direct)]
    assert ids[0] == ids[1] == ids[2]


def test_a_reader_that_leaves_is_no_error(home: Home, run: tuple[str, ...]) -> None:
    with started(home, *run, *ENDLESS, "--prompt", "hello") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(TIMEOUT_S) == 1
        assert "Error" not in process.stderr.read()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_answer_quietly(home: Home, run: tuple[str, ...], number: int, code: int) -> None:
    with started(home, *run, *ENDLESS, "--prompt", "hello") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == code
        shown = process.stderr.read()
    assert "Traceback" not in shown
    assert "mdi:" not in shown


def test_ctrl_c_ends_a_pipe_that_says_nothing(home: Home, run: tuple[str, ...]) -> None:
    with started(home, *run, *ENDLESS, stdin=subprocess.PIPE) as process:
        assert process.stderr is not None
        while "loading" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130


def test_a_conversation_at_a_terminal(home: Home, run: tuple[str, ...]) -> None:
    with Terminal(home, *run, *ENDLESS) as terminal:
        prompt = terminal.wait_for(">")
        terminal.type("hello\r")
        begun = terminal.wait_for(r"hello\r*\n.", prompt)
        terminal.type("\x03")
        stopped = terminal.wait_for(r"tokens? · .* stopped .*\n", begun)
        terminal.type("\x03")
        hinted = terminal.wait_for("/quit", stopped)
        terminal.type("/plan\r")
        planned = terminal.wait_for("Predicted", hinted)
        terminal.type("/quit\r")
        terminal.wait_for("/quit", planned)
        assert terminal.process.wait(TIMEOUT_S) == 0
    assert "Traceback" not in terminal.screen


def test_a_node_starts_is_listed_and_stops(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    arguments = ("node", "start", "--name", "attic", "--host", "127.0.0.1", "--no-discovery", "--max-memory", "1GiB")
    with started(home, *arguments) as node:
        assert node.stdout is not None
        assert node.stdout.readline().startswith("node attic (")
        shown = "".join(node.stdout.readline() for _ in range(6))
        assert "mdi node start --join " in shown
        assert "attic (this device)" in mdi(home, "nodes", "--no-discovery").stdout
        listed = json.loads(mdi(home, "nodes", "--no-discovery", "--json").stdout)
        assert listed["strangers"] == 0
        (row,) = listed["nodes"]
        assert (row["name"], row["reachable"]) == ("attic", True)
        assert row["memory_offered_bytes"] <= 1 << 30
        second = mdi(home, *arguments)
        assert second.returncode == 2
        assert "already runs" in second.stderr
        with started(home, "node", "stop") as stopping:
            assert node.wait(TIMEOUT_S) == 0
            assert stopping.wait(TIMEOUT_S) == 0
            assert stopping.stderr is not None
            assert stopping.stderr.read() == "the node has ended\n"
    assert mdi(home, "node", "stop").stderr == "no node runs here\n"
    assert "mdi node start" in mdi(home, "nodes", "--no-discovery").stdout


def test_a_plan_is_drawn_explained_and_printed_as_json(home: Home, model: Path) -> None:
    plan = ("plan", "--model", str(model), "--no-discovery")
    explained = mdi(home, *plan, "--explain").stdout
    assert "best single device" in explained
    assert "Bounded by" in explained
    shown = json.loads(mdi(home, *plan, "--json", "--explain").stdout)
    assert (shown["model"], shown["n_blocks"]) == ("tiny", 2)
    assert shown["why"].endswith(".")
