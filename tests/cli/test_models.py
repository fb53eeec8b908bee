from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mdi.cli.app import main
from mdi.cli.models import counted_values, holds
from mdi.model.gguf import types
from mdi.pipeline.inspection import Fit
from tests.gguf_models import make_twins
from tests.model.gguf.written import Written


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_twins(tmp_path_factory.mktemp("models"), types.Q6_K, vocab_size=320)[0]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["models", "inspect", *arguments])
    return int(ended.value.code or 0)


def test_inspect_prints_shape_formats_needs_and_devices(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(file)) == 0
    out = capsys.readouterr().out
    for said in (
        "model: LlamaForCausalLM, 1.9 M parameters, GGUF",
        "Q6_K",
        "6.56",
        "KV as --kv-type int8: 1 KiB per token",
        "4.0 GiB   the whole model",
    ):
        assert said in out


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        (
            "mixtral",
            {"sliding_window": None},
            "4 experts of width 512 in every block, 2 for each token, which uses 3.1 M parameters",
        ),
        ("qwen3moe", {}, "8 experts of width 64 in 2 blocks, 3 for each token, which uses 1.0 M parameters"),
    ],
)
def test_inspect_tells_of_experts(
    kind: str, shape: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, twin = make_twins(tmp_path, types.Q4_0, kind, vocab_size=320, **shape)
    assert run(str(twin)) == 0
    out = capsys.readouterr().out
    assert said in out
    assert ("feed-forward" in out) == (kind == "qwen3moe")
    if kind == "mixtral":
        assert run(str(file)) == 0
        assert said in capsys.readouterr().out


def test_json_is_one_object_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(file), "--json", "--quant", "int8", "--block", "32", "--ctx", "64") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["family"], found["quant"], found["ctx"]) == ("LlamaForCausalLM", "int8", 64)
    assert {row["kind"] for row in found["formats"]} == {"Q6_K", "F32"}
    assert found["tensors"][0].keys() == {"name", "kind", "shape", "n_bytes"}


def test_built_in_model_can_be_inspected(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo") == 0
    assert "safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"junk", "is not a GGUF file"),
        (Written({"general.architecture": "mamba"}).bytes(), "the architecture 'mamba', which is not supported"),
        (b"GGUF\x03\x00\x00\x00" + bytes([255] * 16), "number of tensors is 18446744073709551615"),
    ],
)
def test_what_cannot_be_run_is_a_sentence(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    assert run(str(tmp_path / "bad.gguf")) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (Fit(1, True, 9, 1), "the whole model"),
        (Fit(1, False, 4, 3), "4 of 9 blocks; 3 such devices hold all"),
        (Fit(1, False, 4, None), "4 of 9 blocks, but not the head"),
        (Fit(1, False, 0, None), "too little for any part"),
    ],
)
def test_what_a_device_holds(fit: Fit, said: str) -> None:
    assert holds(fit, 9) == said


def test_values_are_counted_in_billions_or_millions() -> None:
    assert (counted_values(1_235_814_400), counted_values(27_460_000)) == ("1.24 B", "27.5 M")
