"""`mdi plan --nodes`, in this process: it needs no device, home or network."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from mdi.cli.app import main

PROFILES = Path(__file__).parents[2] / "profiles"
PIS, HOME, CAMPUS = (str(PROFILES / f"cluster-{name}.toml") for name in ("pis", "home", "campus"))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_a_cluster_on_paper_is_planned_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("plan", "--model", "llama-7b", "--kv-type", "fp32", "--nodes", PIS, "--explain") == 0
    )  # in 8 bits one Pi would hold it
    out, err = capsys.readouterr()
    for part in (
        "No single device holds all 32 blocks",
        "pi-1",
        "█",
        "RAM-proportional",
        "MDI-LLM table",
        "Proven",
        "conversations",
    ):
        assert part in out
    assert "not measured" in err


def test_several_clusters_stand_in_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--model", "llama-70b", "--nodes", PIS, HOME, CAMPUS) == 0
    head, pis, home, campus = capsys.readouterr().out.rstrip().splitlines()[-4:]
    assert head.split()[:2] == ["cluster", "nodes"]
    assert "of 80 blocks fit" in pis
    assert home.startswith("cluster-home")
    assert " of 1000 " in campus


def test_json_of_one_and_of_several(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--model", "llama-7b", "--nodes", HOME, "--json", "--explain") == 0
    one = json.loads(capsys.readouterr().out)
    assert one["cluster"].startswith("A home")
    assert one["gap"] == 0
    assert one["prediction"]["decode_tokens_per_s"] > 1
    assert set(one["alternatives"]) >= {"uniform", "best single device"}
    assert run("plan", "--model", "llama-70b", "--nodes", PIS, CAMPUS, "--json") == 0
    small, large = json.loads(capsys.readouterr().out)
    assert "blocks fit" in small["problem"]
    assert large["n_blocks"] == 80


def test_the_ring_is_drawn_into_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ring.svg"
    assert run("plan", "--model", "llama-7b", "--nodes", HOME, "--svg", str(path)) == 0
    assert ET.parse(path).getroot().tag.endswith("svg")
    assert run("plan", "--model", "llama-7b", "--nodes", HOME, PIS, "--svg", str(path)) == 2
    assert run("plan", "--model", "llama-7b", "--nodes", HOME, "--svg", str(tmp_path / "no" / "ring.svg")) == 2


def test_pins_and_exclusions_hold_on_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("plan", "--model", "llama-7b", "--nodes", HOME, "--json", "--pin", "pi5=10-12", "--no-battery", "--exclude", "mac")
        == 0
    )
    stages = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert stages["laptop"]["start"] == stages["laptop"]["stop"] == 0
    assert "mac" not in stages
    assert stages["pi5"]["start"] <= 10 < 13 <= stages["pi5"]["stop"]


def test_load_and_prompt_change_the_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    figures = []
    for more in ((), ("--batch", "8"), ("--filled", "2000"), ("--prompt-tokens", "1000")):
        assert run("plan", "--model", "llama-3.1-8b", "--nodes", PIS, "--json", *more) == 0
        figures.append(json.loads(capsys.readouterr().out)["prediction"])
    one, batched, filled, prompted = figures
    assert batched["throughput_tokens_per_s"] > one["throughput_tokens_per_s"]
    assert filled["decode_step_s"] > one["decode_step_s"]
    assert prompted["ttft_s"] > 5 * one["ttft_s"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--model", "llama-8b", "--nodes", PIS), 2, "no model shape is called"),
        (("--model", "llama-7b", "--nodes", "nowhere.toml"), 2, "cannot be read"),
        (("--model", "llama-7b", PIS), 2, "has no place here"),
        (("--model", "llama-7b", "--nodes", PIS, "--split", "8,8,8,8"), 2, "--split is for real nodes"),
        (("--model", "llama-7b", "--nodes", PIS, "--pin", "attic=1"), 2, "no node is called 'attic'"),
        (("--model", "llama-70b", "--nodes", PIS), 1, "blocks fit"),
    ],
)
def test_what_cannot_be_planned_is_said(capsys: pytest.CaptureFixture[str], arguments, code: int, message: str) -> None:
    assert run("plan", *arguments) == code
    assert message in capsys.readouterr().err
