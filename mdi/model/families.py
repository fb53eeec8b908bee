"""The model families that can be run, one row each. A new one is a new row, and code only where it computes something new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from mdi.errors import ModelError


class Role(StrEnum):
    """What a tensor does inside a block. Matrices are [out, in], as checkpoints store them."""

    INPUT_NORM = "input_norm"
    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741
    POST_NORM = "post_norm"
    GATE = "gate"
    UP = "up"
    DOWN = "down"


LLAMA_BLOCK: Mapping[Role, str] = MappingProxyType(
    {
        Role.INPUT_NORM: "model.layers.{block}.input_layernorm.weight",
        Role.Q: "model.layers.{block}.self_attn.q_proj.weight",
        Role.K: "model.layers.{block}.self_attn.k_proj.weight",
        Role.V: "model.layers.{block}.self_attn.v_proj.weight",
        Role.O: "model.layers.{block}.self_attn.o_proj.weight",
        Role.POST_NORM: "model.layers.{block}.post_attention_layernorm.weight",
        Role.GATE: "model.layers.{block}.mlp.gate_proj.weight",
        Role.UP: "model.layers.{block}.mlp.up_proj.weight",
        Role.DOWN: "model.layers.{block}.mlp.down_proj.weight",
    }
)


@dataclass(frozen=True, slots=True)
class Family:
    """How checkpoints of one HF architecture name their tensors, and what their config means where it is silent."""

    architecture: str
    max_positions: int
    n_kv_heads: int | None = None  # None: as many as query heads
    sliding_window: int | None = None
    windowed: bool = False  # whether the config's sliding_window is obeyed at all
    activation: str = "silu"
    block: Mapping[Role, str] = field(default_factory=lambda: LLAMA_BLOCK)
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"

    def block_tensors(self, block: int) -> dict[Role, str]:
        """Tensor names of one block by what they do."""
        return {role: pattern.format(block=block) for role, pattern in self.block.items()}


# Defaults are those of the config classes in transformers: a checkpoint's silence means them.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.architecture: family
        for family in (
            Family("LlamaForCausalLM", max_positions=2048),
            Family("MistralForCausalLM", max_positions=131_072, n_kv_heads=8, sliding_window=4096, windowed=True),
        )
    }
)


def family_of(architecture: str) -> Family:
    """Raises ModelError with the list of what is known."""
    try:
        return FAMILIES[architecture]
    except KeyError:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(
            f"models of the architecture {architecture!r:.80} are not supported", hint=f"choose a model that is one of: {known}"
        ) from None
