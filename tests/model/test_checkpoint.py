from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mdi.errors import ModelError
from mdi.model import shards
from mdi.model.checkpoint import INDEX, SINGLE, Checkpoint
from tests.checkpoints import KINDS, edit_json, hf_config, make_checkpoint

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def reference(directory: Path) -> dict[str, torch.Tensor]:
    """What transformers holds, by the names in files: in memory it keeps all experts of a block in one tensor."""
    tensors = dict(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict())
    mixtral = (
        ("mlp.gate.", "block_sparse_moe.gate."),
        ("mlp.experts", "block_sparse_moe.experts"),
        ("gate_proj", "w1"),
        ("up_proj", "w3"),
        ("down_proj", "w2"),
    )
    apart: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        prefix, experts, kind = name.partition(".experts.")
        for expert, values in enumerate(tensor) if experts else ():
            if kind == "gate_up_proj":
                apart[f"{prefix}.experts.{expert}.gate_proj.weight"], apart[f"{prefix}.experts.{expert}.up_proj.weight"] = (
                    values.chunk(2)
                )
            else:
                apart[f"{prefix}.experts.{expert}.{kind}.weight"] = values
        if not experts:
            apart[name] = tensor
    if "Mixtral" not in (directory / "config.json").read_text():
        return apart

    def renamed(name: str) -> str:
        for theirs, in_files in mixtral:
            name = name.replace(theirs, in_files)
        return name

    return {renamed(name): tensor for name, tensor in apart.items()}


def rewrite(directory: Path, *without: str, **changed: torch.Tensor) -> None:
    tensors = load_file(directory / SINGLE) | changed
    save_file({name: tensor for name, tensor in tensors.items() if name not in without}, directory / SINGLE, {"format": "pt"})


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "sharded", shard_size="60KB")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_size", ["5GB", "60KB"])
def test_every_tensor_equals_the_one_that_transformers_loads(tmp_path: Path, kind: str, shard_size: str) -> None:
    directory = make_checkpoint(tmp_path, kind, shard_size=shard_size)
    assert (directory / INDEX).exists() == (shard_size == "60KB")
    checkpoint, theirs = Checkpoint.open(directory), reference(directory)
    n_experts = checkpoint.config.experts.n_experts if checkpoint.config.experts else 0
    names = {checkpoint.embedding, checkpoint.final_norm, checkpoint.head}
    for block in range(checkpoint.config.n_blocks):
        names |= set(checkpoint.block_tensors(block).values())
        for expert in range(n_experts if block in checkpoint.config.sparse_blocks else 0):
            names |= set(checkpoint.expert_tensors(block, expert).values())
    assert checkpoint.head_is_embedding == hf_config(kind).tie_word_embeddings
    assert names == theirs.keys() - ({"lm_head.weight"} if checkpoint.head_is_embedding else set())
    for name in names:
        np.testing.assert_array_equal(checkpoint.tensor(name), theirs[name].numpy(), strict=True)


@pytest.mark.parametrize("stored", DTYPES)
def test_large_tensors_are_read_piece_by_piece(tiny: Path, stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {name: tensor.to(DTYPES[stored]) for name, tensor in load_file(tiny / SINGLE).items()}
    save_file(tensors, tiny / SINGLE, {"format": "pt"})
    monkeypatch.setattr(shards, "PIECE_VALUES", 999)  # divides no tensor
    checkpoint = Checkpoint.open(tiny)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor.float().numpy())


