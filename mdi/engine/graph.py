"""ONNX graphs of a stage and of the head, built in memory; the weights stay in their packs and are mapped from there.

Stage inputs (T tokens in all, B rows of at most S tokens):
    hidden float32 [T, d_model]
    pad int64 [B, S], unpad int64 [T]              see `batch.py`
    query_lengths int32 [B], last_position int32 [B]  new tokens, and tokens in KV after the step minus one
    total int32 []                                 the longest KV after the step
    past_key.i, past_value.i [B, n_kv_heads, ctx, head_dim]
Stage outputs: hidden_out [T, d_model]; present_key.i / present_value.i, bound to the same memory as the past.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.linear import LinearPart
from mdi.model.packs import Pack, PackedPart, PackKind

CONTRIB = "com.microsoft"
ONNX_OPSET = 21
IR_VERSION = 10
ONNX_TYPES = {"F32": TensorProto.FLOAT, "U8": TensorProto.UINT8, "I32": TensorProto.INT32}
INT8_DOT = (
    4  # MatMulNBits `accuracy_level`: activations rounded to int8 per block. Level 0 is 4 to 170 times slower (facts/engine.md)
)


class GraphBuilder:
    """Collects nodes and initializers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._sums: set[str] = set()

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self._initializers.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def mapped(self, name: str, pack: Pack, tensor: str) -> str:
        """An initializer that lies in the pack's file."""
        place = pack.tensors.get(tensor)
        if place is None or place.dtype not in ONNX_TYPES:
            raise ModelError(f"pack {pack.path.name} has no usable tensor {tensor}")
        proto = onnx.TensorProto(
            name=name, dims=place.shape, data_type=ONNX_TYPES[place.dtype], data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", pack.path.name), ("offset", place.offset), ("length", place.n_bytes)):
            proto.external_data.add(key=key, value=str(value))
        self._initializers.append(proto)
        return name

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any) -> str:
        name = f"{outputs[0]}:{op}"
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def linear(self, name: str, x: str, pack: Pack, tensor: str, k: int) -> str:
        """x [T, k] times the pack's weight [N, k] transposed: [T, N]. Parts of different forms are computed apart and laid side by side."""
        parts = pack.linears.get(tensor, ())
        if not parts or parts[0].part.columns != k:
            raise ModelError(f"pack {pack.path.name} has no linear layer {tensor} of {k} columns")
        if len(parts) == 1:
            return self._part(name, x, pack, parts[0])
        rows = [self._part(f"{name}.{i}", x, pack, each) for i, each in enumerate(parts)]
        return self.node("Concat", rows, [name], axis=-1)

    def _part(self, name: str, x: str, pack: Pack, each: PackedPart) -> str:
        part = each.part
        tensors = {kind: self.mapped(f"{name}.{kind}", pack, f"{each.prefix}.{kind}") for kind in part.tensors()}
        if part.bits == 32:
            return self.node("Gemm", [x, tensors["weight"]], [name], transB=1)
        if part.order:
            x = self.node("Gather", [x, tensors["order"]], [f"{name}.ordered"], axis=-1)
        inputs = [x, tensors["codes"], tensors["scales"], *([tensors["zeros"]] if part.zeros else [])]
        product = f"{name}.product" if part.correction else name
        self.node(
            "MatMulNBits",
            inputs,
            [product],
            domain=CONTRIB,
            K=part.columns,
            N=part.rows,
            bits=part.bits,
            block_size=part.block,
            accuracy_level=INT8_DOT,
        )
        if not part.correction:
            return product
        return self.node("Gemm", [self._block_sums(x, part), tensors["correction"], product], [name], transB=1)

    def _block_sums(self, x: str, part: LinearPart) -> str:
        """Sums of x [T, K] over blocks: [T, K / block]. Made once for all that read the same x."""
        name = f"{x}.sums.{part.block}"
        if name not in self._sums:
            self._sums.add(name)
            shape = self.constant(f"{name}.shape", np.array([-1, part.blocks, part.block], np.int64))
            blocks = self.node("Reshape", [x, shape], [f"{name}.blocks"])
            self.node("ReduceSum", [blocks, self.constant(f"{name}.axes", np.array([-1], np.int64))], [name], keepdims=0)
        return name

    def model(self) -> bytes:
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(CONTRIB, 1)]
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())


