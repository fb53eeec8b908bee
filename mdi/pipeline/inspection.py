"""What a model is and what it takes, from its files' headers alone: nothing is converted or measured. Pure but for reading headers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from mdi.engine.protocol import StageShape
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.layout import block_layout
from mdi.model.packed import source_bytes
from mdi.model.quantise import Quant
from mdi.model.source import ModelSource, kept_as, notices, stored_weights
from mdi.model.weights import StoredTensor, WeightSource
from mdi.node.stage import RESIDENT_FACTOR, STAGE_BYTES
from mdi.pipeline.api import check_shape
from mdi.pipeline.problem import chosen_kv_type, ctx_of
from mdi.profile.memory import HEADROOM_BYTES

DEVICE_BYTES = (4 << 30, 8 << 30, 16 << 30)  # what Raspberry Pis and laptops are sold with
SYSTEM_BYTES = 512 << 20  # what Raspberry Pi OS takes of it without a desktop, with some daemons


@dataclass(frozen=True, slots=True)
class Format:
    """How many tensors are stored as one type, and in how many bytes."""

    kind: str
    tensors: int
    n_bytes: int
    bits_per_value: float


@dataclass(frozen=True, slots=True)
class Fit:
    """How much of the model a device of so much memory holds.

    `whole`: all of it, as the starter; `blocks`: so many as a worker; `devices`: so many like it hold all, None if no number does.
    """

    memory_bytes: int
    whole: bool
    blocks: int
    devices: int | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model's shape, its files and its needs. `ctx` is the context that KV and fits are counted for; KV is that of all blocks."""

    name: str
    container: str  # "GGUF" or "safetensors"
    config: ModelConfig
    parameters: int
    active_parameters: int  # those that a token uses: of experts the chosen ones
    tensors: tuple[StoredTensor, ...]
    quant: Quant
    kv_type: KvType
    block_bytes: int
    head_bytes: int
    kv_bytes_per_token: int
    ctx: int
    fits: tuple[Fit, ...]
    notices: tuple[str, ...]

    @property
    def formats(self) -> tuple[Format, ...]:
        """By bytes, the most first."""
        found: dict[str, tuple[int, int, int]] = {}
        for tensor in self.tensors:
            tensors, n_bytes, values = found.get(tensor.kind, (0, 0, 0))
            found[tensor.kind] = tensors + 1, n_bytes + tensor.n_bytes, values + math.prod(tensor.shape)
        rows = [
            Format(kind, tensors, n_bytes, 8 * n_bytes / values) for kind, (tensors, n_bytes, values) in found.items() if values
        ]
        return tuple(sorted(rows, key=lambda row: (-row.n_bytes, row.kind)))

    @property
    def total_bytes(self) -> int:
        """Blocks and head in memory, without KV."""
        return self.config.n_blocks * self.block_bytes + self.head_bytes

    def to_json(self) -> dict[str, Any]:
        shape = {name: getattr(self.config, name) for name in SHAPE}
        return {
            "name": self.name,
            "container": self.container,
            "family": self.config.architecture,
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "shape": shape,
            "experts": None if self.config.experts is None else self.config.experts.to_dict(),
            "sparse_blocks": list(self.config.sparse_blocks),
            "stored_bytes": sum(tensor.n_bytes for tensor in self.tensors),
            "formats": [asdict(row) for row in self.formats],
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "quant": str(self.quant),
            "block_bytes": self.block_bytes,
            "head_bytes": self.head_bytes,
            "total_bytes": self.total_bytes,
            "kv_type": str(self.kv_type),
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "ctx": self.ctx,
            "fits": [asdict(fit) for fit in self.fits],
            "notices": list(self.notices),
        }


SHAPE = (
    "n_blocks",
    "d_model",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "d_ffn",
    "vocab_size",
    "max_positions",
    "sliding_window",
    "tied_head",
)


def inspect(
    source: ModelSource, quant: Quant, block: int | None = None, ctx: int | None = None, kv_type: KvType | None = None
) -> Inspection:
    """On CPUs: other devices keep KV in 16 bits.

    Raises ModelError when the model could not be run, UserError for a context or a block that no model can have.
    """
    check_shape(ctx, block)
    stored = stored_weights(source)
    config = stored.config
    weights, fmt = kept_as(stored, quant, block)
    block_bytes, head_bytes = source_bytes(weights, fmt)
    ctx = ctx_of(ctx, config)
    kept = StageShape(1, ctx, 1, chosen_kv_type(quant, kv_type))
    kv_bytes = kept.kv_bytes(config, 1) // ctx
    one_block = RESIDENT_FACTOR * block_bytes + ctx * kv_bytes
    return Inspection(
        name=source.name,
        container="safetensors" if source.gguf is None else "GGUF",
        config=config,
        parameters=parameters(stored),
        active_parameters=parameters(stored) - idle_parameters(config),
        tensors=tuple(stored.inventory()),
        quant=quant,
        kv_type=kept.kv_type,
        block_bytes=block_bytes,
        head_bytes=head_bytes,
        kv_bytes_per_token=config.n_blocks * kv_bytes,
        ctx=ctx,
        fits=tuple(
            fit(memory, config.n_blocks, one_block, RESIDENT_FACTOR * head_bytes, kept.step_bytes(config))
            for memory in DEVICE_BYTES
        ),
        notices=notices(source.name, stored, quant),
    )


def parameters(weights: WeightSource) -> int:
    """Values of all blocks, the embedding, and the head if it is another matrix."""
    config = weights.config
    blocks = sum(math.prod(placed.shape) for block in range(config.n_blocks) for placed in block_layout(config, block))
    matrices = 1 if weights.head == weights.embedding else 2
    return blocks + matrices * config.vocab_size * config.d_model + config.d_model


def idle_parameters(config: ModelConfig) -> int:
    """Values of the experts that a token does not go to."""
    if config.experts is None:
        return 0
    idle = config.experts.n_experts - config.experts.n_chosen
    return len(config.sparse_blocks) * idle * sum(math.prod(shape) for shape in config.expert_shapes().values())


def fit(memory_bytes: int, n_blocks: int, block_bytes: float, head_bytes: float, step_bytes: int = 0) -> Fit:
    """What a device holds, given the resident bytes of a block with its KV, of the head, which only the starter has, and of a step."""
    room = memory_bytes - SYSTEM_BYTES - HEADROOM_BYTES - STAGE_BYTES - step_bytes
    as_starter, as_worker = (max(0, int(free // block_bytes)) for free in (room - head_bytes, room))
    left = max(0, n_blocks - as_starter)
    devices = None if room < head_bytes or (left and not as_worker) else 1 + -(-left // max(1, as_worker))
    return Fit(memory_bytes, left == 0, min(as_worker, n_blocks), devices)
