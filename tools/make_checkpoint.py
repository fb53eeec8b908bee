"""Writes a Hugging Face directory with random weights in a real model's shape.

    python -m tools.make_checkpoint llama-3.2-1b DIR

Tensors are drawn and written in small pieces, so memory stays small whatever the model. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice, product
from pathlib import Path
from statistics import NormalDist
from string import ascii_lowercase
from typing import Any, BinaryIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mdi.errors import MdiError, UserError
from tools.shapes import BOS, CHAT_TEMPLATE, IM_END, MIN_VOCAB, SHAPES, SPECIAL_TOKENS, Shape, named_shape

DTYPES = {"bf16": ("BF16", "bfloat16", 2), "fp16": ("F16", "float16", 2), "fp32": ("F32", "float32", 4)}
EMBEDDING_STD = 0.02
PIECE_VALUES = 1 << 18  # drawn at once: 512 KiB of bf16 stay in the cache, and the allocator reuses them without page faults
DISK_MARGIN_BYTES = 1 << 28  # left free beside what is written


@dataclass(frozen=True, slots=True)
class Made:
    """What lies on disk now."""

    path: Path
    parameters: int
    size_bytes: int
    shards: int


def make_checkpoint(
    shape: Shape,
    directory: Path,
    *,
    dtype: str = "bf16",
    seed: int = 0,
    shard_bytes: int = 2 << 30,
    force: bool = False,
    show_progress: bool = False,
) -> Made:
    """Writes `shape` with random weights to `directory`, whole or not at all.

    Raises `UserError` where the directory exists (unless `force`), the disk is too full or `dtype` is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise UserError(f"{dtype!r} is not a kind of number that a checkpoint holds", hint=f"one of: {', '.join(DTYPES)}")
    shards = _shards(shape, dtype, shard_bytes)
    total_bytes = shape.parameters() * DTYPES[dtype][2]
    with new_path(directory, total_bytes, force=force) as partial:
        partial.mkdir()
        _write_json(partial / "config.json", shape.config(DTYPES[dtype][1]))
        _write_json(partial / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": IM_END, "do_sample": False})
        _write_tokenizer(partial, shape)
        with progress_bar(directory.name, total_bytes, show=show_progress) as advance:
            for number, names in enumerate(shards, 1):
                with (partial / _shard_name(number, len(shards))).open("wb") as file:
                    for written_bytes in _write_shard(file, names, dtype, seed):
                        advance(written_bytes)
        if len(shards) > 1:
            _write_index(partial, shards, total_bytes)
        size_bytes = sum(file.stat().st_size for file in partial.iterdir())
    return Made(directory, shape.parameters(), size_bytes, len(shards))


def random_values(shape: tuple[int, ...], *, std: float, dtype: str, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Normal values in pieces, flat, in the bits of `dtype`: uniform 16-bit codes index a table of the normal's quantiles.

    A table look-up is 20 times faster than drawing normals, and 65,536 steps are finer than bf16's own.
    """
    table = _normal_table(std, dtype)
    left = math.prod(shape)
    while left:
        values = min(left, PIECE_VALUES)
        codes = rng.integers(0, 2**64, -(-values // 4), dtype=np.uint64).view(np.uint16)[:values]
        yield table[codes]
        left -= values


def tensor_rng(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for every tensor, so that a cut model holds the same blocks as the whole."""
    return np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))


def filler_vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Byte-level BPE: (tokens in the order of their ids, merges as "a b").

    Special tokens, then a token for every byte, then pairs of letters that merges reach, then words that nothing reaches:
    any text encodes, any id decodes to something readable.
    """
    pairs = list(islice(product(f"Ġ{ascii_lowercase}", ascii_lowercase), size - MIN_VOCAB))
    words = ("Ġ" + "".join(letters) for letters in product(ascii_lowercase, repeat=4))
    filler = islice(words, size - MIN_VOCAB - len(pairs))
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, pairs), *filler]
    if len(tokens) != size:
        raise UserError(f"a vocabulary of {size} tokens is more than the {len(tokens)} that fillers can make", hint="--vocab")
    return tokens, [" ".join(pair) for pair in pairs]


@contextmanager
def new_path(path: Path, need_bytes: int, *, force: bool) -> Iterator[Path]:
    """A name beside `path` to write a file or directory to: it becomes `path` when the block ends well, and vanishes if not.

    Raises `UserError` where `path` exists (unless `force`) or fewer than `need_bytes` are free.
    """
    if path.exists() and not force:
        raise UserError(f"{path} exists already", hint="--force replaces it")
    parent = path.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < need_bytes + DISK_MARGIN_BYTES:
        raise UserError(
            f"{path} needs {need_bytes / 1e9:.1f} GB, and {free_bytes / 1e9:.1f} GB are free",
            hint="free some room, or cut the shape with --blocks and --vocab",
        )
    partial = parent / f".{path.name}.{os.getpid()}.partial"
    old = parent / f".{path.name}.{os.getpid()}.old"
    try:
        yield partial
        if path.exists():
            path.rename(old)
        partial.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for leftover in (partial, old):
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def progress_bar(title: str, total_bytes: int, *, show: bool) -> Iterator[Any]:
    """Yields a function that takes the bytes that were just written."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show, transient=True) as progress:
        task = progress.add_task(title, total=total_bytes)
        yield lambda written_bytes: progress.advance(task, written_bytes)


