"""Packs of random weights in a model's shape and format: speed depends on the shape, not on the values.

They are written without hash and fsync: a file that is deleted within seconds mostly never reaches the disk, or a Pi's card.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mdi.errors import UserError
from mdi.model.config import ModelConfig
from mdi.model.kv import KEY_SCALES, VALUE_SCALES
from mdi.model.layout import Stored, block_layout
from mdi.model.linear import BLOCK_SIZES
from mdi.model.packs import ALIGNMENT, Pack, PackedPart, PackKind, PackTensor, clear_stale, packed_parts
from mdi.model.quantise import WeightFormat
from mdi.profile.memory import format_bytes

NOISE_VALUES = 1 << 20  # written over and over: 4 MiB of fp32 or 1 MiB of codes
PREFIX = "mdi-profile-"


@contextmanager
def scratch_directory(needed_bytes: int, parent: Path | None = None) -> Iterator[Path]:
    """A temporary directory that is gone afterwards, whatever happens; after a kill, the next measurement clears it away.

    Raises UserError when it cannot hold `needed_bytes`.
    """
    parent = parent or Path(tempfile.gettempdir())
    hint = f"free {format_bytes(needed_bytes)} there, or set TMPDIR to a directory with more room"
    try:
        clear_stale(parent, PREFIX)
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent) as name:
            directory = Path(name)
            if shutil.disk_usage(directory).free < needed_bytes:
                raise UserError(f"{parent} has no room for the weights to measure with", hint=hint)
            yield directory
    except OSError as error:
        raise UserError(f"the weights to measure with cannot be written: {error.strerror}", hint=hint) from error


def block_packs(directory: Path, config: ModelConfig, fmt: WeightFormat, n_blocks: int) -> list[Pack]:
    """The model's first `n_blocks`, each in a file of its own."""
    return [_block_pack(directory / f"block-{i}", config, fmt, i) for i in range(n_blocks)]


def _block_pack(path: Path, config: ModelConfig, fmt: WeightFormat, block: int) -> Pack:
    linears: dict[str, tuple[int, int]] = {}
    plain: dict[str, tuple[int, ...]] = dict.fromkeys((KEY_SCALES, VALUE_SCALES), (config.n_kv_heads * config.head_dim,))
    for placed in block_layout(config, block):
        match placed.part.stored, placed.shape:
            case (Stored.LINEAR, (n, k)):
                linears[placed.part.name] = n, k
            case (Stored.EXPERTS, (n_experts, n, k)):
                linears[placed.part.name] = n_experts * n, k
            case _:
                plain[placed.part.name] = placed.shape
    return write_pack(path, PackKind.BLOCK, fmt, linears, plain, seed=block)


def attention_only(config: ModelConfig, n_blocks: int) -> ModelConfig:
    """Blocks with the model's attention and next to nothing behind it."""
    narrow = thin(config, n_blocks)
    return replace(
        narrow,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        windowed_blocks=tuple(block for block in config.windowed_blocks if block < n_blocks),
        unrotated_blocks=tuple(block for block in config.unrotated_blocks if block < n_blocks),
    )


def thin(config: ModelConfig, n_blocks: int) -> ModelConfig:
    """The same residual stream with next to no work in its blocks: one head, and the narrowest feed-forward part, or one small expert."""
    experts = config.experts and replace(
        config.experts, n_experts=1, n_chosen=1, d_ffn=min(config.experts.d_ffn, max(BLOCK_SIZES))
    )
    return replace(
        config,
        n_blocks=n_blocks,
        n_heads=1,
        n_kv_heads=1,
        d_ffn=min(config.d_ffn, 32),
        experts=experts,
        windowed_blocks=(),
        unrotated_blocks=(),
        sparse_blocks=tuple(range(n_blocks)) if config.sparse_blocks else (),
    )


def head_pack(directory: Path, config: ModelConfig, fmt: WeightFormat) -> Pack:
    linears = {"head": (config.vocab_size, config.d_model)}
    return write_pack(directory / "head", PackKind.HEAD, fmt, linears, {"norm": (config.d_model,)})


def embedding_pack(directory: Path, n_tokens: int, d_model: int) -> Pack:
    """An embedding of `n_tokens` tokens in fp16."""
    table = np.random.default_rng(0).standard_normal((n_tokens, d_model)).astype(np.float16)
    path = directory / "embedding"
    path.write_bytes(table.tobytes())
    return Pack(path, PackKind.EMBEDDING, {"embedding": PackTensor("F16", table.shape, 0, table.nbytes)}, {})


def write_pack(
    path: Path,
    kind: PackKind,
    fmt: WeightFormat,
    linears: Mapping[str, tuple[int, int]],
    plain: Mapping[str, tuple[int, ...]],
    *,
    seed: int = 0,
) -> Pack:
    """One pack file: random `linears` by their [N, K], and `plain` fp32 tensors: vectors are ones, matrices random.

    Packs of one stage need seeds of their own: onnxruntime keeps equal weights once, and blocks that share theirs would be read from the
    cache (the 1B shape 25 % too fast).

    The product of unit-variance rows with a linear has unit variance again, so activations stay finite through many of them.
    """
    rng = np.random.default_rng(seed)
    codes, values = rng.bytes(NOISE_VALUES), rng.standard_normal(NOISE_VALUES, dtype=np.float32)
    tensors: dict[str, PackTensor] = {}
    parts: dict[str, tuple[PackedPart, ...]] = {}
    with path.open("wb") as file:
        for name, shape in plain.items():
            pattern = np.ones(1, np.float32) if len(shape) == 1 else values / np.float32(math.sqrt(shape[-1]))
            tensors[name] = _write(file, "F32", shape, pattern.tobytes())
        for name, (n, k) in linears.items():
            noise = (values / np.float32(math.sqrt(k))).tobytes()
            deviation = (1 << fmt.bits) / math.sqrt(12)  # of a uniform code
            scale = np.full(1, 1 / (deviation * math.sqrt(k)), np.float32).tobytes()
            patterns = {"weight": noise, "codes": codes, "scales": scale}
            parts[name] = packed_parts(name, [fmt.part(n, k)])
            for suffix, (dtype, shape) in parts[name][0].part.tensors().items():
                tensors[f"{name}.{suffix}"] = _write(file, dtype, shape, patterns[suffix])
    return Pack(path, kind, tensors, parts)


def _write(file: BinaryIO, dtype: str, shape: tuple[int, ...], pattern: bytes) -> PackTensor:
    """A tensor filled with `pattern` over and over, on a cache line of its own."""
    file.write(bytes(-file.tell() % ALIGNMENT))
    offset = file.tell()
    n_bytes = math.prod(shape) * (4 if dtype == "F32" else 1)
    if len(pattern) < NOISE_VALUES:
        pattern *= -(-min(n_bytes, NOISE_VALUES) // len(pattern))
    for start in range(0, n_bytes, len(pattern)):
        file.write(memoryview(pattern)[: n_bytes - start])
    return PackTensor(dtype, shape, offset, n_bytes)
