"""Makers of GPTQ and AWQ checkpoints from a checkpoint of floats, bit by bit as the formats are described in words.

Each comes with its twin: a checkpoint of floats that holds what the codes mean, by the formula, for transformers to run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Arrays = dict[str, NDArray[np.generic]]
AWQ_COLUMNS = [0, 2, 4, 6, 1, 3, 5, 7]  # the column in nibble 0, 1, ... of every word


@dataclass(frozen=True, slots=True)
class Scheme:
    method: str = "gptq"
    bits: int = 4
    group: int = 32  # -1: one per row
    symmetric: bool = False
    layout: str = "gptq"
    act_order: bool = False
    quantised_head: bool = False

    def config(self) -> dict[str, object]:
        if self.method == "awq":
            return {"quant_method": "awq", "bits": 4, "group_size": self.group, "zero_point": True, "version": "gemm"}
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group,
            "sym": self.symmetric,
            "desc_act": self.act_order,
            "checkpoint_format": self.layout,
        }


@dataclass(frozen=True, slots=True)
class Coded:
    """One matrix [N, K]: whole codes [N, K], whole zeros [N, G], fp16 scales [N, G], the group of each column [K]."""

    codes: NDArray[np.int64]
    zeros: NDArray[np.int64]
    scales: NDArray[np.float16]
    groups: NDArray[np.int64]

    def values(self) -> NDArray[np.float32]:
        """The formula."""
        found = np.empty(self.codes.shape, np.float32)
        for column, group in enumerate(self.groups):
            steps = (self.codes[:, column] - self.zeros[:, group]).astype(np.float32)
            found[:, column] = steps * self.scales[:, group].astype(np.float32)
        return found


def round_to_codes(weight: NDArray[np.float32], scheme: Scheme, rng: np.random.Generator) -> Coded:
    n, k = weight.shape
    size = k if scheme.group == -1 else scheme.group
    groups = np.arange(k) // size
    if scheme.act_order:
        groups = groups[rng.permutation(k)]
    n_groups = groups.max() + 1
    scales = np.empty((n, n_groups), np.float16)
    zeros = np.empty((n, n_groups), np.int64)
    codes = np.empty((n, k), np.int64)
    top = (1 << scheme.bits) - 1
    for group in range(n_groups):
        columns = groups == group
        values = weight[:, columns]
        low, high = np.minimum(values.min(1), 0), np.maximum(values.max(1), 0)
        if scheme.symmetric:
            high = np.maximum(high, -low)
            scales[:, group], zeros[:, group] = 2 * high / top, (top + 1) // 2
        else:
            scales[:, group] = (high - low) / top
            zeros[:, group] = np.rint(-low / scales[:, group].astype(np.float32))
        step, zero = scales[:, group, None].astype(np.float32), zeros[:, group, None]
        codes[:, columns] = np.clip(np.rint(values / step) + zero, 0, top)
    if not scheme.symmetric:
        zeros[0, 0], zeros[-1, -1] = 0, top  # the ends of the range, which rounding alone seldom gives
    return Coded(codes, zeros, scales, groups)


def words(fields: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """[..., n] fields to [..., n bits / 32] words as whole numbers, the first field in the lowest bits."""
    per_word = 32 // bits
    found = np.zeros((*fields.shape[:-1], fields.shape[-1] // per_word), np.int64)
    for i in range(per_word):
        found += fields[..., i::per_word] << (bits * i)
    return found


def as_int32(values: NDArray[np.int64]) -> NDArray[np.int32]:
    return (values % (1 << 32)).astype(np.uint32).view(np.int32)


def gptq_tensors(coded: Coded, scheme: Scheme) -> Arrays:
    zeros = words(coded.zeros.T, scheme.bits)
    if scheme.layout == "gptq":  # the first format: less one in every field
        zeros -= sum(1 << shift for shift in range(0, 32, scheme.bits))
    return {
        "qweight": as_int32(words(coded.codes, scheme.bits).T),
        "qzeros": as_int32(zeros),
        "scales": coded.scales.T,
        "g_idx": coded.groups.astype(np.int32),
    }


def awq_tensors(coded: Coded) -> Arrays:
    def interleaved(values: NDArray[np.int64]) -> NDArray[np.int32]:
        rows = values.reshape(len(values), -1, 8)[:, :, AWQ_COLUMNS]
        return as_int32(words(rows.reshape(values.shape), 4))

    return {"qweight": interleaved(coded.codes.T), "qzeros": interleaved(coded.zeros.T), "scales": coded.scales.T}


def code_checkpoint(floats: Path, scheme: Scheme) -> dict[str, Coded]:
    """Turns the fp32 checkpoint into its twin in place, and writes the coded one beside it as `coded`. Returns the matrices by name."""
    rng = np.random.default_rng(0)
    tensors = load_file(floats / "model.safetensors")
    coded_tensors: Arrays = {}
    matrices: dict[str, Coded] = {}
    for name, value in list(tensors.items()):
        module = name.removesuffix(".weight")
        if "_proj" in name or (scheme.quantised_head and name.startswith("lm_head")):
            coded = matrices[name] = round_to_codes(value, scheme, rng)
            arrays = awq_tensors(coded) if scheme.method == "awq" else gptq_tensors(coded, scheme)
            coded_tensors |= {f"{module}.{kind}": np.ascontiguousarray(array) for kind, array in arrays.items()}
            tensors[name] = coded.values()
        else:
            coded_tensors[name] = value
    save_file(tensors, floats / "model.safetensors", {"format": "pt"})
    target = floats.parent / "coded"
    target.mkdir()
    config = json.loads((floats / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": scheme.config()}))
    save_file(coded_tensors, target / "model.safetensors", {"format": "pt"})
    return matrices
