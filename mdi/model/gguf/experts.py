"""Mixtures of experts in GGUF files: what their metadata mean, and where one expert's matrix lies.

All experts of a block are one tensor [experts, out, in]; files of before April 2024 have a tensor for each expert. Names and meanings
are those of llama.cpp (`src/llama-arch.cpp`, `build_moe_ffn`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mdi.errors import ModelError
from mdi.model.fields import Fields
from mdi.model.gguf.header import TensorInfo

HfValues = dict[str, Any]
ANOTHER = "download the model again, or choose another conversion"

# Keys that change how experts are chosen or added up, and the values that change nothing.
NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "expert_shared_count": (0,),
        "expert_group_count": (0, 1),
        "expert_group_used_count": (0, 1),
        "expert_gating_func": (0, 1),  # unsaid, softmax
        "expert_weights_scale": (0.0, 1.0),  # unsaid, as they are
        "leading_dense_block_count": (0,),
        "interleave_moe_layer_step": (0, 1),
    }
)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a tensor of the file from `first` on, as a tensor of their own: [out, in] of one expert, or all of a tensor."""

    info: TensorInfo
    first: int
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, info: TensorInfo) -> Rows:
        return cls(info, 0, info.shape)


def expert_counts(fields: Fields, a: str) -> tuple[int, int]:
    """How many experts there are, and how many each token goes to. Raises ModelError for routing that is not computed here."""
    for key, values in NEUTRAL.items():
        found = fields.values.get(f"{a}.{key}")
        if found is not None and not (isinstance(found, int | float) and found in values):
            raise ModelError(f"{fields.origin} has {a}.{key} = {found!r:.80}, which is not supported")
    return fields.integer(f"{a}.expert_count"), fields.integer(f"{a}.expert_used_count")


def mixtral(fields: Fields, values: HfValues) -> HfValues:
    """Of a mixture that calls itself llama. There the chosen experts' weights always add up to 1."""
    if not fields.boolean("llama.expert_weights_norm", True):
        raise fields.refusal("llama.expert_weights_norm", "true")
    n_experts, n_chosen = expert_counts(fields, "llama")
    return {"num_local_experts": n_experts, "num_experts_per_tok": n_chosen, "sliding_window": None}


def qwen3moe(fields: Fields, values: HfValues) -> HfValues:
    n_experts, n_chosen = expert_counts(fields, "qwen3moe")
    return {
        "num_experts": n_experts,
        "num_experts_per_tok": n_chosen,
        "moe_intermediate_size": fields.integer(
            "qwen3moe.expert_feed_forward_length", max(1, values["intermediate_size"] // n_chosen)
        ),
        "norm_topk_prob": fields.boolean("qwen3moe.expert_weights_norm", True),
        "use_sliding_window": False,
        "sliding_window": None,
    }


def stacked_name(block: str, module: str) -> str:
    """What the tensor of all experts of a block is called, given a dense block's (`ffn_up`)."""
    return f"blk.{block}.{module}_exps.weight"


def single_name(block: str, module: str, expert: str) -> str:
    """What the tensor of one expert is called in files that do not stack them."""
    return f"blk.{block}.{module}.{expert}.weight"


def rows_of_expert(info: TensorInfo, expert: int) -> Rows:
    """One expert's [out, in] of a tensor of all. Raises ModelError for a tensor that does not hold it."""
    if len(info.shape) != 3 or not expert < info.shape[0]:
        raise ModelError(f"{info.name} has the shape {list(info.shape)}, which holds no expert {expert}", hint=ANOTHER)
    return Rows(info, expert * info.shape[1], info.shape[1:])
