"""What was measured, in the planner's words: the input of every solver. Times are seconds, memory is bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from mdi.errors import InternalError, UserError

MEASURED_CONTEXT = 128  # tokens in KV when a decode step is measured

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
    """One device. `memory_bytes` is what it offers to this model. Times are for one block of it.

    `decode` was measured for one row with MEASURED_CONTEXT tokens before it, `prefill` for one chunk of `ModelCost.chunk_tokens` rows at
    the start of a conversation. `decode_kv_s` is what each token of context adds to each row of a decode step, `prefill_kv_s` the same
    for each row of a chunk: reading KV bounds the first, arithmetic the second.
    `kv_bytes_per_token`, for one block, is there where the device keeps KV in another type than `ModelCost` says.
    """

    node_id: str
    name: str
    memory_bytes: int
    decode: StageTime
    prefill: StageTime
    on_battery: bool = False  # as far as the device tells
    decode_kv_s: float = 0.0
    prefill_kv_s: float = 0.0
    kv_bytes_per_token: int | None = None

    def __post_init__(self) -> None:
        _check_seconds("decode_kv_s", self.decode_kv_s)
        _check_seconds("prefill_kv_s", self.prefill_kv_s)
        if not self.node_id or not self.name:
            raise InternalError("a node needs an id and a name")
        _check_count("memory_bytes", self.memory_bytes, 0)
        if self.kv_bytes_per_token is not None:
            _check_count("kv_bytes_per_token", self.kv_bytes_per_token, 0)


@dataclass(frozen=True, slots=True)
class StarterCost:
    """Embedding, final norm, head and sampling: paid on the starter, whoever holds the blocks: `decode_s` in every step of one row,
    `prefill_s` once for a prompt, since only its last token is wanted.

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
    window_tokens: int | None = None  # what blocks with a window see at most
    windowed_share: float = 0.0  # of the blocks

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

    def chunk_sizes(self, prompt_tokens: int) -> list[int]:
        """The rows of each chunk of a prompt."""
        whole, rest = divmod(prompt_tokens, self.chunk_tokens)
        return [self.chunk_tokens] * whole + ([rest] if rest else [])

    def seen_tokens(self, context_tokens: float) -> float:
        """How much of a context a block looks at, on average over the blocks."""
        if self.window_tokens is None:
            return context_tokens
        return context_tokens + self.windowed_share * (min(context_tokens, self.window_tokens) - context_tokens)

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


class LinkTable(Mapping[tuple[str, str], LinkCost]):
    """`Links` kept as two matrices [from, to] over `ids`: a thousand nodes have a million links."""

    def __init__(self, ids: tuple[str, ...], decode_s: NDArray[np.float64], prefill_s: NDArray[np.float64]) -> None:
        size = (len(ids), len(ids))
        if decode_s.shape != size or prefill_s.shape != size or not (decode_s.min() >= 0 and prefill_s.min() >= 0):
            raise InternalError(f"links between {len(ids)} nodes are {len(ids)} by {len(ids)} times, none negative")
        self.ids = ids
        self.decode_s = decode_s
        self.prefill_s = prefill_s
        self._index = {node_id: index for index, node_id in enumerate(ids)}

    def __getitem__(self, pair: tuple[str, str]) -> LinkCost:
        sender, receiver = self._index[pair[0]], self._index[pair[1]]
        if sender == receiver:
            raise KeyError(pair)
        return LinkCost(float(self.decode_s[sender, receiver]), float(self.prefill_s[sender, receiver]))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return permutations(self.ids, 2)

    def __len__(self) -> int:
        return len(self.ids) * (len(self.ids) - 1)

    def among(self, ids: tuple[str, ...]) -> LinkTable:
        """Those between some of the nodes."""
        chosen = [self._index[node_id] for node_id in ids]
        square = np.ix_(chosen, chosen)
        return LinkTable(ids, self.decode_s[square], self.prefill_s[square])


@dataclass(frozen=True, slots=True)
class Load:
    """What a decode step carries: a row for each of `rows` conversations, each with `context_tokens` before it."""

    rows: int = 1
    context_tokens: int = MEASURED_CONTEXT

    def __post_init__(self) -> None:
        _check_count("rows", self.rows, 1)
        _check_count("context_tokens", self.context_tokens, 0)


