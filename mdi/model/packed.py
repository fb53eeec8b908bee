"""A model as packs: converted once from its checkpoint, then known by a manifest of content hashes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError, UserError
from mdi.model.calibration import Calibration, HiddenState, Observer, Squares, Tensors, normed_squares, random_tokens
from mdi.model.config import ModelConfig
from mdi.model.kv import scale_bytes
from mdi.model.layout import Part, PlacedPart, Stored, block_layout, check_format
from mdi.model.linear import Linear, Quantised, dequantise, fuse, take_turns
from mdi.model.linear import Part as LinearRows
from mdi.model.packs import Pack, PackKind, PackRef, open_pack, write_pack
from mdi.model.quantise import WeightFormat, quantise
from mdi.model.resume import PartLog
from mdi.model.weights import WeightSource

MANIFEST_VERSION = 2

Progress = Callable[[int, int], None]  # parts done, parts in all


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A model's shape, its weights' format, and which pack holds what."""

    config: ModelConfig
    fmt: WeightFormat
    embedding: PackRef
    head: PackRef
    blocks: tuple[PackRef, ...]

    def __post_init__(self) -> None:
        if len(self.blocks) != self.config.n_blocks:
            raise ModelError(f"a manifest names {len(self.blocks)} blocks of a model that has {self.config.n_blocks}")

    @property
    def refs(self) -> tuple[PackRef, ...]:
        return (self.embedding, *self.blocks, self.head)

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block: what a plan must reckon with."""
        return max(ref.n_bytes for ref in self.blocks)

    def to_json(self) -> dict[str, Any]:
        def ref(value: PackRef) -> list[Any]:
            return [value.sha256, value.n_bytes]

        return {
            "version": MANIFEST_VERSION,
            "config": json.loads(self.config.to_json()),
            "format": self.fmt.to_json(),
            "embedding": ref(self.embedding),
            "head": ref(self.head),
            "blocks": [ref(block) for block in self.blocks],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PackedModel:
        return cls(
            ModelConfig.from_json(json.dumps(data["config"])),
            WeightFormat.from_json(data["format"]),
            PackRef(*data["embedding"]),
            PackRef(*data["head"]),
            tuple(PackRef(*block) for block in data["blocks"]),
        )


def prepare(
    source: WeightSource,
    fmt: WeightFormat,
    packs_directory: Path,
    progress: Progress | None = None,
    observer: Observer | None = None,
    *,
    weighed: bool = True,
    kv_scales: bool = True,
) -> PackedModel:
    """The model's packs: those made before if all are there, else made now.

    With an observer (`calibration.py`), packs hold scales for KV in 8 bits, and if `weighed`, floats become 4 bits weighed by what it sees.
    It is not used where no weights are to be weighed and no `kv_scales` are wanted.

    Reads tensor by tensor. Raises ModelError for a damaged checkpoint, a format that does not suit it, or too little disk room. Whatever
    happens, only whole packs remain, and the next call goes on with those: one that was killed loses the part at hand.
    """
    weighed = weighed and observer is not None and fmt.bits == 4 and not source.quantised
    if not (weighed or kv_scales):
        observer = None
    name = f"{source.fingerprint()}-{fmt.name}{'-weighed' if weighed else ''}{'-kv' if observer else ''}"
    path = packs_directory / f"{name}.json"
    if (known := _read_manifest(path, packs_directory)) is not None:
        return known
    check_format(source.config, fmt)
    packs_directory.mkdir(parents=True, exist_ok=True)
    log, state = PartLog(packs_directory / f"{name}.parts"), HiddenState(packs_directory / f"{name}.hidden")
    _check_room(source, fmt, packs_directory, log.n_bytes)
    conversion = _Conversion(source, fmt, packs_directory, log, state, observer, weighed)
    packed = conversion.run(progress or (lambda done, total: None))
    whole = packs_directory / f"{name}.partial"
    whole.write_text(json.dumps(packed.to_json()))
    whole.replace(path)
    log.close()
    state.remove()
    return packed


def _read_manifest(path: Path, packs_directory: Path) -> PackedModel | None:
    try:
        data = json.loads(path.read_text())
        packed = PackedModel.from_json(data) if data["version"] == MANIFEST_VERSION else None
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None  # a manifest only saves time: made again from the checkpoint
    if packed and all(_has(packs_directory, ref) for ref in packed.refs):
        return packed
    return None


def _has(packs_directory: Path, ref: PackRef) -> bool:
    path = packs_directory / ref.filename
    return path.is_file() and path.stat().st_size == ref.n_bytes


@dataclass(frozen=True, slots=True)
class _Conversion:
    """Makes the packs that the log does not have."""

    source: WeightSource
    fmt: WeightFormat
    directory: Path
    log: PartLog
    state: HiddenState
    observer: Observer | None
    weighed: bool

    def run(self, progress: Progress) -> PackedModel:
        config = self.source.config
        blocks = [f"block {index}" for index in range(config.n_blocks)]
        total = len(blocks) + 2
        progress(0, total)
        embedding = self._part("embedding", lambda: _write_embedding(self.source, self.directory))
        calibration = self._calibration(embedding)
        for index, part in enumerate(blocks):
            progress(index + 1, total)
            self._part(part, partial(self._write_block, index, calibration))
        progress(total - 1, total)
        head = self._part("head", partial(self._write_head, calibration))
        progress(total, total)
        return PackedModel(config, self.fmt, embedding, head, tuple(self.log.made[part] for part in blocks))

    def _part(self, part: str, make: Callable[[], PackRef]) -> PackRef:
        if part not in self.log.made:
            self.log.add(part, make())
        return self.log.made[part]

    def _calibration(self, embedding: PackRef) -> Calibration | None:
        if self.observer is None:
            return None
        config = self.source.config
        table = Embedding(open_pack(self.directory / embedding.filename), config.embedding_scale)
        start = table.rows(random_tokens(config.vocab_size))
        return Calibration(self.observer, start, self._reference, self.state, self.directory)

    def _reference(self, block: int) -> Tensors:
        return block_tensors(self.source, block, WeightFormat(8, self.fmt.block) if self.weighed else self.fmt)

    def _write_block(self, index: int, calibration: Calibration | None) -> PackRef:
        if calibration is None:
            return write_pack(self.directory, PackKind.BLOCK, block_tensors(self.source, index, self.fmt))
        if self.weighed:
            seen = calibration.seen(index)
            tensors = block_tensors(self.source, index, self.fmt, seen.squares)
        else:
            tensors = self._reference(index)
            seen = calibration.seen(index, tensors)
        return write_pack(self.directory, PackKind.BLOCK, {**tensors, **seen.kv.tensors()})

    def _write_head(self, calibration: Calibration | None) -> PackRef:
        config, norm, squares = self.source.config, self.source.norm(self.source.final_norm), None
        if calibration is not None and self.weighed:
            squares = normed_squares(calibration.before(config.n_blocks), norm, config.norm_eps)
        matrix = fuse(linear_parts(self.source, self.source.head, self.fmt, squares))
        return write_pack(self.directory, PackKind.HEAD, {"norm": norm, "head": matrix})


def _write_embedding(source: WeightSource, directory: Path) -> PackRef:
    table = source.table(source.embedding)
    if isinstance(table, Quantised):
        return write_pack(directory, PackKind.EMBEDDING, {"embedding": (table,)})
    values, dtype = table
    bf16 = frozenset({"embedding"} if dtype == "BF16" else ())
    return write_pack(directory, PackKind.EMBEDDING, {"embedding": values}, bf16=bf16)


def float_format(source: WeightSource, fmt: WeightFormat) -> WeightFormat:
    """What floats become. Those that a quantised file left as floats are sensitive: they get 8 bits where `fmt` says 4."""
    return WeightFormat(8, fmt.block) if source.quantised and fmt.bits == 4 else fmt


def linear_parts(source: WeightSource, name: str, fmt: WeightFormat, squares: NDArray[np.float32] | None = None) -> Linear:
    """One matrix: parts that come as codes stay as they are, those that come as floats are rounded.

    `squares` [K] are the mean squares of what it reads, if they are known.
    """
    fmt = float_format(source, fmt)

    def as_asked(part: LinearRows) -> LinearRows:
        return part if isinstance(part, Quantised) else _rounded(part, fmt, squares)

    return tuple(as_asked(part) for part in source.linear(name))


def block_tensors(source: WeightSource, block: int, fmt: WeightFormat, squares: Squares | None = None) -> Tensors:
    """One block's pack, as `layout.py` has it. At most one part is in memory in fp32, and of experts one."""
    names, squares = source.block_tensors(block), squares or {}

    def plain(part: Part) -> NDArray[np.float32]:
        read = source.norm if part.stored is Stored.NORM else source.tensor
        return _stacked([read(names[role]) for role in part.roles if role in names])

    def fused(part: Part) -> Linear:
        seen = squares.get(part.name)
        return fuse([rows for role in part.roles if role in names for rows in linear_parts(source, names[role], fmt, seen)])

    tensors: dict[str, NDArray[Any] | Linear] = {}
    for placed in block_layout(source.config, block):
        match placed.part.stored:
            case Stored.NORM | Stored.PLAIN:
                tensors[placed.part.name] = plain(placed.part)
            case Stored.LINEAR:
                tensors[placed.part.name] = fused(placed.part)
            case Stored.EXPERTS:
                tensors[placed.part.name] = _expert_rows(source, block, placed, fmt, squares.get(placed.part.name))
    return tensors


