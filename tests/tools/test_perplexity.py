from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mdi.errors import UserError
from mdi.model.demo import __file__ as demo_module
from mdi.model.source import Model, resolve
from tools.perplexity import main
from tools.perplexity_text import Text, dialogues, pieces

DEMO = Path(demo_module).parent


@pytest.fixture(scope="module")
def demo() -> Model:
    return Model(resolve("demo"))


def run(*arguments: str) -> dict[str, dict[str, float]]:
    lines: list[str] = []
    assert main([*arguments, "--threads", "1", "--json"], lines.append) == 0
    return {result["name"]: result for result in json.loads(lines[-1])["results"]}


def test_fp32_is_what_transformers_computes(demo: Model) -> None:
    text = dialogues(demo, 300)
    twin = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    nats = []
    for ids, scored in zip(text.sequences, text.scored, strict=True):
        with torch.no_grad():
            found = torch.log_softmax(twin(torch.tensor([ids])).logits[0], -1)
        nats += [-float(found[i, ids[i + 1]]) for i in range(len(ids) - 1) if scored[i + 1]]
    assert run("demo", "--tokens", "300", "--quant", "int8")["none"]["perplexity"] == pytest.approx(np.exp(np.mean(nats)), 1e-4)


def test_fewer_bits_cost_more_on_the_demo_model() -> None:
    found = run("demo", "--tokens", "1500")
    assert list(found) == ["none", "int8 block 128", "int4-plain block 128", "int4 block 128"]
    none, int8, plain, weighed = found.values()
    assert (none["kl"], none["same_top"]) == (0, 1)
    assert 0 < int8["kl"] < 0.1 * plain["kl"]
    assert plain["kl"] < 0.02  # measured: 0.004
    assert weighed["kl"] < 0.02
    assert plain["pack_bytes"] < weighed["pack_bytes"] < 1.01 * plain["pack_bytes"]  # by the scales of KV, as it was observed
    assert weighed["pack_bytes"] < int8["pack_bytes"] < none["pack_bytes"]


def test_eight_bits_of_kv_cost_less_than_a_percent_on_the_demo_model() -> None:
    found = run("demo", "--tokens", "1500", "--quant", "none", "int4", "--kv-type", "fp32", "int8")
    assert list(found) == ["none", "none kv int8", "int4 block 128", "int4 block 128 kv int8"]
    none, none8, int4, int4_8 = (result["perplexity"] for result in found.values())
    assert found["none kv int8"]["kl"] > 0
    assert none8 < 1.01 * none  # measured: 1.0001
    assert int4_8 < 1.01 * int4


def test_only_the_assistants_words_count(demo: Model) -> None:
    text = dialogues(demo, 200)
    assert text.n_scored >= 200
    for ids, scored in zip(text.sequences, text.scored, strict=True):
        said = demo.tokenizer.decode([token for token, own in zip(ids, scored, strict=True) if own])
        asked = demo.tokenizer.decode([token for token, own in zip(ids, scored, strict=True) if not own])
        assert len(ids) == len(scored)
        assert said
        assert asked
        assert not scored[0]
        assert scored[-1]


def test_a_model_without_dialogues_speaks_its_own_words(tmp_path: Path) -> None:
    directory = tmp_path / "other"
    directory.mkdir()
    for file in DEMO.glob("*.*"):
        (directory / file.name).write_bytes(file.read_bytes())
    lines: list[str] = []
    arguments = [str(directory), "--tokens", "64", "--length", "32", "--quant", "int4-plain", "int4", "--block", "32", "64"]
    assert main([*arguments, "--threads", "1"], lines.append) == 0
    assert "62 tokens of the fp32 model's own words" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["none", "int4-plain", "int4-plain", "int4", "int4"]


def test_a_file_is_cut_into_pieces(demo: Model, tmp_path: Path) -> None:
    text = pieces(demo, "What is 3 plus 4? " * 20, 50, 20)
    assert [len(ids) for ids in text.sequences] == [21, 21, 11]  # each after the token that begins a text
    assert text.n_scored == 50


def test_what_cannot_be_measured_is_a_sentence(tmp_path: Path) -> None:
    lines: list[str] = []
    assert main([str(tmp_path / "absent")], lines.append) == 2
    assert "absent" in lines[0]
    with pytest.raises(UserError):
        Text.of_whole("nothing", [[1]])
