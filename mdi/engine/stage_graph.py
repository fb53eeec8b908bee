"""The ONNX graph of consecutive blocks; what the config says of each decides which nodes it has.

Inputs (T tokens in all, B rows of at most S tokens):
    hidden float32 [T, d_model]
    pad int64 [B, S], unpad int64 [T]              see `batch.py`
    query_lengths int32 [B], last_position int32 [B]  new tokens, and tokens in KV after the step minus one
    total int32 []                                 the longest KV after the step
    past_key.i, past_value.i [B, n_kv_heads, ctx, head_dim]  fp32, or int8 with the further inputs of `kv_graph.declare`
Outputs: hidden_out [T, d_model]; present_key.i / present_value.i, bound to the same memory as the past.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from mdi.engine.experts_graph import experts
from mdi.engine.graph import CONTRIB, GraphBuilder
from mdi.engine.kv_graph import QuantisedAttention, declare
from mdi.engine.kv_plan import KvPlan
from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.families import Activation
from mdi.model.kv import KvType
from mdi.model.layout import block_layout
from mdi.model.packs import Pack, PackKind
from mdi.model.rope import Rope

SQUARES = "squares."
ROTATED_MULTIPLE = 16  # GroupQueryAttention refuses others: it rotates vectors of 8 pairs


def stage_graph(
    config: ModelConfig,
    packs: Sequence[Pack],
    ctx: int,
    first_block: int,
    *,
    kv_type: KvType = KvType.FP32,
    observed: bool = False,
) -> bytes:
    """`packs` are the model's blocks from `first_block` on. Raises ModelError when one is not a block of this model.

    `observed`, of one block: further outputs SQUARES + name [K] are the sums over tokens of the squares that a linear layer reads.
    """
    g = GraphBuilder("stage")
    d = config.d_model
    kv_shape: list[int | str] = ["B", config.n_kv_heads, ctx, config.head_dim]
    x = g.input("hidden", TensorProto.FLOAT, ["T", d])
    g.input("pad", TensorProto.INT64, ["B", "S"])
    g.input("unpad", TensorProto.INT64, ["T"])
    g.input("query_lengths", TensorProto.INT32, ["B"])
    g.input("last_position", TensorProto.INT32, ["B"])
    g.input("total", TensorProto.INT32, [])
    shared = Shared(g, config, ctx, kv_type)
    kv_dtype = TensorProto.FLOAT
    if shared.quantised:
        declare(g)
        kv_dtype = TensorProto.INT8
    # Inside a stage a norm adds and squares in one kernel, and another kernel's last bit differs: int8 activations round it to another
    # token. So every stage but the model's first begins as if it went on, adding nothing, and a split changes no bit.
    skip = g.node("Sub", [x, x], ["nothing"]) if first_block else None
    for i, pack in enumerate(packs):
        if pack.kind is not PackKind.BLOCK:
            raise ModelError(f"pack {pack.path.name} is no transformer block")
        for kind in ("key", "value"):
            g.input(f"past_{kind}.{i}", kv_dtype, kv_shape)
            g.output(f"present_{kind}.{i}", kv_dtype, kv_shape)
        parts = frozenset(placed.part.name for placed in block_layout(config, first_block + i))
        block = Block(g, config, pack, shared, i, first_block + i, parts)
        x, skip = block.feed_forward(*block.attention(x, skip))
    g.node("Add", [x, skip] if skip else [x], ["hidden_out"])
    g.output("hidden_out", TensorProto.FLOAT, ["T", d])
    if observed:
        axes = g.constant("tokens", np.array([0], np.int64))
        for tensor, read in g.reads.items():
            squares = g.node("ReduceSumSquare", [read, axes], [f"{SQUARES}{tensor}"], keepdims=0)
            g.output(squares, TensorProto.FLOAT, [f"K.{tensor}"])
    return g.model()


class Shared:
    """Constants that blocks have in common, made when the first block asks for them."""

    def __init__(self, g: GraphBuilder, config: ModelConfig, ctx: int, kv_type: KvType) -> None:
        self.ctx = ctx
        self.quantised = kv_type is KvType.INT8
        self.plan = KvPlan.of(config, ctx)
        self._g = g
        self._head_dim = config.head_dim
        self._rotary: dict[Rope, tuple[str, str]] = {}
        self._made: set[str] = set()

    def sizes(self, name: str, *values: int) -> str:
        """A list of sizes; one name always means the same."""
        if name not in self._made:
            self._made.add(name)
            self._g.constant(name, np.array(values, np.int64))
        return name

    def rotary(self, rope: Rope) -> tuple[str, str]:
        """Cosines and sines. Raises ModelError when the kernel cannot rotate so many dimensions."""
        if rope not in self._rotary:
            rotated = rope.rotated(self._head_dim)
            if rotated % ROTATED_MULTIPLE:
                raise ModelError(f"heads of which {rotated} dimensions are rotated are not supported, only multiples of 16")
            cos, sin = rope.tables(self._head_dim, self.ctx)
            suffix = f".{len(self._rotary)}" if self._rotary else ""
            self._rotary[rope] = self._g.constant(f"cos{suffix}", cos), self._g.constant(f"sin{suffix}", sin)
        return self._rotary[rope]


@dataclass(frozen=True, slots=True)
class Block:
    """Block `number` of the model, the `i`-th of the stage.

    The residual stream is `x + skip`: the next norm adds them. Both parts take it so and leave it so.
    """

    g: GraphBuilder
    config: ModelConfig
    pack: Pack
    shared: Shared
    i: int
    number: int
    parts: frozenset[str]

    def attention(self, x: str, skip: str | None) -> tuple[str, str]:
        g, config, p = self.g, self.config, f"b{self.i}"
        normed, residual = self._norm("attn_norm", x, skip)
        qkv = self._linear("qkv", normed, config.d_model)  # [T, (n_heads + 2 n_kv_heads) head_dim]
        if self._has("q_norm"):
            heads = g.node("Gather", [self._normed_heads(qkv), "pad"], [f"{p}.padded_heads"], axis=0)  # [B, S, heads, head_dim]
            padded = g.node("Reshape", [heads, self.shared.sizes("rows", 0, 0, -1)], [f"{p}.padded"])
        else:
            padded = g.node("Gather", [qkv, "pad"], [f"{p}.padded"], axis=0)  # [B, S, same]
        attention = self._group_query_attention(padded)
        flat = self.shared.sizes("flat", -1, config.d_q)
        rows = g.node("Reshape", [attention, flat], [f"{p}.rows"])  # [B S, n_heads head_dim]
        unpadded = g.node("Gather", [rows, "unpad"], [f"{p}.unpadded"], axis=0)  # [T, same]
        return self._out_norm("attn_out_norm", self._linear("o", unpadded, config.d_q)), residual

    def feed_forward(self, x: str, skip: str) -> tuple[str, str]:
        normed, residual = self._norm("ffn_norm", x, skip)
        if self._has("router"):
            assert self.config.experts is not None  # the config was checked
            out = experts(self.g, self.pack, self.config.experts, f"b{self.i}", normed, self.config.d_model)
        else:
            out = self._gated(normed)
        return self._out_norm("ffn_out_norm", out), residual

    def _gated(self, normed: str) -> str:
        g, config, p = self.g, self.config, f"b{self.i}"
        gate_up = self._linear("gate_up", normed, config.d_model)  # [T, 2 d_ffn]
        g.node("Split", [gate_up, self.shared.sizes("halves", config.d_ffn, config.d_ffn)], [f"{p}.gate", f"{p}.up"], axis=-1)
        match config.family.activation:
            case Activation.SILU:
                gated = g.node("QuickGelu", [f"{p}.gate"], [f"{p}.silu"], domain=CONTRIB, alpha=1.0)  # x sigmoid(x)
            case Activation.GELU_TANH:
                gated = g.node("FastGelu", [f"{p}.gate"], [f"{p}.gelu"], domain=CONTRIB)
        inner = g.node("Mul", [gated, f"{p}.up"], [f"{p}.inner"])
        return self._linear("down", inner, config.d_ffn)

    def _group_query_attention(self, padded: str) -> str:
        """Of packed queries, keys and values [B, S, ...]: [B, S, n_heads head_dim]."""
        config, rope, window = self.config, self.config.rope_of(self.number), self.config.window(self.number)
        attributes: dict[str, Any] = {}
        if window is not None and window < self.shared.ctx:
            attributes["local_window_size"] = window
        if config.attention_scale is not None:
            attributes["scale"] = config.attention_scale
        if config.attention_softcap is not None:
            attributes["softcap"] = config.attention_softcap
        tables = None if rope is None else self.shared.rotary(rope)
        if self.shared.quantised:
            rotated = 0 if rope is None else rope.rotated(config.head_dim)
            plan, i = self.shared.plan, self.i
            return QuantisedAttention(self.g, config, self.pack, plan, i, padded, tables, rotated, attributes).node()
        past = (f"past_key.{self.i}", f"past_value.{self.i}")
        return self.g.node(
            "GroupQueryAttention",
            [padded, "", "", *past, "last_position", "total", *(tables or ("", "")), *[""] * 7, "query_lengths"],
            [f"b{self.i}.attention", f"present_key.{self.i}", f"present_value.{self.i}"],
            domain=CONTRIB,
            num_heads=config.n_heads,
            kv_num_heads=config.n_kv_heads,
            do_rotary=int(tables is not None),
            **attributes,
        )

    def _normed_heads(self, qkv: str) -> str:
        """Every query head and key head normed by itself: [T, heads, head_dim]. The attention kernel's own norms are not for CPUs."""
        g, config, p = self.g, self.config, f"b{self.i}"
        n_q, n_kv = config.n_heads, config.n_kv_heads
        heads = g.node("Reshape", [qkv, self.shared.sizes("heads", -1, n_q + 2 * n_kv, config.head_dim)], [f"{p}.heads"])
        g.node("Split", [heads, self.shared.sizes("kinds", n_q, n_kv, n_kv)], [f"{p}.q", f"{p}.k", f"{p}.v"], axis=1)
        q, k = self._out_norm("q_norm", f"{p}.q"), self._out_norm("k_norm", f"{p}.k")
        return g.node("Concat", [q, k, f"{p}.v"], [f"{p}.normed_heads"], axis=1)

    def _linear(self, tensor: str, x: str, k: int) -> str:
        """x [T, k] times the pack's weight, with its bias if the block has one."""
        name = f"b{self.i}.{tensor}"
        if not self._has(f"{tensor}.bias"):
            return self.g.linear(name, x, self.pack, tensor, k)
        product = self.g.linear(f"{name}.product", x, self.pack, tensor, k)
        return self.g.node("Add", [product, self.g.mapped(f"{name}.bias", self.pack, f"{tensor}.bias")], [name])

    def _norm(self, tensor: str, x: str, skip: str | None) -> tuple[str, str]:
        """RMSNorm of `x + skip`, and that sum."""
        if skip is None:
            return self._rms_norm(tensor, x), x
        name = f"b{self.i}.{tensor}"
        weight, total = self.g.mapped(f"{name}.weight", self.pack, tensor), f"{name}.sum"
        outputs, epsilon = [name, "", "", total], self.config.norm_eps
        self.g.node("SkipSimplifiedLayerNormalization", [x, skip, weight], outputs, domain=CONTRIB, epsilon=epsilon)
        return name, total

    def _out_norm(self, tensor: str, x: str) -> str:
        """RMSNorm of `x`, where the block has that norm."""
        return self._rms_norm(tensor, x) if self._has(tensor) else x

    def _rms_norm(self, tensor: str, x: str) -> str:
        name = f"b{self.i}.{tensor}"
        weight = self.g.mapped(f"{name}.weight", self.pack, tensor)
        return self.g.node("SimplifiedLayerNormalization", [x, weight], [name], axis=-1, epsilon=self.config.norm_eps)

    def _has(self, tensor: str) -> bool:
        return tensor in self.parts