ONE_ROW = Load()


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything the planner looks at. `nodes[0]` is the starter: its blocks run in its own process, without a hop.

    `load` is what plans are made for. The formulas of the times are in docs/planning.md.
    """

    model: ModelCost
    nodes: tuple[NodeCost, ...]
    starter: StarterCost
    links: Links
    load: Load = ONE_ROW

    def __post_init__(self) -> None:
        if not self.nodes:
            raise InternalError("a plan needs at least the starter's own device")
        ids = [node.node_id for node in self.nodes]
        if len(set(ids)) < len(ids):
            raise InternalError("two nodes of a plan have the same id")
        if isinstance(self.links, LinkTable) and self.links.ids == tuple(ids):
            return
        for sender in ids:
            for receiver in ids:
                if sender != receiver and (sender, receiver) not in self.links:
                    raise InternalError(f"no link cost from {sender} to {receiver}")

    def index(self, node_id: str) -> int:
        for index, node in enumerate(self.nodes):
            if node.node_id == node_id:
                return index
        raise InternalError(f"no node {node_id} in this plan's problem")

    def row_share(self, rows: float) -> float:
        """Where `rows` lie between a step of one row (0) and a chunk (1), for what grows with the rows of a step.

        A straight line from one row on: with int4 weights in huge pages, 1, 2, 3, 4, 8, 16, 32 and 64 rows took 1, 1.4, 1.9, 2.2, 4.0, 7.0,
        13.5 and 27 times as long (6 blocks of the 1B shape, 1 thread of an AMD EPYC), where the line says 1, 1.4, 1.8, 2.2, 3.9, 7.2,
        13.9 and 27. Heads did the same.
        """
        return max(0.0, rows - 1) / max(1, self.model.chunk_tokens - 1)

    def decode_time(self, index: int, rows: float, context_tokens: float) -> StageTime:
        """A step of `rows` rows of different conversations on node `index`."""
        node, model = self.nodes[index], self.model
        more_tokens = max(0.0, model.seen_tokens(context_tokens) - model.seen_tokens(MEASURED_CONTEXT))
        return self._grown(node, rows, rows * more_tokens * node.decode_kv_s)

    def prefill_time(self, index: int, rows: float, context_tokens: float) -> StageTime:
        """A chunk of `rows` rows behind `context_tokens` of the same prompt on node `index`."""
        node = self.nodes[index]
        return self._grown(node, rows, rows * self.model.seen_tokens(context_tokens) * node.prefill_kv_s)

    def step_time(self, index: int, spans: Sequence[tuple[int, int]]) -> StageTime:
        """A step with `spans` of (rows, tokens before them), one for each conversation: single rows and chunks of prompts together."""
        node, model = self.nodes[index], self.model
        measured = model.seen_tokens(MEASURED_CONTEXT)
        kv_s = sum(
            max(0.0, model.seen_tokens(context) - measured) * node.decode_kv_s
            if rows == 1
            else rows * model.seen_tokens(context) * node.prefill_kv_s
            for rows, context in spans
        )
        return self._grown(node, sum(rows for rows, _ in spans), kv_s)

    def _grown(self, node: NodeCost, rows: float, kv_s: float) -> StageTime:
        share = self.row_share(rows)

        def between(decode_s: float, prefill_s: float) -> float:
            return decode_s + share * max(0.0, prefill_s - decode_s)

        return StageTime(
            between(node.decode.overhead_s, node.prefill.overhead_s), between(node.decode.block_s, node.prefill.block_s) + kv_s
        )

    def head_s(self, rows: float) -> float:
        """Embedding, head and sampling of a step: they grow with its rows as the starter's blocks do."""
        node = self.nodes[0]
        return self.starter.decode_s * (1 + self.row_share(rows) * max(0.0, node.prefill.block_s / node.decode.block_s - 1))

    def hop_s(self, sender: str, receiver: str, rows: float) -> float:
        """A frame of `rows` rows; infinite where there is no way."""
        link = self.links[sender, receiver]
        if link.decode_s == math.inf:
            return math.inf
        share = max(0.0, rows - 1) / max(1, self.model.chunk_tokens - 1)
        return link.decode_s + share * max(0.0, link.prefill_s - link.decode_s)

    def hop_decode_s(self) -> NDArray[np.float64]:
        """Frames of the load's rows from node to node [from, to]; 0 from a node to itself."""
        ids = tuple(node.node_id for node in self.nodes)
        if isinstance(self.links, LinkTable):
            table = self.links if self.links.ids == ids else self.links.among(ids)
            share = (self.load.rows - 1) / max(1, self.model.chunk_tokens - 1)
            hop_s = table.decode_s.copy()
            if share:  # where there is no way, both are infinite
                more_s = np.subtract(table.prefill_s, hop_s, out=np.zeros_like(hop_s), where=np.isfinite(hop_s))
                hop_s += share * np.maximum(0.0, more_s)
            np.fill_diagonal(hop_s, 0.0)
            return hop_s
        rows = self.load.rows
        return np.array([[0.0 if a == b else self.hop_s(a, b, rows) for b in ids] for a in ids])

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
