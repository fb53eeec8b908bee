from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mdi.errors import ModelError
from mdi.model.checkpoint import Checkpoint
from mdi.model.config import ModelConfig
from mdi.model.layout import default_block
from mdi.model.packed import Embedding, packed_bytes, prepare
from mdi.model.packs import open_pack
from mdi.model.quantise import WeightFormat
from tests.checkpoints import KINDS, make_checkpoint


@pytest.mark.parametrize("fmt", [WeightFormat(32), WeightFormat(4, 32)])
@pytest.mark.parametrize("kind", KINDS)
def test_packs_are_as_large_as_the_plan_counts(tmp_path: Path, kind: str, fmt: WeightFormat) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "model", kind))
    packed = prepare(checkpoint, fmt, tmp_path / "packs")

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