@pytest.mark.parametrize("stored", DTYPES)
def test_stored_types_are_read_exactly_and_given_raw(tmp_path: Path, stored: str) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, dtype=DTYPES[stored]))
    theirs = load_file(tmp_path / SINGLE)["model.embed_tokens.weight"]
    raw, dtype = checkpoint.raw(checkpoint.embedding)
    assert (dtype, raw.dtype) == (stored, {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[stored])
    assert raw.tobytes() == theirs.view(torch.uint8).numpy().tobytes()
    assert not raw.flags.writeable
    np.testing.assert_array_equal(checkpoint.tensor(checkpoint.embedding), theirs.float().numpy(), strict=True)


def test_file_that_shrinks_while_open_is_an_error_not_a_crash(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    (tiny / SINGLE).write_bytes((tiny / SINGLE).read_bytes()[:5000])
    with pytest.raises(ModelError, match="became shorter"):
        checkpoint.tensor(checkpoint.final_norm)  # the last in the file


def test_tied_config_with_two_different_tensors_is_not_tied_as_in_transformers(tiny: Path) -> None:
    edit_json(tiny / "config.json", tie_word_embeddings=True)
    checkpoint = Checkpoint.open(tiny)
    assert not checkpoint.head_is_embedding
    np.testing.assert_array_equal(checkpoint.tensor(checkpoint.head), reference(tiny)["lm_head.weight"].numpy())


def test_tied_config_with_two_equal_tensors_is_tied(tiny: Path) -> None:
    edit_json(tiny / "config.json", tie_word_embeddings=True)
    rewrite(tiny, **{"lm_head.weight": load_file(tiny / SINGLE)["model.embed_tokens.weight"].clone()})
    assert Checkpoint.open(tiny).head_is_embedding


def test_tied_config_with_only_a_head_embeds_with_the_head_as_transformers_does(tiny: Path) -> None:
    edit_json(tiny / "config.json", tie_word_embeddings=True)
    rewrite(tiny, "model.embed_tokens.weight")
    checkpoint = Checkpoint.open(tiny)
    assert checkpoint.head_is_embedding
    theirs = reference(tiny)["model.embed_tokens.weight"].numpy()
    np.testing.assert_array_equal(checkpoint.tensor(checkpoint.embedding), theirs)


def test_tied_config_with_two_tensors_of_a_type_that_cannot_be_read_is_refused(tiny: Path) -> None:
    edit_json(tiny / "config.json", tie_word_embeddings=True)
    wide = load_file(tiny / SINGLE)["model.embed_tokens.weight"].double()
    rewrite(tiny, **{"lm_head.weight": wide, "model.embed_tokens.weight": wide.clone()})
    with pytest.raises(ModelError, match="F64"):
        Checkpoint.open(tiny)


def test_untied_config_without_a_head_is_refused(tiny: Path) -> None:
    rewrite(tiny, "lm_head.weight")
    with pytest.raises(ModelError, match=r"lacks the tensor lm_head\.weight"):
        Checkpoint.open(tiny)


def test_extra_tensors_are_ignored(tiny: Path) -> None:
    rewrite(tiny, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8, dtype=torch.int64)})
    Checkpoint.open(tiny)


def test_missing_tensors_are_named_and_counted(tiny: Path) -> None:
    rewrite(tiny, "model.layers.1.mlp.up_proj.weight", "model.norm.weight")
    with pytest.raises(ModelError, match=r"lacks the tensor model\.norm\.weight and 1 more"):
        Checkpoint.open(tiny)


def test_a_config_that_promises_millions_of_experts_is_refused_at_once(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "mixtral")
    edit_json(directory / "config.json", num_local_experts=4096, num_hidden_layers=1024)
    with pytest.raises(ModelError, match="and 999 more"):
        Checkpoint.open(directory)


def test_norms_are_read_as_they_multiply(tmp_path: Path, tiny: Path) -> None:
    for directory, offset in ((tiny, 0), (make_checkpoint(tmp_path / "gemma", "gemma2"), 1)):
        checkpoint = Checkpoint.open(directory)
        np.testing.assert_array_equal(checkpoint.norm(checkpoint.final_norm), checkpoint.tensor(checkpoint.final_norm) + offset)


def test_shape_that_disagrees_with_the_config_is_named(tiny: Path) -> None:
    edit_json(tiny / "config.json", intermediate_size=128)
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.gate_proj.*\[96, 64\].*\[128, 64\]"):
        Checkpoint.open(tiny)


def test_unreadable_type_is_named(tiny: Path) -> None:
    rewrite(tiny, **{"model.norm.weight": torch.ones(64, dtype=torch.float64)})
    with pytest.raises(ModelError, match=r"model\.norm\.weight.*F64.*F32, F16, BF16"):
        Checkpoint.open(tiny)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_truncated_file_is_named_with_its_bytes(tiny: Path, kept: int) -> None:
    whole = (tiny / SINGLE).read_bytes()
    (tiny / SINGLE).write_bytes(whole[:kept])
    with pytest.raises(ModelError) as refused:
        Checkpoint.open(tiny)
    assert str(tiny / SINGLE) in str(refused.value)
    if kept == -1:
        assert f"{len(whole)} bytes expected, {len(whole) - 1} found" in str(refused.value)


def test_truncated_shard_is_refused_before_anything_is_read(sharded: Path) -> None:
    last = sorted(sharded.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(ModelError, match=f"{last.name} is cut short"):
        Checkpoint.open(sharded)


def test_missing_shard_is_named(sharded: Path) -> None:
    first = sorted(sharded.glob("*.safetensors"))[0]
    first.unlink()
    with pytest.raises(ModelError, match=f"lacks the file {first.name}"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "weights.bin", ""])
