"""What was measured, in the planner's words: the input of every solver. Times are seconds, memory is bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mdi.errors import InternalError, UserError

_MEASURE_AGAIN = "measure the device again, or correct the number in its profile"


def _check_seconds(field: str, value: float, *, positive: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        wanted = "more than 0" if positive else "0 or more"
        raise UserError(f"{field} must be {wanted} seconds, not {value}", hint=_MEASURE_AGAIN)


def _check_count(field: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{field} must be at least {least}, not {value}", hint=f"give a larger {field}")


@dataclass(frozen=True, slots=True)
class StageTime:
    """What a run of blocks costs on one device: `overhead_s` once, and `block_s` for each block."""

    overhead_s: float
    block_s: float

    def __post_init__(self) -> None:
        _check_seconds("overhead_s", self.overhead_s)
        _check_seconds("block_s", self.block_s, positive=True)

    def seconds(self, n_blocks: int) -> float:
        """No blocks, no stage, no overhead."""
        return self.overhead_s + n_blocks * self.block_s if n_blocks > 0 else 0.0


@dataclass(frozen=True, slots=True)
class NodeCost:
    """One device. `memory_bytes` is what it offers to this model; `prefill` is for one chunk of `ModelCost.chunk_tokens`.

    `kv_bytes_per_token`, for one block, is there where the device keeps KV in another type than `ModelCost` says.
    """

    node_id: str
    name: str
    memory_bytes: int
    decode: StageTime
    prefill: StageTime
    kv_bytes_per_token: int | None = None

    def __post_init__(self) -> None:
        if not self.node_id or not self.name:
            raise InternalError("a node needs an id and a name")
        _check_count("memory_bytes", self.memory_bytes, 0)
        if self.kv_bytes_per_token is not None:
            _check_count("kv_bytes_per_token", self.kv_bytes_per_token, 0)


@dataclass(frozen=True, slots=True)
class StarterCost:
    """Embedding, final norm, head and sampling: paid on the starter for every step, whoever holds the blocks.

    `bytes` come off the starter's memory before any block does.
    """

    decode_s: float
    prefill_s: float
    bytes: int

    def __post_init__(self) -> None:
        _check_seconds("decode_s", self.decode_s)
        _check_seconds("prefill_s", self.prefill_s)
        _check_count("bytes", self.bytes, 0)


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What the model asks of memory, and the prompt for which the first token is predicted.

    `block_bytes` are one block's weights as stored; in memory they take `resident_factor` times as much.
    `kv_bytes_per_token` is for one block. `stage_bytes` is what any stage takes however few its blocks: graph, activations.
    """

    n_blocks: int
    block_bytes: int
    kv_bytes_per_token: int
    ctx: int
    slots: int
    stage_bytes: int
    chunk_tokens: int
    prompt_tokens: int = 128
    resident_factor: float = 1.0

    def __post_init__(self) -> None:
        for field in ("n_blocks", "block_bytes", "ctx", "slots", "chunk_tokens", "prompt_tokens"):
            _check_count(field, getattr(self, field), 1)
        for field in ("kv_bytes_per_token", "stage_bytes"):
            _check_count(field, getattr(self, field), 0)
        if not math.isfinite(self.resident_factor) or self.resident_factor <= 0:
            raise UserError(f"resident_factor must be more than 0, not {self.resident_factor}", hint=_MEASURE_AGAIN)

    @property
    def resident_block_bytes(self) -> int:
        """One block in memory: its weights and its KV cache."""
        return math.ceil(self.block_bytes * self.resident_factor) + self.kv_bytes_per_token * self.ctx * self.slots

    @property
    def prompt_chunks(self) -> int:
        return math.ceil(self.prompt_tokens / self.chunk_tokens)

    def memory_bytes(self, n_blocks: int) -> int:
        """What a stage of `n_blocks` takes; nothing for none."""
        return self.stage_bytes + n_blocks * self.resident_block_bytes if n_blocks > 0 else 0

    def block_limit(self, offered_bytes: int) -> int:
        """How many blocks fit in `offered_bytes`, at most all of them."""
        fit = (offered_bytes - self.stage_bytes) // self.resident_block_bytes
        return min(self.n_blocks, max(0, fit))


@dataclass(frozen=True, slots=True)
class LinkCost:
    """One way between two devices, for a decode-sized and a prefill-chunk-sized frame. `UNREACHABLE`: cannot be dialled."""

    decode_s: float
    prefill_s: float

    def __post_init__(self) -> None:
        if self.decode_s == self.prefill_s == math.inf:
            return
        _check_seconds("decode_s", self.decode_s)
        _check_seconds("prefill_s", self.prefill_s)


UNREACHABLE = LinkCost(decode_s=math.inf, prefill_s=math.inf)

# (from node id, to node id) -> cost, for every ordered pair of different nodes.
Links = Mapping[tuple[str, str], LinkCost]


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything the planner looks at. `nodes[0]` is the starter: its blocks run in its own process, without a hop."""

    model: ModelCost
    nodes: tuple[NodeCost, ...]
    starter: StarterCost
    links: Links

    def __post_init__(self) -> None:
        if not self.nodes:
            raise InternalError("a plan needs at least the starter's own device")
        ids = [node.node_id for node in self.nodes]
        if len(set(ids)) < len(ids):
            raise InternalError("two nodes of a plan have the same id")
        for sender in ids:
            for receiver in ids:
                if sender != receiver and (sender, receiver) not in self.links:
                    raise InternalError(f"no link cost from {sender} to {receiver}")

    def index(self, node_id: str) -> int:
        for index, node in enumerate(self.nodes):
            if node.node_id == node_id:
                return index
        raise InternalError(f"no node {node_id} in this plan's problem")

    def block_limit(self, index: int) -> int:
        """How many blocks node `index` can hold; the starter's embedding and head come first."""
        reserved_bytes = self.starter.bytes if index == 0 else 0
        return self._model_on(index).block_limit(self.nodes[index].memory_bytes - reserved_bytes)

    def bytes_needed(self, index: int, n_blocks: int) -> int:
        """What node `index` takes for `n_blocks`, with embedding and head on the starter."""
        return self._model_on(index).memory_bytes(n_blocks) + (self.starter.bytes if index == 0 else 0)

    def _model_on(self, index: int) -> ModelCost:
        """The model as node `index` holds it."""
        kv_bytes = self.nodes[index].kv_bytes_per_token
        return self.model if kv_bytes is None else replace(self.model, kv_bytes_per_token=kv_bytes)
