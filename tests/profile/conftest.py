from __future__ import annotations

from pathlib import Path

import pytest

from mdi.model.config import ModelConfig
from mdi.model.rope import Rope


@pytest.fixture
def tiny() -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        n_blocks=3,
        d_model=64,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        d_ffn=160,
        vocab_size=300,
        max_positions=256,
        norm_eps=1e-5,
        rope=Rope(),
        sliding_window=None,
        tied_head=False,
        bos_id=None,
        eos_ids=(2,),
    )


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where measurements put their weights; must be empty afterwards."""
    path = tmp_path / "scratch"
    path.mkdir()
    return path
