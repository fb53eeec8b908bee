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
from mdi.model.packs import Pack, PackKind

CONTRIB = "com.microsoft"
ONNX_OPSET = 21
IR_VERSION = 10
ONNX_TYPES = {"F32": TensorProto.FLOAT, "U8": TensorProto.UINT8}
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
        """x [T, k] times the pack's weight [N, k] transposed: [T, N]."""
        if not pack.fmt.quantised:
            weight = self.mapped(f"{name}.weight", pack, f"{tensor}.weight")
            return self.node("Gemm", [x, weight], [name], transB=1)
        codes = self.mapped(f"{name}.codes", pack, f"{tensor}.codes")
        scales = self.mapped(f"{name}.scales", pack, f"{tensor}.scales")
        n, blocks, _ = pack.tensors[f"{tensor}.codes"].shape
        if blocks != -(-k // pack.fmt.block):
            raise ModelError(f"pack {pack.path.name} has {blocks} blocks along {tensor}, not those of {k} columns")
        return self.node(
            "MatMulNBits",
            [x, codes, scales],
            [name],
            domain=CONTRIB,
            K=k,
            N=n,
            bits=pack.fmt.bits,
            block_size=pack.fmt.block,
            accuracy_level=INT8_DOT,
        )

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