def experts_format(source: WeightSource, block: int) -> WeightFormat | None:
    """The form of the file's own codes, where all experts of a sparse block have one that the kernel takes; else they are rounded."""
    experts, found = source.config.experts, set()
    for expert in range(experts.n_experts if experts is not None else 0):
        for name in source.expert_tensors(block, expert).values():
            parts = source.forms(name)
            if parts is None or not all(part.only_scaled for part in parts):
                return None
            found |= {WeightFormat(part.bits, part.block) for part in parts}
            if len(found) > 1:
                return None
    return found.pop() if found else None


def experts_rounded(source: WeightSource) -> bool:
    """Whether some experts come as codes that are not kept: their kernel has no such form."""
    if not source.quantised:
        return False
    firsts = ((block, source.expert_tensors(block, 0).values()) for block in source.config.sparse_blocks)
    return any(any(map(source.forms, names)) and experts_format(source, block) is None for block, names in firsts)


def _expert_rows(
    source: WeightSource, block: int, placed: PlacedPart, fmt: WeightFormat, squares: NDArray[np.float32] | None
) -> Linear:
    """One linear layer of all experts' rows, one expert after another; rows of different roles take turns."""
    kept, experts = experts_format(source, block) is not None, []
    for expert in range(placed.shape[0]):
        names = source.expert_tensors(block, expert)
        matrices = [source.linear(names[role]) for role in placed.part.roles]
        if kept:
            experts.append(take_turns([part for (part,) in matrices]))
        else:
            floats = take_turns([_stacked([dequantise(part) for part in parts]) for parts in matrices])
            assert isinstance(floats, np.ndarray)
            experts.append(_rounded(floats, fmt, squares))
    return fuse(experts)