def stage_graph(config: ModelConfig, packs: Sequence[Pack], ctx: int) -> bytes:
    """The graph of consecutive blocks. Raises ModelError when a pack is not a block of this model."""
    g = GraphBuilder("stage")
    d = config.d_model
    kv_shape: list[int | str] = ["B", config.n_kv_heads, ctx, config.head_dim]
    x = g.input("hidden", TensorProto.FLOAT, ["T", d])
    g.input("pad", TensorProto.INT64, ["B", "S"])
    g.input("unpad", TensorProto.INT64, ["T"])
    g.input("query_lengths", TensorProto.INT32, ["B"])
    g.input("last_position", TensorProto.INT32, ["B"])
    g.input("total", TensorProto.INT32, [])
    cos, sin = rotary_tables(config, ctx)
    g.constant("cos", cos)
    g.constant("sin", sin)
    g.constant("flat", np.array([-1, config.n_heads * config.head_dim], np.int64))
    g.constant("halves", np.array([config.d_ffn, config.d_ffn], np.int64))
    skip = None
    for i, pack in enumerate(packs):
        if pack.kind is not PackKind.BLOCK:
            raise ModelError(f"pack {pack.path.name} is no transformer block")
        for kind in ("key", "value"):
            g.input(f"past_{kind}.{i}", TensorProto.FLOAT, kv_shape)
            g.output(f"present_{kind}.{i}", TensorProto.FLOAT, kv_shape)
        x, skip = _block(g, config, pack, i, x, skip)
    g.node("Add", [x, skip] if skip else [x], ["hidden_out"])
    g.output("hidden_out", TensorProto.FLOAT, ["T", d])
    return g.model()


def _block(g: GraphBuilder, config: ModelConfig, pack: Pack, i: int, x: str, skip: str | None) -> tuple[str, str]:
    """One pre-norm block on the residual stream `x + skip`. Returns the same stream as the MLP's output and what to add to it."""
    p = f"b{i}"
    normed, residual = _norm(g, config, pack, f"{p}.attn_norm", x, skip)
    qkv = g.linear(f"{p}.qkv", normed, pack, "qkv", config.d_model)  # [T, (n_heads + 2 n_kv_heads) head_dim]
    padded = g.node("Gather", [qkv, "pad"], [f"{p}.padded"], axis=0)  # [B, S, same]
    attributes: dict[str, Any] = {} if config.sliding_window is None else {"local_window_size": config.sliding_window}
    inputs = [
        padded,
        "",
        "",
        f"past_key.{i}",
        f"past_value.{i}",
        "last_position",
        "total",
        "cos",
        "sin",
        *[""] * 7,
        "query_lengths",
    ]
    attention = g.node(
        "GroupQueryAttention",
        inputs,
        [f"{p}.attention", f"present_key.{i}", f"present_value.{i}"],
        domain=CONTRIB,
        num_heads=config.n_heads,
        kv_num_heads=config.n_kv_heads,
        do_rotary=1,
        **attributes,
    )
    rows = g.node("Reshape", [attention, "flat"], [f"{p}.rows"])  # [B S, n_heads head_dim]
    unpadded = g.node("Gather", [rows, "unpad"], [f"{p}.unpadded"], axis=0)  # [T, same]
    projected = g.linear(f"{p}.o", unpadded, pack, "o", config.n_heads * config.head_dim)
    normed, residual = _norm(g, config, pack, f"{p}.ffn_norm", projected, residual)
    gate_up = g.linear(f"{p}.gate_up", normed, pack, "gate_up", config.d_model)  # [T, 2 d_ffn]
    g.node("Split", [gate_up, "halves"], [f"{p}.gate", f"{p}.up"], axis=-1)
    gated = g.node("QuickGelu", [f"{p}.gate"], [f"{p}.silu"], domain=CONTRIB, alpha=1.0)  # x sigmoid(x)
    inner = g.node("Mul", [gated, f"{p}.up"], [f"{p}.inner"])
    return g.linear(f"{p}.down", inner, pack, "down", config.d_ffn), residual


def _norm(g: GraphBuilder, config: ModelConfig, pack: Pack, name: str, x: str, skip: str | None) -> tuple[str, str]:
    """RMSNorm of `x + skip`, and that sum."""
    weight = g.mapped(f"{name}.weight", pack, name.split(".")[1])
    if skip is None:
        return g.node("SimplifiedLayerNormalization", [x, weight], [name], axis=-1, epsilon=config.norm_eps), x
    total = f"{name}.sum"
    g.node(
        "SkipSimplifiedLayerNormalization", [x, skip, weight], [name, "", "", total], domain=CONTRIB, epsilon=config.norm_eps
    )
    return name, total


def head_graph(config: ModelConfig, pack: Pack) -> bytes:
    """Final norm and head: hidden [R, d_model] to logits [R, vocab_size]."""
    if pack.kind is not PackKind.HEAD:
        raise ModelError(f"pack {pack.path.name} is no head")
    g = GraphBuilder("head")
    x = g.input("hidden", TensorProto.FLOAT, ["R", config.d_model])
    weight = g.mapped("norm.weight", pack, "norm")
    normed = g.node("SimplifiedLayerNormalization", [x, weight], ["normed"], axis=-1, epsilon=config.norm_eps)
    g.linear("logits", normed, pack, "head", config.d_model)
    g.output("logits", TensorProto.FLOAT, ["R", config.vocab_size])
    return g.model()


def rotary_tables(config: ModelConfig, ctx: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines [ctx, head_dim / 2] of every position's rotation angles."""
    angles = np.outer(np.arange(ctx, dtype=np.float64), config.rope.inverse_frequencies(config.head_dim).astype(np.float64))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
