from __future__ import annotations

import json
import signal
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from mdi.errors import UserError
from tools.make_checkpoint import main, make_checkpoint, random_values, size_in_bytes, tensor_rng
from tools.shapes import IM_END, MIN_VOCAB, SHAPES, named_shape

TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(TINY, tmp_path_factory.mktemp("made") / "tiny").path


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)])
def test_transformers_loads_and_runs_it(tmp_path: Path, dtype: str, torch_dtype: torch.dtype) -> None:
    made = make_checkpoint(TINY, tmp_path / "tiny", dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(made.path, dtype="auto")
    assert model.dtype == torch_dtype
    assert sum(parameter.numel() for parameter in model.parameters()) == made.parameters
    with torch.no_grad():
        logits = model(torch.tensor([[3, 4, 5]])).logits.float()
    assert 0.1 < logits.std() < 10


def test_a_tied_model_has_no_head_of_its_own(tmp_path: Path) -> None:
    shape = named_shape("llama-3.2-1b", vocab=300, blocks=1)
    path = make_checkpoint(shape, tmp_path / "cut").path
    with safe_open(path / "model.safetensors", "np") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (not a dict)
    config = json.loads((path / "config.json").read_text())
    assert config["tie_word_embeddings"]
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert (config["vocab_size"], config["num_hidden_layers"]) == (300, 1)


def test_the_seed_decides_every_byte(tmp_path: Path, tiny: Path) -> None:
    same = make_checkpoint(TINY, tmp_path / "same").path
    other = make_checkpoint(TINY, tmp_path / "other", seed=1).path
    assert (same / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert (other / "model.safetensors").read_bytes() != (tiny / "model.safetensors").read_bytes()


def test_a_cut_model_holds_the_blocks_of_the_whole(tmp_path: Path, tiny: Path) -> None:
    cut = load_file(make_checkpoint(TINY.cut(blocks=1), tmp_path / "cut").path / "model.safetensors")
    whole = load_file(tiny / "model.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in cut.items())


def test_shards_hold_the_same_tensors_as_one_file(tmp_path: Path, tiny: Path) -> None:
    made = make_checkpoint(TINY, tmp_path / "sharded", shard_bytes=50_000)
    assert made.shards > 2
    index = json.loads((made.path / "model.safetensors.index.json").read_text())
    whole = load_file(tiny / "model.safetensors")
    assert index["weight_map"].keys() == whole.keys()
    for name, file_name in index["weight_map"].items():
        assert torch.equal(load_file(made.path / file_name)[name], whole[name])
    assert AutoModelForCausalLM.from_pretrained(made.path).num_parameters() == made.parameters


def test_values_are_normal_and_rows_differ() -> None:
    pieces = random_values((512, 512), std=0.02, dtype="fp32", rng=tensor_rng(0, "w"))
    values = np.concatenate(list(pieces)).reshape(512, 512)
    assert values.std() == pytest.approx(0.02, rel=0.01)
    assert abs(values.mean()) < 2e-4
    correlation = np.corrcoef(values)
    assert np.abs(correlation - np.eye(512)).max() < 0.3


def test_any_text_encodes_and_any_id_decodes(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    text = "Grüße, 世界! 🦙\n\ttabs  and spaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == TINY.vocab
    own = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    assert all(own.id_to_token(i) is not None for i in range(TINY.vocab))
    assert own.decode(list(range(MIN_VOCAB, TINY.vocab)))


def test_the_chat_template_ends_turns_with_the_end_token(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer(text)["input_ids"].count(IM_END) == 1


def test_an_existing_directory_is_refused_unless_forced(tmp_path: Path) -> None:
    existing = tmp_path / "mine"
    existing.mkdir()
    (existing / "notes").write_text("keep")
    with pytest.raises(UserError, match="exists already"):
        make_checkpoint(TINY, existing)
    assert (existing / "notes").read_text() == "keep"
    make_checkpoint(TINY, existing, force=True)
    assert not (existing / "notes").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    huge = TINY.cut(vocab=10**13)
    with pytest.raises(UserError, match="GB are free"):
        make_checkpoint(huge, tmp_path / "huge")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind_and_what_was_there_untouched(tmp_path: Path, tiny: Path) -> None:
    too_many_tokens = TINY.cut(vocab=600_000)  # more than fillers can make: known only after the first files are written
    existing = tmp_path / "mine"
    existing.mkdir()
    with pytest.raises(UserError, match="more than the"):
        make_checkpoint(too_many_tokens, existing, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt_once_a_shard_is_open(number: int, frame: FrameType | None) -> None:
        if list(tmp_path.glob(".big.*/model-*")):
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGVTALRM, interrupt_once_a_shard_is_open)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.02, 0.02)  # looks after every 20 ms of computing
        assert main(["llama-7b", str(tmp_path / "big"), "--blocks", "12", "--vocab", "300", "--json"]) == 130
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert not list(tmp_path.iterdir())


def test_the_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", str(tmp_path / "tiny"), "--blocks", "1", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["parameters"] == TINY.cut(blocks=1).parameters()
    assert main(["tiny", str(tmp_path / "tiny")]) == 2
    assert "--force" in capsys.readouterr().err


def test_sizes_are_read_with_their_units() -> None:
    assert (size_in_bytes("2GiB"), size_in_bytes("1.5MB"), size_in_bytes("7")) == (2 << 30, 1_500_000, 7)


def test_vocabularies_too_small_for_bytes_and_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="cannot hold every byte"):
        TINY.cut(vocab=10)
    with pytest.raises(UserError, match="no shape is called"):
        named_shape("gpt-5")


@pytest.mark.parametrize("quantisation", ["q4_0", "q8_0"])
def test_the_gguf_reads_back_with_the_scale_that_was_asked(tmp_path: Path, quantisation: str) -> None:
    gguf = pytest.importorskip("gguf")
    from tools.make_gguf import make_gguf

    shape = named_shape("llama-3.2-1b", vocab=300, blocks=1)
    made = make_gguf(shape, tmp_path / "cut.gguf", quantisation=quantisation)
    reader = gguf.GGUFReader(made.path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.fields["llama.block_count"].contents() == 1
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == 300
    assert "output.weight" not in tensors  # tied
    assert list(tensors["rope_freqs.weight"].data[[0, -1]]) == [1, 32]
    up = tensors["blk.0.ffn_up.weight"]
    assert list(up.shape) == [2048, 8192]
    assert up.tensor_type.name == quantisation.upper()
    values = gguf.quants.dequantize(up.data, up.tensor_type)
    assert values.std() == pytest.approx(2048**-0.5, rel=0.05)
    with pytest.raises(UserError, match="exists already"):
        make_gguf(shape, made.path)
