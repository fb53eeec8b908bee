"""What choosing experts costs a node: `python -m tools.bench_expert_nodes`.

Three ways to compute one token, each a session of random 4-bit codes: dense layers as wide as the chosen experts together, `QMoE`, and a
`Loop` over the chosen experts with a tree of `If`s whose leaves are `MatMulNBits`. Every token chooses other experts, the dense layers are
other ones for each token, and the three take turns. Minima count: neighbours on the machine only ever make a round slower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

CONTRIB = "com.microsoft"
OPSET = 21
TOKENS = 8  # of one round: short, so that some rounds are undisturbed
Matrix = tuple[NDArray[np.uint8], NDArray[np.float32]]
Run = Callable[[NDArray[np.float32], NDArray[np.float32]], Any]


@dataclass(frozen=True, slots=True)
class Shape:
    experts: int
    chosen: int
    d_ffn: int
    d_model: int
    block: int

    @property
    def token_bytes(self) -> float:
        """Codes, scales and the sums that onnxruntime keeps beside them, of one token's experts."""
        return self.chosen * 3 * self.d_ffn * self.d_model * (4 + 64 / self.block) / 8

    def matrix(self, rng: np.random.Generator, rows: int, columns: int) -> Matrix:
        blocks = columns // self.block
        return rng.integers(0, 256, (rows, blocks, self.block // 2), np.uint8), rng.random((rows, blocks), np.float32) / 100


def value(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def session(graph: GraphProto, threads: int) -> ort.InferenceSession:
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def product(x: str, y: str, name: str, matrix: Matrix, shape: Shape) -> tuple[NodeProto, list[TensorProto]]:
    codes, scales = matrix
    inputs = [numpy_helper.from_array(codes, f"{name}.codes"), numpy_helper.from_array(scales, f"{name}.scales")]
    size = {"K": codes.shape[1] * shape.block, "N": len(codes), "bits": 4, "block_size": shape.block, "accuracy_level": 4}
    return helper.make_node("MatMulNBits", [x, *(each.name for each in inputs)], [y], domain=CONTRIB, **size), inputs


def gated(p: str, x: str, up: Matrix, down: Matrix, shape: Shape) -> tuple[list[NodeProto], list[TensorProto]]:
    """x to `{p}.y` through a gated feed-forward part."""
    first, first_inputs = product(x, f"{p}.both", f"{p}.up", up, shape)
    last, last_inputs = product(f"{p}.inner", f"{p}.y", f"{p}.down", down, shape)
    between = [
        helper.make_node("Split", [f"{p}.both"], [f"{p}.gate", f"{p}.other"], axis=-1, num_outputs=2),
        helper.make_node("Sigmoid", [f"{p}.gate"], [f"{p}.sigmoid"]),
        helper.make_node("Mul", [f"{p}.gate", f"{p}.sigmoid"], [f"{p}.silu"]),
        helper.make_node("Mul", [f"{p}.silu", f"{p}.other"], [f"{p}.inner"]),
    ]
    return [first, *between, last], [*first_inputs, *last_inputs]


def dense(shape: Shape, rng: np.random.Generator, threads: int) -> Run:
    width, sessions = shape.chosen * shape.d_ffn, []
    for _ in range(max(1, shape.experts // shape.chosen)):
        up, down = shape.matrix(rng, 2 * width, shape.d_model), shape.matrix(rng, shape.d_model, width)
        nodes, inputs = gated("all", "x", up, down, shape)
        sides = [value("x", [1, shape.d_model])], [value("all.y", [1, shape.d_model])]
        sessions.append(session(helper.make_graph(nodes, "dense", *sides, inputs), threads))
    turn = iter(range(1 << 60))
    return lambda x, router: sessions[next(turn) % len(sessions)].run(None, {"x": x})


def ends(shape: Shape) -> tuple[list[ValueInfoProto], list[ValueInfoProto]]:
    return [value("x", [1, shape.d_model]), value("router", [1, shape.experts])], [value("y", [1, shape.d_model])]


def qmoe(shape: Shape, weights: list[tuple[Matrix, Matrix]], threads: int) -> Run:
    arrays = {}
    for i, name in enumerate(("up", "down")):
        codes, scales = (np.stack([pair[i][part] for pair in weights]) for part in (0, 1))
        if name == "up":  # rows of gate and up take turns
            codes, scales = (np.stack(np.split(each, 2, axis=1), axis=2) for each in (codes, scales))
        rows = len(weights[0][i][0])
        arrays[f"{name}.codes"] = codes.reshape(shape.experts, rows, -1)
        arrays[f"{name}.scales"] = scales.reshape(shape.experts, rows, -1)
    node = helper.make_node(
        "QMoE",
        ["x", "router", "up.codes", "up.scales", "", "down.codes", "down.scales", ""],
        ["y"],
        domain=CONTRIB,
        k=shape.chosen,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=1,
        expert_weight_bits=4,
        block_size=shape.block,
        accuracy_level=4,
        weights_prepacked=0,
    )
    inputs = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    opened = session(helper.make_graph([node], "qmoe", *ends(shape), inputs), threads)
    return lambda x, router: opened.run(None, {"x": x, "router": router})


def branches(shape: Shape, weights: list[tuple[Matrix, Matrix]], threads: int) -> Run:
    """Weights are the leaves' own: as initializers of the outer graph they are not prepacked, which is 100 times slower."""
    constants = {f"from{i}": np.array(i) for i in range(1, shape.experts)}
    constants |= {
        "k": np.array([shape.chosen]),
        "turns": np.array(shape.chosen),
        "true": np.array(True),
        "flat": np.array([-1]),
    }
    constants["nothing"] = np.zeros((1, shape.d_model), np.float32)

    def tree(start: int, stop: int) -> tuple[list[NodeProto], list[TensorProto], str]:
        if stop - start == 1:
            nodes, inputs = gated(f"e{start}", "x", *weights[start], shape)
            return nodes, inputs, f"e{start}.y"
        middle, sides = (start + stop) // 2, {}
        for name, span in (("then_branch", (start, middle)), ("else_branch", (middle, stop))):
            nodes, inputs, out = tree(*span)
            sides[name] = helper.make_graph(nodes, name, [], [value(out, [1, shape.d_model])], inputs)
        p = f"{start}-{stop}"
        less = helper.make_node("Less", ["expert", f"from{middle}"], [f"{p}.less"])
        return [less, helper.make_node("If", [f"{p}.less"], [f"{p}.y"], **sides)], [], f"{p}.y"

    nodes, _, out = tree(0, shape.experts)
    body = [
        helper.make_node("Gather", ["ids", "i"], ["expert"]),
        helper.make_node("Gather", ["shares", "i"], ["share"]),
        *nodes,
        helper.make_node("Mul", [out, "share"], ["part"]),
        helper.make_node("Add", ["sum", "part"], ["next_sum"]),
        helper.make_node("Identity", ["go"], ["next_go"]),
    ]
    before = [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("sum", [1, shape.d_model])]
    after = [value("next_go", [], TensorProto.BOOL), value("next_sum", [1, shape.d_model])]
    outer = [
        helper.make_node("TopK", ["router", "k"], ["best", "which"]),
        helper.make_node("Softmax", ["best"], ["normal"]),
        helper.make_node("Reshape", ["which", "flat"], ["ids"]),
        helper.make_node("Reshape", ["normal", "flat"], ["shares"]),
        helper.make_node("Loop", ["turns", "true", "nothing"], ["y"], body=helper.make_graph(body, "body", before, after)),
    ]
    inputs = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    opened = session(helper.make_graph(outer, "branches", *ends(shape), inputs), threads)
    return lambda x, router: opened.run(None, {"x": x, "router": router})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("experts", 128), ("chosen", 8), ("d-ffn", 768), ("d-model", 2048), ("block", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--branches", action="store_true", help="the third way too; takes long to open with many experts")
    options = parser.parse_args()
    shape = Shape(options.experts, options.chosen, options.d_ffn, options.d_model, options.block)
    rng = np.random.default_rng(0)
    up, down = (2 * shape.d_ffn, shape.d_model), (shape.d_model, shape.d_ffn)
    weights = [(shape.matrix(rng, *up), shape.matrix(rng, *down)) for _ in range(shape.experts)]
    runs = {"dense": dense(shape, rng, options.threads), "QMoE": qmoe(shape, weights, options.threads)}
    if options.branches:
        runs["branches"] = branches(shape, weights, options.threads)
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds + 1):
        rows = rng.standard_normal((TOKENS, 1, shape.d_model), np.float32)
        routers = rng.standard_normal((TOKENS, 1, shape.experts), np.float32)
        for name, run in runs.items():
            began = time.perf_counter()
            for x, router in zip(rows, routers, strict=True):
                run(x, router)
            rounds[name].append((time.perf_counter() - began) / TOKENS)
    best = {name: min(seconds[1:]) for name, seconds in rounds.items()}  # the first warms up
    print(f"{shape}, {options.threads} thread(s), {shape.token_bytes / 1e6:.1f} MB per token")
    for name, seconds in best.items():
        speed = shape.token_bytes / seconds / 1e9
        print(f"  {name:8} {seconds * 1e6:8.0f} us  {speed:6.1f} GB/s  {best['dense'] / seconds:.2f} of dense")


if __name__ == "__main__":
    main()
