"""Attention on KV in 8 bits: two ways to the same numbers, of which each step takes the faster one (`kv_plan.py`).

- in place: GroupQueryAttention's own kernel for int8 KV. For few tokens it is bound by memory, and faster than that for fp32; for many it
  computes dot product by dot product, three times slower than the matrix products of that for fp32.
- expanded: the codes of the tokens so far become fp32 as whole numbers, some heads at a time, for the kernel for fp32. Scales are
  multiplied with the queries and the result instead. New keys and values are rounded first, so both ways see the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto

from mdi.engine.graph import CONTRIB, GraphBuilder
from mdi.engine.kv_plan import KvPlan
from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.kv import KEY_SCALES, MOST_CODE, VALUE_SCALES
from mdi.model.packs import Pack

NO_SCALES_HINT = "use --kv-type fp32, or convert the model again: its packs were made without looking at keys and values"


def declare(g: GraphBuilder) -> None:
    """Inputs: expand bool []; positions int64 [B, S] of the padded tokens; held int64 [1], how many tokens of each slot are read; places
    int64 [T, n_kv_heads, 3], where a token's keys and values go: row, head, position. All but `expand` are looked at only if that is true.
    """
    g.input("expand", TensorProto.BOOL, [])
    g.input("positions", TensorProto.INT64, ["B'", "S'"])
    g.input("held", TensorProto.INT64, [1])
    g.input("places", TensorProto.INT64, ["T'", "heads'", 3])
    g.constant("kv.first", np.array([0], np.int64))
    g.constant("kv.tokens", np.array([2], np.int64))
    g.constant("kv.least", np.array(-MOST_CODE - 1, np.float32))
    g.constant("kv.most", np.array(MOST_CODE, np.float32))


@dataclass(frozen=True, slots=True)
class QuantisedAttention:
    """The attention of a stage's `i`-th block on `padded` [B, S, ...]: packed queries, keys and values.

    `tables` are cosines and sines of `rotated` dimensions, None where nothing is rotated; `attributes` are those of any
    GroupQueryAttention of this block. Raises ModelError for a pack without scales.
    """

    g: GraphBuilder
    config: ModelConfig
    pack: Pack
    plan: KvPlan
    i: int
    padded: str
    tables: tuple[str, str] | None
    rotated: int
    attributes: Mapping[str, Any]

    def node(self) -> str:
        """[B, S, n_heads head_dim]; KV is written in place."""
        found = [self.pack.tensors.get(name) for name in (KEY_SCALES, VALUE_SCALES)]
        wanted = ("F32", (self.config.n_kv_heads * self.config.head_dim,))
        if any(each is None or (each.dtype, each.shape) != wanted for each in found):
            raise ModelError(f"pack {self.pack.path.name[:12]} has no scales for KV in 8 bits that fit", hint=NO_SCALES_HINT)
        names = [f"b{self.i}.attention", f"present_key.{self.i}", f"present_value.{self.i}"]
        return self.g.node("If", ["expand"], names, then_branch=self._expanded(), else_branch=self._in_place())

    def _in_place(self) -> GraphProto:
        config, p = self.config, f"b{self.i}.in_place"
        g = self.g.branch(p)
        shape = (1, config.n_kv_heads, 1, config.head_dim)
        scales = [self.g.mapped(f"b{self.i}.{name}", self.pack, name, shape) for name in (KEY_SCALES, VALUE_SCALES)]
        past = (f"past_key.{self.i}", f"past_value.{self.i}")
        rows = (self.padded, "", "")
        rotary = self.tables or ("", "")
        outputs = [f"{p}.out", f"{p}.key", f"{p}.value"]
        g.node(
            "GroupQueryAttention",
            [*rows, *past, "last_position", "total", *rotary, "", "", "", *scales, "", "", "query_lengths"],
            outputs,
            domain=CONTRIB,
            num_heads=config.n_heads,
            kv_num_heads=config.n_kv_heads,
            do_rotary=int(self.tables is not None),
            k_quant_type="PER_CHANNEL",
            v_quant_type="PER_CHANNEL",
            kv_cache_bit_width=8,
            **self.attributes,
        )
        return g.graph(outputs)

    def _expanded(self) -> GraphProto:
        p = f"b{self.i}.expanded"
        g, config = self.g.branch(p), self.config
        n_q, n_kv, d, groups = config.n_heads, config.n_kv_heads, config.head_dim, self.plan.groups
        keys, values = (self.pack.read(name).reshape(n_kv, d) for name in (KEY_SCALES, VALUE_SCALES))
        kinds = [f"{p}.q", f"{p}.k", f"{p}.v"]
        g.node("Split", [self.padded, self._sizes(f"{p}.kinds", [n_q * d, n_kv * d, n_kv * d])], kinds, axis=-1)
        q, k = (self._rotated(g, rows, heads) for rows, heads in zip(kinds, (n_q, n_kv), strict=False))
        q = g.node("Mul", [q, self._channels(f"{p}.q_factors", np.repeat(keys, n_q // n_kv, 0))], [f"{p}.q_scaled"])
        k = self._rounded(g, k, self._channels(f"{p}.k_inverses", np.reciprocal(keys)))
        v = self._rounded(g, f"{p}.v", self._channels(f"{p}.v_inverses", np.reciprocal(values)))
        presents = [self._written(g, kind, rows) for kind, rows in (("key", k), ("value", v))]
        parts = zip(
            *(self._parts(g, rows, heads * d // groups) for rows, heads in ((q, n_q), (k, n_kv), (v, n_kv))), strict=True
        )
        outs = [self._group(g, group, rows) for group, rows in enumerate(parts)]
        joined = outs[0] if groups == 1 else g.node("Concat", outs, [f"{p}.joined"], axis=-1)
        factors = self._channels(f"{p}.out_factors", np.repeat(values, n_q // n_kv, 0))
        return g.graph([g.node("Mul", [joined, factors], [f"{p}.out"]), *presents])

    def _group(self, g: GraphBuilder, group: int, rows: Sequence[str]) -> str:
        """fp32 attention of some heads, on keys and values as whole numbers: [B, S, heads head_dim]."""
        config, groups, p = self.config, self.plan.groups, f"b{self.i}.expanded.{group}"
        past = [self._numbers(g, f"{p}.{kind}", kind, group) for kind in ("key", "value")]
        g.node(
            "GroupQueryAttention",
            [*rows, *past, "last_position", "total", *[""] * 9, "query_lengths"],
            [p, f"{p}.keys", f"{p}.values"],
            domain=CONTRIB,
            num_heads=config.n_heads // groups,
            kv_num_heads=config.n_kv_heads // groups,
            **self.attributes,
        )
        return p

    def _numbers(self, g: GraphBuilder, p: str, kind: str, group: int) -> str:
        """What a group of heads holds so far, as fp32 [B, heads, held, head_dim]."""
        first, last, axes = "kv.first", "held", "kv.tokens"
        if self.plan.groups > 1:
            heads = self.config.n_kv_heads // self.plan.groups
            first, axes = self._sizes(f"{p}.first", [group * heads, 0]), self._sizes(f"{p}.axes", [1, 2])
            last = g.node("Concat", [self._sizes(f"{p}.end", [(group + 1) * heads]), "held"], [f"{p}.last"], axis=0)
        codes = g.node("Slice", [f"past_{kind}.{self.i}", first, last, axes], [f"{p}.codes"])
        return g.node("Cast", [codes], [f"{p}.numbers"], to=TensorProto.FLOAT)

    def _parts(self, g: GraphBuilder, rows: str, width: int) -> list[str]:
        """Rows cut into the groups' heads."""
        groups = self.plan.groups
        if groups == 1:
            return [rows]
        names = [f"{rows}.{group}" for group in range(groups)]
        g.node("Split", [rows, self._sizes(f"{rows}.widths", [width] * groups)], names, axis=-1)
        return names

    def _rotated(self, g: GraphBuilder, rows: str, heads: int) -> str:
        if self.tables is None:
            return rows
        inputs = [rows, "positions", *self.tables]
        attributes = {"num_heads": heads, "rotary_embedding_dim": self.rotated}
        return g.node("RotaryEmbedding", inputs, [f"{rows}.rotated"], domain=CONTRIB, **attributes)

    def _rounded(self, g: GraphBuilder, rows: str, inverses: str) -> str:
        """Codes as whole numbers, rounded as the kernel for int8 KV does it."""
        scaled = g.node("Mul", [rows, inverses], [f"{rows}.scaled"])
        return g.node("Clip", [g.node("Round", [scaled], [f"{rows}.whole"]), "kv.least", "kv.most"], [f"{rows}.codes"])

    def _written(self, g: GraphBuilder, kind: str, rows: str) -> str:
        """KV with the codes [B, S, n_kv_heads head_dim] in their places. It is bound to the same memory before and after, so only
        those are copied."""
        p = f"b{self.i}.expanded.new_{kind}"
        codes = g.node("Cast", [rows], [f"{p}.codes"], to=TensorProto.INT8)
        shape = self._sizes(f"{p}.shape", [-1, self.config.n_kv_heads, self.config.head_dim])
        tokens = g.node("Gather", [g.node("Reshape", [codes, shape], [f"{p}.rows"]), "unpad"], [f"{p}.tokens"], axis=0)
        return g.node("ScatterND", [f"past_{kind}.{self.i}", "places", tokens], [p])

    def _channels(self, name: str, values: NDArray[np.float32]) -> str:
        return self.g.constant(name, values.reshape(1, 1, -1).astype(np.float32))

    def _sizes(self, name: str, values: Sequence[int]) -> str:
        return self.g.constant(name, np.array(values, np.int64))
