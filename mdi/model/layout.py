"""What a block's pack holds, as a table: which of the checkpoint's tensors go into which of the pack's, and how they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.families import Role
from mdi.model.quantise import DEFAULT_BLOCK, WeightFormat


class Stored(StrEnum):
    """How a part of a pack is stored."""

    LINEAR = "linear"  # [N, K] in the pack's format
    EXPERTS = "experts"  # [experts, N, K] in the pack's format; every expert's tensors one after another
    PLAIN = "plain"  # fp32
    NORM = "norm"  # fp32, as norms multiply: with the offset that a family leaves out of its files


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of the checkpoint's tensors `roles`, those that the block has, in one tensor: so each input is read once."""

    name: str
    stored: Stored
    roles: tuple[Role, ...]


@dataclass(frozen=True, slots=True)
class PlacedPart:
    """A part of one block with its shape."""

    part: Part
    shape: tuple[int, ...]

    def n_bytes(self, fmt: WeightFormat) -> int:
        match self.part.stored, self.shape:
            case Stored.LINEAR, (rows, columns):
                return fmt.linear_bytes(rows, columns)
            case Stored.EXPERTS, (experts, rows, columns):
                return fmt.linear_bytes(experts * rows, columns)
            case _, (length, *rest):
                return 4 * length * (rest[0] if rest else 1)
        raise AssertionError(f"{self.part.name} of shape {self.shape}")


PARTS = (
    Part("attn_norm", Stored.NORM, (Role.INPUT_NORM,)),
    Part("qkv", Stored.LINEAR, (Role.Q, Role.K, Role.V, Role.QKV)),
    Part("qkv.bias", Stored.PLAIN, (Role.Q_BIAS, Role.K_BIAS, Role.V_BIAS)),
    Part("q_norm", Stored.NORM, (Role.Q_NORM,)),
    Part("k_norm", Stored.NORM, (Role.K_NORM,)),
    Part("o", Stored.LINEAR, (Role.O,)),
    Part("o.bias", Stored.PLAIN, (Role.O_BIAS,)),
    Part("attn_out_norm", Stored.NORM, (Role.ATTENTION_OUT_NORM,)),
    Part("ffn_norm", Stored.NORM, (Role.POST_NORM,)),
    Part("router", Stored.PLAIN, (Role.ROUTER,)),
    Part("gate_up", Stored.LINEAR, (Role.GATE, Role.UP, Role.GATE_UP)),
    Part("gate_up.bias", Stored.PLAIN, (Role.GATE_BIAS, Role.UP_BIAS)),
    Part("down", Stored.LINEAR, (Role.DOWN,)),
    Part("down.bias", Stored.PLAIN, (Role.DOWN_BIAS,)),
    Part("ffn_out_norm", Stored.NORM, (Role.FFN_OUT_NORM,)),
)
# Decode is bound by reading weights, and each scale is read with its sum: `make bench` says what a larger block gains, docs/performance.md
# what it costs. Models of 1 B parameters and more have d_model 2048; smaller ones are fast anyway, and rounding hurts them more.
LARGE_BLOCK, LARGE_MODEL = 256, 2048
# Rows of gate and up take turns, as QMoE reads them.
EXPERT_PARTS = (
    Part("experts_gate_up", Stored.EXPERTS, (Role.GATE, Role.UP)),
    Part("experts_down", Stored.EXPERTS, (Role.DOWN,)),
)


def default_block(config: ModelConfig) -> int:
    """Weights that share a scale when nobody chose: LARGE_BLOCK for models that are large enough for it and divide by it."""
    widths = [config.d_model, config.d_q, config.d_ffn, *([config.experts.d_ffn] if config.experts is not None else [])]
    large = config.d_model >= LARGE_MODEL and not any(width % LARGE_BLOCK for width in widths)
    return LARGE_BLOCK if large else DEFAULT_BLOCK


def check_format(config: ModelConfig, fmt: WeightFormat) -> None:
    """Raises ModelError when experts cannot be stored so: their kernel takes whole blocks of values only."""
    if not config.sparse_blocks or config.experts is None or not fmt.quantised:
        return
    for width in (config.d_model, config.experts.d_ffn):
        if width % fmt.block:
            raise ModelError(
                f"blocks of {fmt.block} values do not divide the {width} columns of this model's experts",
                hint="use --quant none, which keeps fp32",
            )


def block_layout(config: ModelConfig, block: int) -> tuple[PlacedPart, ...]:
    """The parts that the pack of one block holds, in order."""
    shapes = config.block_shapes(block)
    placed = tuple(PlacedPart(part, _stacked(part, shapes)) for part in PARTS if not shapes.keys().isdisjoint(part.roles))
    if config.experts is None or block not in config.sparse_blocks:
        return placed
    n_experts, shapes = config.experts.n_experts, config.expert_shapes()
    return placed + tuple(PlacedPart(part, (n_experts, *_stacked(part, shapes))) for part in EXPERT_PARTS)


def _stacked(part: Part, shapes: Mapping[Role, tuple[int, ...]]) -> tuple[int, ...]:
    found = [shapes[role] for role in part.roles if role in shapes]
    return (sum(shape[0] for shape in found), *found[0][1:])
