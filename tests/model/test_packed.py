from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mdi.engine.observe import BlockObserver
from mdi.errors import ModelError
from mdi.model.checkpoint import Checkpoint
from mdi.model.config import ModelConfig
from mdi.model.layout import default_block
from mdi.model.packed import Embedding, packed_bytes, prepare
from mdi.model.packs import PackKind, open_pack, write_pack
from mdi.model.quantise import WeightFormat, quantise
from tests.checkpoints import KINDS, edit_json, make_checkpoint


@pytest.mark.parametrize("fmt", [WeightFormat(32), WeightFormat(4, 32)])
@pytest.mark.parametrize("kind", KINDS)
def test_packs_are_as_large_as_the_plan_counts(tmp_path: Path, kind: str, fmt: WeightFormat) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "model", kind))
    packed = prepare(checkpoint, fmt, tmp_path / "packs", observer=BlockObserver(checkpoint.config, 1))

    def tensor_bytes(filename: str) -> int:
        return sum(tensor.n_bytes for tensor in open_pack(tmp_path / "packs" / filename).tensors.values())

    block_bytes, head_bytes = packed_bytes(checkpoint.config, fmt)
    assert max(tensor_bytes(ref.filename) for ref in packed.blocks) == block_bytes
    assert tensor_bytes(packed.head.filename) == head_bytes


def test_experts_that_blocks_do_not_divide_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "model", "qwen3moe"))
    with pytest.raises(ModelError, match="blocks of 128 values do not divide the 64 columns"):
        prepare(checkpoint, WeightFormat(4, 128), tmp_path / "packs")
    assert not list((tmp_path / "packs").glob("*"))


def test_embeddings_are_scaled_when_they_are_looked_up(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "model", "gemma3"))
    packed = prepare(checkpoint, WeightFormat(32), tmp_path / "packs")
    embedding = Embedding(open_pack(tmp_path / "packs" / packed.embedding.filename), checkpoint.config.embedding_scale)
    np.testing.assert_array_equal(embedding.rows([3, 7]), checkpoint.tensor(checkpoint.embedding)[[3, 7]] * 8)


@pytest.mark.parametrize(
    ("d_model", "d_ffn", "block"), [(64, 96, 128), (1024, 4096, 128), (2048, 5632, 256), (4096, 11_008, 256), (2048, 5760, 128)]
)
def test_large_models_take_large_blocks_where_these_divide_them(d_model: int, d_ffn: int, block: int) -> None:
    values = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": d_model,
        "intermediate_size": d_ffn,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "vocab_size": 300,
    }
    assert default_block(ModelConfig.from_hf(values)) == block


def write_header(path: Path, header: bytes, body: int = 0) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(body))
    return path


def pack_header(shape: object, offsets: object, linears: object = None) -> bytes:
    about = {"version": 2, "kind": "block", "linears": linears or {}}
    entry = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    return json.dumps({"__metadata__": {"mdi": json.dumps(about)}, "norm": entry}).encode()


INFINITE = {"qkv": [{"rows": float("inf"), "columns": 1, "bits": 32, "block": 0}]}


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 60_000,
        b'{"__metadata__":' * 4000,
        pack_header([1 << 32, 1 << 32], [0, 0]),
        pack_header([-2, -2], [0, 16]),
        pack_header([float("inf")], [0, 16]),
        pack_header([4], [0.0, 16.0]),
        pack_header([4], [0, 16], INFINITE),
        pack_header([4.5], [0, 16]),
    ],
)
def test_packs_with_headers_from_anyone_are_refused(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(ModelError):
        open_pack(write_header(tmp_path / "p", header, 16))


def test_whole_header_of_that_kind_is_a_pack(tmp_path: Path) -> None:
    assert open_pack(write_header(tmp_path / "p", pack_header([4], [0, 16]), 16)).read("norm").shape == (4,)


def test_a_manifest_with_an_impossible_block_is_made_again(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "model"))
    packed = prepare(checkpoint, WeightFormat(4, 32), tmp_path / "packs")
    (manifest,) = (tmp_path / "packs").glob("*.json")
    edit_json(manifest, format={"bits": 4, "block": 33})
    assert prepare(checkpoint, WeightFormat(4, 32), tmp_path / "packs") == packed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("squares", [None, np.ones(64, np.float32)])
def test_weights_that_are_no_numbers_are_not_rounded(value: float, squares: np.ndarray | None) -> None:
    weight = np.ones((3, 64), np.float32)
    weight[1, 40] = value
    with pytest.raises(ModelError, match="not finite numbers"):
        quantise(weight, WeightFormat(4, 32), squares)


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in (".partial-old", ".partial-new", "old.safetensors"))
    for path in (old, new, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (0, 0))
    write_pack(tmp_path, PackKind.BLOCK, {"norm": np.ones(4, np.float32)})
    assert [path.exists() for path in (old, new, other)] == [False, True, True]