@cache
def _normal_table(std: float, dtype: str) -> np.ndarray:
    """The quantiles of N(0, std) at the middles of 65,536 equal steps, in the bits of `dtype`."""
    quantile = NormalDist(0.0, std).inv_cdf
    table = np.array([quantile((i + 0.5) / 65_536) for i in range(65_536)], dtype=np.float32)
    if dtype == "bf16":
        return ((table.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    return table.astype(np.float16) if dtype == "fp16" else table


def _shards(shape: Shape, dtype: str, shard_bytes: int) -> list[dict[str, tuple[int, ...]]]:
    """Whole tensors in order, a new file where the next one would pass `shard_bytes`."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room_bytes = shard_bytes
    for name, dims in shape.matrices():
        tensor_bytes = math.prod(dims) * DTYPES[dtype][2]
        if shards[-1] and tensor_bytes > room_bytes:
            shards.append({})
            room_bytes = shard_bytes
        shards[-1][name] = dims
        room_bytes -= tensor_bytes
    return shards


def _write_shard(file: BinaryIO, tensors: dict[str, tuple[int, ...]], dtype: str, seed: int) -> Iterator[int]:
    """One safetensors file: u64 length of the header, JSON padded to 8 bytes, data. Yields the bytes of every piece."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dims in tensors.items():
        end = offset + math.prod(dims) * DTYPES[dtype][2]
        header[name] = {"dtype": DTYPES[dtype][0], "shape": dims, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name, dims in tensors.items():
        for piece in _values(name, dims, dtype, seed):
            file.write(piece.data)
            yield piece.nbytes


def _values(name: str, dims: tuple[int, ...], dtype: str, seed: int) -> Iterator[np.ndarray]:
    if len(dims) == 1:  # every vector is a norm
        ones = np.ones(dims, dtype=np.float32)
        return iter([(ones.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bf16" else ones.astype(_numpy_dtype(dtype))])
    std = EMBEDDING_STD if name == "model.embed_tokens.weight" else 1 / math.sqrt(dims[1])
    return random_values(dims, std=std, dtype=dtype, rng=tensor_rng(seed, name))


def _numpy_dtype(dtype: str) -> type[np.floating[Any]]:
    return np.float16 if dtype == "fp16" else np.float32


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def _write_index(directory: Path, shards: list[dict[str, tuple[int, ...]]], total_bytes: int) -> None:
    names = {name: _shard_name(number, len(shards)) for number, tensors in enumerate(shards, 1) for name in tensors}
    _write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total_bytes}, "weight_map": names})


def _write_tokenizer(directory: Path, shape: Shape) -> None:
    tokens, merges = filler_vocabulary(shape.vocab)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[(left, right) for left, _, right in (merge.partition(" ") for merge in merges)])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_positions,
        "bos_token": SPECIAL_TOKENS[BOS],
        "eos_token": SPECIAL_TOKENS[IM_END],
        "pad_token": SPECIAL_TOKENS[BOS],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(directory / "tokenizer_config.json", settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def size_in_bytes(text: str) -> int:
    """`2GiB`, `500MB` or a plain number, in bytes."""
    units = {"GiB": 1 << 30, "MiB": 1 << 20, "GB": 10**9, "MB": 10**6, "": 1}
    number, unit = next((text.removesuffix(u), u) for u in units if text.endswith(u))
    try:
        return int(float(number) * units[unit])
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2GiB or 500MB") from error


def add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shape", choices=SHAPES, help="whose shape")
    parser.add_argument("--vocab", type=int, help="cut the vocabulary to so many tokens")
    parser.add_argument("--blocks", type=int, help="cut to so many blocks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")


def report(made: Made, *, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps({"path": str(made.path), "parameters": made.parameters, "bytes": made.size_bytes, "files": made.shards})
        )
    else:
        print(f"{made.path}: {made.parameters / 1e9:.2f} B parameters, {made.size_bytes / 1e9:.2f} GB in {made.shards} file(s)")


def exit_with_error(error: MdiError) -> int:
    print(f"error: {error}" + (f"\n  try: {error.hint}" if error.hint else ""), file=sys.stderr)
    return error.exit_code


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.make_checkpoint", description=__doc__)
    add_shape_arguments(parser)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--shard-size", type=size_in_bytes, default=2 << 30, help="such as 2GiB (default)")
    args = parser.parse_args(argv)
    try:
        made = make_checkpoint(
            named_shape(args.shape, vocab=args.vocab, blocks=args.blocks),
            args.directory,
            dtype=args.dtype,
            seed=args.seed,
            shard_bytes=args.shard_size,
            force=args.force,
            show_progress=not args.json,
        )
    except MdiError as error:
        return exit_with_error(error)
    except KeyboardInterrupt:
        return 130
    report(made, as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
