"""A model as packs: converted once from its checkpoint, then known by a manifest of content hashes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.checkpoint import Checkpoint
from mdi.model.config import ModelConfig
from mdi.model.layout import Part, PlacedPart, Stored, block_layout, check_format
from mdi.model.packs import Pack, PackKind, PackRef, linear_tensors, open_pack, write_pack
from mdi.model.quantise import WeightFormat

MANIFEST_VERSION = 1

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


def prepare(checkpoint: Checkpoint, fmt: WeightFormat, packs_directory: Path, progress: Progress | None = None) -> PackedModel:
    """The checkpoint's packs: those made before if all are there, else made now.

    Reads tensor by tensor. Raises ModelError for a damaged checkpoint, a format that does not suit it, or too little disk room;
    whatever happens, only whole packs remain.
    """
    path = packs_directory / f"{checkpoint.fingerprint()}-int{fmt.bits}-{fmt.block}.json"
    if (known := _read_manifest(path, packs_directory)) is not None:
        return known
    check_format(checkpoint.config, fmt)
    packs_directory.mkdir(parents=True, exist_ok=True)
    _check_room(checkpoint.config, fmt, packs_directory)
    packed = _convert(checkpoint, fmt, packs_directory, progress or (lambda done, total: None))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(packed.to_json()))
    partial.replace(path)
    return packed


def _read_manifest(path: Path, packs_directory: Path) -> PackedModel | None:
    try:
        data = json.loads(path.read_text())
        packed = PackedModel.from_json(data) if data["version"] == MANIFEST_VERSION else None
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        return None  # a manifest only saves time: made again from the checkpoint
    if packed and all(_has(packs_directory, ref) for ref in packed.refs):
        return packed
    return None


def _has(packs_directory: Path, ref: PackRef) -> bool:
    path = packs_directory / ref.filename
    return path.is_file() and path.stat().st_size == ref.n_bytes


def _convert(checkpoint: Checkpoint, fmt: WeightFormat, directory: Path, progress: Progress) -> PackedModel:
    config, total = checkpoint.config, checkpoint.config.n_blocks + 2
    progress(0, total)
    embedding, dtype = checkpoint.raw(checkpoint.embedding)
    bf16 = frozenset({"embedding"} if dtype == "BF16" else ())
    embedding_ref = write_pack(directory, PackKind.EMBEDDING, fmt, {"embedding": embedding}, bf16=bf16)
    progress(1, total)
    blocks = []
    for block in range(config.n_blocks):
        blocks.append(write_pack(directory, PackKind.BLOCK, fmt, block_tensors(checkpoint, block, fmt)))
        progress(block + 2, total)
    head = {"norm": checkpoint.norm(checkpoint.final_norm)} | linear_tensors("head", checkpoint.tensor(checkpoint.head), fmt)
    head_ref = write_pack(directory, PackKind.HEAD, fmt, head)
    progress(total, total)
    return PackedModel(config, fmt, embedding_ref, head_ref, tuple(blocks))


def block_tensors(checkpoint: Checkpoint, block: int, fmt: WeightFormat) -> dict[str, NDArray[Any]]:
    """One block's pack, as `layout.py` has it. At most one part is in memory in fp32, and of experts one."""
    names = checkpoint.block_tensors(block)

    def plain(part: Part) -> dict[str, NDArray[Any]]:
        read = checkpoint.norm if part.stored is Stored.NORM else checkpoint.tensor
        return {part.name: _stacked([read(names[role]) for role in part.roles if role in names])}

    def fused(part: Part) -> dict[str, NDArray[Any]]:
        return linear_tensors(
            part.name, _stacked([checkpoint.tensor(names[role]) for role in part.roles if role in names]), fmt
        )

    tensors: dict[str, NDArray[Any]] = {}
    for placed in block_layout(checkpoint.config, block):
        match placed.part.stored:
            case Stored.NORM | Stored.PLAIN:
                tensors |= plain(placed.part)
            case Stored.LINEAR:
                tensors |= fused(placed.part)
            case Stored.EXPERTS:
                tensors |= _expert_tensors(checkpoint, block, placed, fmt)
    return tensors


def _expert_tensors(checkpoint: Checkpoint, block: int, placed: PlacedPart, fmt: WeightFormat) -> dict[str, NDArray[Any]]:
    """One linear layer of all experts' rows, one expert after another; rows of different roles take turns."""
    found: dict[str, NDArray[Any]] = {}
    n_experts = placed.shape[0]
    for expert in range(n_experts):
        names = checkpoint.expert_tensors(block, expert)
        weights = np.stack([checkpoint.tensor(names[role]) for role in placed.part.roles], axis=1)  # [N, roles, K]
        one = linear_tensors(placed.part.name, weights.reshape(-1, weights.shape[-1]), fmt)
        for name, array in one.items():
            rows = found.setdefault(name, np.empty((n_experts * len(array), *array.shape[1:]), array.dtype))
            rows[expert * len(array) : (expert + 1) * len(array)] = array
    return found


def _stacked(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def packed_bytes(config: ModelConfig, fmt: WeightFormat) -> tuple[int, int]:
    """Bytes of the largest block and of the head in a format, to within the file headers."""
    kinds = {block in config.sparse_blocks: block for block in range(config.n_blocks)}
    block = max(sum(placed.n_bytes(fmt) for placed in block_layout(config, block)) for block in kinds.values())
    return block, fmt.linear_bytes(config.vocab_size, config.d_model) + 4 * config.d_model


def _check_room(config: ModelConfig, fmt: WeightFormat, directory: Path) -> None:
    block, head = packed_bytes(config, fmt)
    needed = config.n_blocks * block + head + 4 * config.vocab_size * config.d_model
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
        self._table = pack.read("embedding")
        self._bf16 = pack.tensors["embedding"].dtype == "BF16"
        self._scale = np.float32(scale)

    def rows(self, token_ids: list[int]) -> NDArray[np.float32]:
        """[T] token ids to [T, d_model]."""
        rows = self._table[token_ids]
        rows = (rows.astype(np.uint32) << 16).view(np.float32) if self._bf16 else rows.astype(np.float32)
        return rows if self._scale == 1 else rows * self._scale


def open_packs(packed: PackedModel, directory: Path, start: int, stop: int) -> list[Pack]:
    """The packs of blocks `[start, stop)`."""
    return [open_pack(directory / ref.filename) for ref in packed.blocks[start:stop]]