def _rounded(weight: NDArray[np.float32], fmt: WeightFormat, squares: NDArray[np.float32] | None) -> LinearRows:
    return quantise(weight, fmt, squares) if fmt.quantised else weight


def _stacked(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def packed_bytes(config: ModelConfig, fmt: WeightFormat) -> tuple[int, int]:
    """Bytes of the largest block, with its scales for KV, and of the head in a format, to within the file headers."""
    kinds = {block in config.sparse_blocks: block for block in range(config.n_blocks)}
    block = max(sum(placed.n_bytes(fmt) for placed in block_layout(config, block)) for block in kinds.values())
    return block + scale_bytes(config.n_kv_heads, config.head_dim), fmt.linear_bytes(
        config.vocab_size, config.d_model
    ) + 4 * config.d_model


def decode_bytes(config: ModelConfig, fmt: WeightFormat) -> float:
    """Bytes of weights that one token reads of a block, on average over the blocks: of experts, only those that are chosen."""
    n_sparse = len(config.sparse_blocks)
    kinds = {block in config.sparse_blocks: block for block in range(config.n_blocks)}
    total = sum(
        (n_sparse if sparse else config.n_blocks - n_sparse)
        * sum(_read_bytes(config, placed, fmt) for placed in block_layout(config, block))
        for sparse, block in kinds.items()
    )
    return total / config.n_blocks


def _read_bytes(config: ModelConfig, placed: PlacedPart, fmt: WeightFormat) -> float:
    share = (
        config.experts.n_chosen / config.experts.n_experts if placed.part.stored is Stored.EXPERTS and config.experts else 1.0
    )
    return share * placed.n_bytes(fmt)


def source_bytes(source: WeightSource, fmt: WeightFormat) -> tuple[int, int]:
    """Bytes of the largest block and of the head, as `packed_bytes`, where a source has forms of its own for some matrices."""
    config = source.config

    def matrix(name: str, rows: int, columns: int) -> int:
        forms = source.forms(name)
        return float_format(source, fmt).linear_bytes(rows, columns) if forms is None else sum(part.n_bytes for part in forms)

    def one(block: int, placed: PlacedPart) -> int:
        names, shapes = source.block_tensors(block), config.block_shapes(block)
        if placed.part.stored is Stored.EXPERTS:
            return placed.n_bytes(experts_format(source, block) or fmt)
        if placed.part.stored is not Stored.LINEAR:
            return placed.n_bytes(fmt)
        return sum(matrix(names[role], *shapes[role]) for role in placed.part.roles if role in names)

    largest = max(sum(one(block, placed) for placed in block_layout(config, block)) for block in range(config.n_blocks))
    largest += scale_bytes(config.n_kv_heads, config.head_dim)
    return largest, matrix(source.head, config.vocab_size, config.d_model) + 4 * config.d_model


def _check_room(source: WeightSource, fmt: WeightFormat, directory: Path, made_bytes: int) -> None:
    config, (block, head) = source.config, source_bytes(source, fmt)
    needed = config.n_blocks * block + head + 4 * config.vocab_size * config.d_model - made_bytes
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ModelError(
            f"the packs of this model need {needed / 2**30:.1f} GiB, and {directory} has {free / 2**30:.1f} GiB left",
            hint="free some room, set MDI_HOME to a larger disk, or choose --quant int4",
        )


class Embedding:
    """Token embeddings, read row by row from the mapped pack: only rows that are used take memory."""

    def __init__(self, pack: Pack, scale: float) -> None:
        """`scale` is the model's `embedding_scale`."""
        if pack.kind is not PackKind.EMBEDDING:
            raise ModelError(f"pack {pack.path.name} is no embedding")
        self._codes = _single_part(pack) if "embedding" in pack.linears else None
        if self._codes is None:
            self._table = pack.read("embedding")
            self._bf16 = pack.tensors["embedding"].dtype == "BF16"
        self._scale = np.float32(scale)

    def rows(self, token_ids: list[int]) -> NDArray[np.float32]:
        """[T] token ids to [T, d_model]."""
        if self._codes is not None:
            rows = dequantise(self._codes.take(np.array(token_ids, np.int64)))
        else:
            rows = self._table[token_ids]
            rows = (rows.astype(np.uint32) << 16).view(np.float32) if self._bf16 else rows.astype(np.float32)
        return rows if self._scale == 1 else rows * self._scale


def _single_part(pack: Pack) -> Quantised:
    match pack.linear("embedding"):
        case (Quantised() as part,):
            return part
    raise ModelError(f"pack {pack.path.name} holds an embedding in a form that is not known")


def open_packs(packed: PackedModel, directory: Path, start: int, stop: int) -> list[Pack]:
    """The packs of blocks `[start, stop)`."""
    return [open_pack(directory / ref.filename) for ref in packed.blocks[start:stop]]
