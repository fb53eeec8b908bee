"""ONNX graphs built in memory, and that of the head; the weights stay in their packs and are mapped from there."""

from __future__ import annotations

import math
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
        self.reads: dict[str, str] = {}
        """By the name of a pack's linear layer, the input that it was last given."""

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self._initializers.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def mapped(self, name: str, pack: Pack, tensor: str, shape: Sequence[int] | None = None) -> str:
        """An initializer that lies in the pack's file, in the shape that it has there or in another of as many values."""
        place = pack.tensors.get(tensor)
        if place is None or place.dtype not in ONNX_TYPES or (shape is not None and math.prod(shape) != math.prod(place.shape)):
            raise ModelError(f"pack {pack.path.name} has no usable tensor {tensor}")
        proto = onnx.TensorProto(
            name=name,
            dims=place.shape if shape is None else shape,
            data_type=ONNX_TYPES[place.dtype],
            data_location=TensorProto.EXTERNAL,
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
        self.reads[tensor] = x
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

    def branch(self, name: str) -> GraphBuilder:
        """For a branch of an If, which sees all names of this graph; its own must differ from them, and its constants belong here."""
        return GraphBuilder(name)

    def graph(self, outputs: Sequence[str]) -> onnx.GraphProto:
        """Of a branch; the types of its outputs follow from its nodes."""
        infos = [onnx.ValueInfoProto(name=name) for name in outputs]
        return helper.make_graph(self._nodes, self._name, [], infos, self._initializers)

    def model(self) -> bytes:
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(CONTRIB, 1)]
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())


def head_graph(config: ModelConfig, pack: Pack) -> bytes:
    """Final norm and head: hidden [R, d_model] to logits [R, vocab_size]."""
    if pack.kind is not PackKind.HEAD:
        raise ModelError(f"pack {pack.path.name} is no head")
    g = GraphBuilder("head")
    x = g.input("hidden", TensorProto.FLOAT, ["R", config.d_model])
    weight = g.mapped("norm.weight", pack, "norm")
    normed = g.node("SimplifiedLayerNormalization", [x, weight], ["normed"], axis=-1, epsilon=config.norm_eps)
    if config.logit_softcap is None:
        g.linear("logits", normed, pack, "head", config.d_model)
    else:
        cap = g.constant("cap", np.array(config.logit_softcap, np.float32))
        bounded = g.node(
            "Tanh", [g.node("Div", [g.linear("raw", normed, pack, "head", config.d_model), cap], ["scaled"])], ["tanh"]
        )
        g.node("Mul", [bounded, cap], ["logits"])
    g.output("logits", TensorProto.FLOAT, ["R", config.vocab_size])
    return g.model()
