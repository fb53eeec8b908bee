"""GPTQ and AWQ checkpoints, taken exactly: their codes, zeros and scales become those of `linear.py`, and nothing is rounded again.

Instead of `M.weight` [N, K] a checkpoint holds `M.qweight`, `M.qzeros`, `M.scales` and perhaps `M.g_idx`. A weight is
`(code - zero) * scale` of its group of columns. int32 words hold codes from the low bits to the high ones:

    GPTQ  qweight [K bits/32, N] along K; qzeros [G, N bits/32]; scales [G, N]; g_idx [K], the group of every column
    AWQ   qweight [K, N/8], qzeros [G, N/8], both along N with the columns of a word in the order AWQ_ORDER; scales [G, N]

Sources: the packing code of AutoGPTQ, GPTQModel and AutoAWQ ("gemm"). GPTQ's first format stores zeros less one, over whole words,
borrowing from field to field; adding it to whole words takes exactly that back. `gptq_v2` stores them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.fields import Fields
from mdi.model.linear import BLOCK_SIZES, LinearPart, Quantised, pack_nibbles, unpack_nibbles
from mdi.model.shards import FLOATS, StoredTensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of its eight columns stands in the word's first, second, ... nibble
WORD_BITS = 32
BITS = {"gptq": (4, 8), "awq": (4,)}
LAYOUTS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
ROW_BLOCK = 128  # where a whole row has one scale; any block would be exact
OLD_CONFIG = "quantize_config.json"  # where AutoGPTQ wrote it before config.json had a place for it
ORIGINAL = "use a GPTQ or AWQ checkpoint, or the model's fp16 or bf16 one; mdi quantises by itself"


class Method(StrEnum):
    GPTQ = "gptq"
    AWQ = "awq"


@dataclass(frozen=True, slots=True)
class Coding:
    """How a checkpoint's codes are to be understood. `group_size` None: one group per row; matrices may deviate."""

    method: Method
    layout: str
    group_size: int | None

    @classmethod
    def find(cls, directory: Path) -> Coding | None:
        """None for a checkpoint of floats."""
        coding = cls.of_config(Fields.read(directory / "config.json"))
        if coding is None and (directory / OLD_CONFIG).is_file():
            return cls._read(Fields.read(directory / OLD_CONFIG), Method.GPTQ)
        return coding

    @classmethod
    def of_config(cls, config: Fields) -> Coding | None:
        """From `quantization_config` of a config.json. Raises ModelError naming a method or layout that cannot be read."""
        fields = config.object("quantization_config")
        return None if fields is None else cls._read(fields, None)

    @classmethod
    def _read(cls, fields: Fields, default: Method | None) -> Coding:
        method = fields.text("quant_method", default).lower()
        if method not in LAYOUTS:
            raise ModelError(f"{fields.origin}: weights quantised by {method!r:.40} are not supported", hint=ORIGINAL)
        bits = fields.integer("bits")
        if bits not in BITS[method]:
            raise ModelError(f"{fields.origin}: {method.upper()} weights of {bits} bits are not supported", hint=ORIGINAL)
        names = ("checkpoint_format", "format") if method == Method.GPTQ else ("version", "format")
        layout = next((fields.text(name).lower() for name in names if fields.values.get(name)), LAYOUTS[method][0])
        if layout not in LAYOUTS[method]:
            raise ModelError(f"{fields.origin}: the {method.upper()} layout {layout!r:.40} is not supported", hint=ORIGINAL)
        size = fields.integer("group_size", 128, least=-1)
        return cls(Method(method), layout, size if size > 0 else None)

    def tensor_names(self, module: str) -> dict[str, str]:
        """The tensors that stand for `module`.weight, by what they are. `g_idx` may be absent."""
        kinds = ("qweight", "qzeros", "scales", *(["g_idx"] if self.method is Method.GPTQ else []))
        return {kind: f"{module}.{kind}" for kind in kinds}

    def check(self, module: str, shape: tuple[int, ...], found: Mapping[str, StoredTensor]) -> None:
        """Raises ModelError unless these tensors, by kind, are one [N, K] matrix that can be computed."""
        for kind in ("qweight", "qzeros", "scales"):
            if kind not in found:
                raise ModelError(f"the checkpoint lacks {module}.{kind}", hint="download the model again")
        n, k = shape
        bits = self._bits(k, found["qweight"].shape)
        if bits not in BITS[self.method]:
            raise ModelError(f"{module} has {bits} bits, which is not supported for {self.method.upper()}", hint=ORIGINAL)
        n_groups = found["scales"].shape[0] if found["scales"].shape else 0
        if self.method is Method.GPTQ:
            expected = {"qweight": (k * bits // WORD_BITS, n), "g_idx": (k,)}
        else:
            expected = {"qweight": (k, n * bits // WORD_BITS)}
        expected |= {"qzeros": (n_groups, n * bits // WORD_BITS), "scales": (n_groups, n)}
        broken = n * bits % WORD_BITS != 0  # rows lie side by side in words, of zeros and with AWQ of codes
        for kind, tensor in found.items():
            if broken or tensor.shape != expected[kind] or tensor.dtype not in (FLOATS if kind == "scales" else ("I32",)):
                raise ModelError(
                    f"{module}.{kind} is {tensor.dtype} of the shape {list(tensor.shape)}, which is no {bits}-bit "
                    f"{self.method.upper()} form of {n} x {k} weights",
                    hint="config.json and the weights are of different models: download both again",
                )
        self._group(module, k, n_groups)

    def part(self, module: str, shape: tuple[int, ...], found: Mapping[str, StoredTensor]) -> LinearPart:
        """The form of a matrix as far as shapes tell: zeros that turn out to be the default, and an order, are not known yet."""
        n, k = shape
        n_groups = found["scales"].shape[0]
        block = _block(self._group(module, k, n_groups), n_groups)
        return LinearPart(n, k, self._bits(k, found["qweight"].shape), block, zeros=True)

    def decode(self, module: str, shape: tuple[int, ...], arrays: Mapping[str, NDArray[Any]]) -> Quantised:
        """The matrix, from arrays that `check` has passed; `scales` in fp32. Raises ModelError for an order that is no grouping."""
        k = shape[1]
        group = self._group(module, k, len(arrays["scales"]))
        scales = np.ascontiguousarray(arrays["scales"].T)  # [N, G]
        if self.method is Method.AWQ:
            codes = pack_nibbles(np.ascontiguousarray(_awq_columns(arrays["qweight"]).T))
            return _in_blocks(codes, scales, _awq_columns(arrays["qzeros"]).T, 4, k, group, None)
        bits = self._bits(k, arrays["qweight"].shape)
        codes = np.ascontiguousarray(arrays["qweight"].T).view(np.uint8)  # [N, K bits/8]: already as MatMulNBits has them
        ones = np.uint32(0x11111111 if bits == 4 else 0x01010101)
        words = arrays["qzeros"].view(np.uint32) + (ones if self.layout == "gptq" else np.uint32(0))
        zeros = words.view(np.uint8)  # [G, N bits/8]
        order = None if "g_idx" not in arrays else _order(module, arrays["g_idx"], group)
        if order is not None:
            codes = pack_nibbles(unpack_nibbles(codes)[:, order]) if bits == 4 else codes[:, order]
        return _in_blocks(codes, scales, (unpack_nibbles(zeros) if bits == 4 else zeros).T, bits, k, group, order)

    def _bits(self, k: int, qweight: tuple[int, ...]) -> int:
        """GPTQ may give some matrices other bits; the shape tells."""
        return qweight[0] * WORD_BITS // k if self.method is Method.GPTQ and qweight else 4

    def _group(self, module: str, k: int, n_groups: int) -> int:
        """Columns per scale."""
        if n_groups == 1:
            return k
        group = self.group_size
        if group is None or -(-k // group) != n_groups:
            group = k // max(1, n_groups)
        if group < 1 or -(-k // group) != n_groups or group % BLOCK_SIZES[0]:
            raise ModelError(
                f"{module} has {n_groups} groups along {k} columns; only groups of a multiple of {BLOCK_SIZES[0]} can be computed",
                hint=ORIGINAL,
            )
        return group


def _awq_columns(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """[R, N/8] words to [R, N] values in the order of columns."""
    nibbles = unpack_nibbles(np.ascontiguousarray(words).view(np.uint8)).reshape(len(words), -1, len(AWQ_ORDER))
    return nibbles[:, :, np.argsort(AWQ_ORDER)].reshape(len(words), -1)


def _order(module: str, groups: NDArray[np.int32], group: int) -> NDArray[np.int32] | None:
    """The columns sorted by group, which is how they lie beside their scales; None where they do so already."""
    k = len(groups)
    wanted = np.arange(k) // group
    if np.array_equal(groups, wanted) or not groups.any():  # older tools left it zero where there is no order
        return None
    order = np.argsort(groups, kind="stable").astype(np.int32)
    if not np.array_equal(groups[order], wanted):
        raise ModelError(
            f"{module}.g_idx does not put {group} columns into every group: such an order is not supported", hint=ORIGINAL
        )
    return order


def _block(group: int, n_groups: int) -> int:
    """Columns of a block that computes such groups exactly."""
    return ROW_BLOCK if n_groups == 1 else max(size for size in BLOCK_SIZES if group % size == 0)


def _in_blocks(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8],
    bits: int,
    k: int,
    group: int,
    order: NDArray[np.int32] | None,
) -> Quantised:
    """Groups as blocks that MatMulNBits takes: a larger group becomes several blocks of one scale; the last block is padded."""
    n, n_groups = scales.shape
    block = _block(group, n_groups)
    blocks = -(-k // block)
    repeats = blocks if n_groups == 1 else group // block
    padding = blocks * block * bits // 8 - codes.shape[1]
    codes = np.pad(codes, ((0, 0), (0, padding))) if padding else codes
    return Quantised(
        codes.reshape(n, blocks, -1),
        np.repeat(scales, repeats, axis=1)[:, :blocks],
        bits,
        k,
        np.repeat(zeros, repeats, axis=1)[:, :blocks],
        order=order,
    )
