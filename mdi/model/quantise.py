"""From fp32 weights to codes: what `--quant` chooses, and the rounding. The stored forms are those of `linear.py`."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError, UserError
from mdi.model.linear import BLOCK_SIZES, LinearPart, Quantised, pack_nibbles
from mdi.model.scale_search import block_weights, search

DEFAULT_BLOCK = 128  # `make bench`: faster than 64 in decode and prefill on x86-64 with VNNI; see `layout.default_block`
CHUNK_VALUES = 1 << 18  # values quantised at a time by one thread: 1 MiB of fp32 stays in the second-level cache


class Quant(StrEnum):
    """What `--quant` chooses. AUTO takes files of codes (GGUF, GPTQ, AWQ) as they are, and makes int4 of floats.

    INT4 weighs errors by what the layers read (`calibration.py`), INT4_PLAIN rounds to the nearest code: same size and speed, three times
    as fast to make, and worse.
    """

    AUTO = "auto"
    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"
    INT4_PLAIN = "int4-plain"

    @property
    def weighed(self) -> bool:
        return self in (Quant.AUTO, Quant.INT4)


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How linear layers that come as floats are stored: 32 bits are plain fp32, 8 and 4 are codes with scales."""

    bits: int
    block: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (4, 8, 32):
            raise ModelError(f"weights of {self.bits} bits are not known", hint="use --quant none, int8 or int4")
        if self.bits == 32 and self.block != 0:
            raise ModelError("fp32 weights have no block size")
        if self.bits != 32 and self.block not in BLOCK_SIZES:
            raise UserError(f"a block of {self.block} values is not possible", hint=f"use one of {BLOCK_SIZES}")

    @classmethod
    def of(cls, quant: Quant, block: int = DEFAULT_BLOCK) -> WeightFormat:
        match quant:
            case Quant.NONE:
                return cls(32)
            case Quant.INT8:
                return cls(8, block)
            case Quant.INT4 | Quant.INT4_PLAIN | Quant.AUTO:
                return cls(4, block)

    @property
    def name(self) -> str:
        """For file names."""
        return f"int{self.bits}-{self.block}" if self.quantised else "fp32"

    @property
    def quantised(self) -> bool:
        return self.bits != 32

    def linear_bytes(self, rows: int, columns: int) -> int:
        """Bytes of one [rows, columns] weight."""
        return self.part(rows, columns).n_bytes

    def part(self, rows: int, columns: int) -> LinearPart:
        """A whole [rows, columns] weight in this format."""
        return LinearPart(rows, columns, self.bits, self.block)

    def to_json(self) -> dict[str, int]:
        return {"bits": self.bits, "block": self.block}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> WeightFormat:
        return cls(int(data["bits"]), int(data["block"]))


def quantise(weight: NDArray[np.float32], fmt: WeightFormat, squares: NDArray[np.float32] | None = None) -> Quantised:
    """Rounds [N, K]; K is padded with zeros to a whole number of blocks.

    Without `squares` to the nearest code: the value of largest magnitude in a block maps to the code furthest from zero (-8 or -128),
    so it is kept exactly. With the mean squares [K] of the inputs, scales are searched (`scale_search.py`). Raises ModelError for weights
    that are infinite or no numbers.
    """
    n, k = weight.shape
    blocks = -(-k // fmt.block)
    if blocks * fmt.block != k:
        weight = np.pad(weight, ((0, 0), (0, blocks * fmt.block - k)))
    codes = np.empty((n, blocks, fmt.block * fmt.bits // 8), np.uint8)
    scales = np.empty((n, blocks), np.float32)
    step = max(1, CHUNK_VALUES // (blocks * fmt.block))
    weights = None if squares is None else block_weights(squares, fmt.block)

    def work(start: int) -> None:
        rows = slice(start, min(n, start + step))
        chunk = np.ascontiguousarray(weight[rows]).reshape(-1, blocks, fmt.block)
        if not np.isfinite(chunk).all():
            raise ModelError("the checkpoint has weights that are not finite numbers", hint="download the model again")
        if weights is None:
            codes[rows], scales[rows] = _quantise_chunk(chunk, fmt.bits)
        else:
            centred, scales[rows] = search(chunk, weights, fmt.bits)
            codes[rows] = _stored_codes(centred, fmt.bits)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy releases the interpreter lock in its loops
        list(pool.map(work, range(0, n, step)))
    return Quantised(codes, scales, fmt.bits, k)


def _quantise_chunk(values: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    zero = 1 << (bits - 1)
    high, low = values.max(-1), values.min(-1)
    extreme = np.where(high > -low, high, low)
    scales = extreme / np.float32(-zero)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    scaled = values * inverse[..., None]
    np.rint(scaled, out=scaled)
    np.clip(scaled, -zero, zero - 1, out=scaled)
    return _stored_codes(scaled, bits), scales


def _stored_codes(centred: NDArray[np.float32], bits: int) -> NDArray[np.uint8]:
    """From whole numbers around zero, which are overwritten, to codes as they are stored."""
    centred += 1 << (bits - 1)
    codes = centred.astype(np.uint8)
    return pack_nibbles(codes) if bits == 4 else codes