def test_index_cannot_name_files_elsewhere(sharded: Path, name: str) -> None:
    edit_json(sharded / INDEX, weight_map={"model.norm.weight": name})
    with pytest.raises(ModelError, match="not a plain safetensors file name"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "not a safetensors file"),
        ((40 << 20).to_bytes(8, "little") + b" " * (40 << 20), "not a safetensors file"),
        (b"\x02\0\0\0\0\0\0\0[]", "JSON object"),
        (b"\x02\0\0\0\0\0\0\0{]", "not valid JSON"),
        (b"\x02\0\0\0\0\0\0\0{}", "lacks the tensor"),
    ],
)
def test_file_of_another_kind_is_refused(tiny: Path, content: bytes, said: str) -> None:
    (tiny / SINGLE).write_bytes(content)
    with pytest.raises(ModelError, match=said):
        Checkpoint.open(tiny)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [64], "data_offsets": [0, 128]},
        {"dtype": "F32", "shape": [-64], "data_offsets": [0, 256]},
        {"dtype": "F32", "shape": [64], "data_offsets": [256, 0]},
        {"dtype": "F32", "shape": [64], "data_offsets": [0]},
        {"dtype": "F32", "shape": "64", "data_offsets": [0, 256]},
        {"dtype": 32, "shape": [64], "data_offsets": [0, 256]},
        {"dtype": "F32", "shape": [64, *[1] * 20], "data_offsets": [0, 256]},
        {"dtype": "F32", "shape": [1 << 64, 0], "data_offsets": [0, 0]},
        "F32",
    ],
)
def test_header_that_contradicts_itself_is_refused(tiny: Path, entry: object) -> None:
    header = json.dumps({"model.norm.weight": entry}).encode()
    (tiny / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(256))
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        Checkpoint.open(tiny)


def test_a_header_of_huge_numbers_is_refused_at_once(tiny: Path) -> None:
    entry = {"dtype": "F32", "shape": [10**4000] * 2000, "data_offsets": [0, 256]}  # their product has 8 million digits
    header = json.dumps({"model.norm.weight": entry}).encode()
    (tiny / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(256))
    began = time.process_time()
    with pytest.raises(ModelError, match=r"model\.norm\.weight") as refused:
        Checkpoint.open(tiny)
    assert time.process_time() - began < 5
    assert len(str(refused.value)) < 1000


def test_pickled_weights_are_never_opened(tiny: Path) -> None:
    (tiny / SINGLE).rename(tiny / "pytorch_model.bin")
    with pytest.raises(ModelError, match="unpickling would run code"):
        Checkpoint.open(tiny)


def test_directory_without_weights_or_config_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tiny / SINGLE).unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        Checkpoint.open(tiny)
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        Checkpoint.open(tmp_path)


def test_fingerprint_follows_the_weights_and_not_the_place(tmp_path: Path) -> None:
    one, same = make_checkpoint(tmp_path / "one"), make_checkpoint(tmp_path / "same")
    fingerprint = Checkpoint.open(one).fingerprint()
    assert Checkpoint.open(same).fingerprint() == fingerprint
    assert Checkpoint.open(make_checkpoint(tmp_path / "other", seed=1)).fingerprint() != fingerprint


@pytest.mark.parametrize("row", [0, 160, 319])
def test_fingerprint_sees_the_start_middle_and_end_of_a_tensor(tiny: Path, row: int) -> None:
    fingerprint = Checkpoint.open(tiny).fingerprint()
    embedding = load_file(tiny / SINGLE)["model.embed_tokens.weight"]  # 80 KiB
    embedding[row] += 1
    rewrite(tiny, **{"model.embed_tokens.weight": embedding})
    assert Checkpoint.open(tiny).fingerprint() != fingerprint


def test_fingerprint_sees_one_changed_tensor_and_a_changed_config(tiny: Path) -> None:
    fingerprint = Checkpoint.open(tiny).fingerprint()
    rewrite(tiny, **{"model.layers.2.mlp.up_proj.weight": torch.randn(96, 64)})
    changed = Checkpoint.open(tiny).fingerprint()
    edit_json(tiny / "config.json", rms_norm_eps=1e-5)
    assert len({fingerprint, changed, Checkpoint.open(tiny).fingerprint()}) == 3
