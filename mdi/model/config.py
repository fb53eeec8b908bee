"""What shape a model has: everything about it that is not a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mdi.errors import ModelError
from mdi.model.blocks import Blocks, sparse_blocks, unrotated_blocks, windowed_blocks
from mdi.model.experts import Experts
from mdi.model.families import Family, Role, family_of
from mdi.model.fields import MAX_FLOAT, Fields
from mdi.model.gptq_awq import Coding
from mdi.model.rope import Rope

# Configs also arrive from the network, and buffers are sized by them. The largest open models stay 8 times below.
MAX_BLOCKS = 1024
MAX_WIDTH = 1 << 18  # d_model, d_ffn, heads and head_dim, each
MAX_VOCAB = 1 << 22
MAX_POSITIONS = 1 << 27

BLOCK_LISTS = ("windowed_blocks", "unrotated_blocks", "sparse_blocks")
BIASES = ("attention_bias", "mlp_bias")
SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
ACTIVATIONS = {"swish": "silu"}  # another name of the same function


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder-only transformer. Immutable; `to_json` is its canonical form, stored in packs and sent to nodes.

    Raises ModelError when a value is out of bounds or contradicts another.
    """

    architecture: str
    n_blocks: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ffn: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope: Rope
    sliding_window: int | None  # in `windowed_blocks` a token sees itself and the `sliding_window - 1` before it, elsewhere all
    tied_head: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    windowed_blocks: Blocks = ()
    unrotated_blocks: Blocks = ()  # queries and keys do not know their position
    sparse_blocks: Blocks = ()  # mixtures of experts
    experts: Experts | None = None
    local_rope: Rope | None = None  # of windowed blocks, where it is not `rope`
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    attention_scale: float | None = None  # of scores; None: 1 / sqrt(head_dim)
    attention_softcap: float | None = None  # scores and logits x become cap * tanh(x / cap)
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        family_of(self.architecture)
        for name, most in (
            ("n_blocks", MAX_BLOCKS),
            ("d_model", MAX_WIDTH),
            ("n_heads", MAX_WIDTH),
            ("n_kv_heads", MAX_WIDTH),
            ("head_dim", MAX_WIDTH),
            ("d_ffn", MAX_WIDTH),
            ("vocab_size", MAX_VOCAB),
            ("max_positions", MAX_POSITIONS),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise ModelError(f"the model's {name} is {getattr(self, name)}, outside 1 to {most}")
        if not 0 <= self.norm_eps < 1:
            raise ModelError(f"the model's norm_eps is {self.norm_eps}, outside 0 to 1")
        if self.n_heads % self.n_kv_heads:
            raise ModelError(f"{self.n_heads} query heads cannot share {self.n_kv_heads} key-value heads evenly")
        for name in ("attention_scale", "attention_softcap", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < MAX_FLOAT:
                raise ModelError(f"the model's {name} is {value}, not a number above zero")
        for rope in (self.rope, self.local_rope):
            if rope is not None:
                rope.check(self.head_dim)
        for name in BLOCK_LISTS:
            blocks = getattr(self, name)
            if list(blocks) != sorted(set(blocks)) or (blocks and not 0 <= blocks[0] <= blocks[-1] < self.n_blocks):
                raise ModelError(f"the model's {name} are not ascending numbers of its {self.n_blocks} blocks")
        if self.windowed_blocks and self.sliding_window is None:
            raise ModelError("the model has blocks with a window, and no sliding_window")
        if self.sparse_blocks and (self.experts is None or self.family.experts is None):
            raise ModelError("the model has sparse blocks, and no experts")
        if Role.DOWN not in self.family.block and len(self.sparse_blocks) < self.n_blocks:
            raise ModelError(f"every block of {self.architecture} is a mixture of experts")

    @property
    def family(self) -> Family:
        return family_of(self.architecture)

    @property
    def d_q(self) -> int:
        """Width of all queries of a token."""
        return self.n_heads * self.head_dim

    @property
    def d_kv(self) -> int:
        """Width of all keys (or all values) of a token."""
        return self.n_kv_heads * self.head_dim

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by when they are looked up."""
        return math.sqrt(self.d_model) if self.family.scaled_embedding else 1.0

    def window(self, block: int) -> int | None:
        """How many tokens a token of this block sees, itself among them; None: all before it."""
        return self.sliding_window if block in self.windowed_blocks else None

    def rope_of(self, block: int) -> Rope | None:
        """How this block rotates queries and keys; None: not at all."""
        if block in self.unrotated_blocks:
            return None
        return self.local_rope if self.local_rope is not None and block in self.windowed_blocks else self.rope

    def block_shapes(self, block: int) -> dict[Role, tuple[int, ...]]:
        """Shapes of the tensors that one block has, those of its experts aside; matrices are [out, in]."""
        shapes, sparse = self._shapes(), block in self.sparse_blocks
        return {role: shapes[role] for role in self.family.block_tensors(block) if self._has(role, sparse)}

    def _has(self, role: Role, sparse: bool) -> bool:
        """Whether a block, dense or sparse, has what blocks of its family may have."""
        match role:
            case Role.Q_BIAS | Role.K_BIAS | Role.V_BIAS:
                return self.qkv_bias
            case Role.O_BIAS:
                return self.o_bias
            case Role.ROUTER:
                return sparse
            case Role.GATE | Role.UP | Role.GATE_UP | Role.DOWN:
                return not sparse
            case Role.GATE_BIAS | Role.UP_BIAS | Role.DOWN_BIAS:
                return self.mlp_bias and not sparse
            case _:
                return True

    def expert_shapes(self) -> dict[Role, tuple[int, ...]]:
        """Shapes of one expert's tensors."""
        d_ffn = self.experts.d_ffn if self.experts is not None else 0
        return {Role.GATE: (d_ffn, self.d_model), Role.UP: (d_ffn, self.d_model), Role.DOWN: (self.d_model, d_ffn)}

    def _shapes(self) -> dict[Role, tuple[int, ...]]:
        """Of everything that a block of any family may have."""
        d, d_ffn, d_q, d_kv = self.d_model, self.d_ffn, self.d_q, self.d_kv
        return {
            Role.INPUT_NORM: (d,),
            Role.Q: (d_q, d),
            Role.K: (d_kv, d),
            Role.V: (d_kv, d),
            Role.QKV: (d_q + 2 * d_kv, d),
            Role.Q_BIAS: (d_q,),
            Role.K_BIAS: (d_kv,),
            Role.V_BIAS: (d_kv,),
            Role.Q_NORM: (self.head_dim,),
            Role.K_NORM: (self.head_dim,),
            Role.O: (d, d_q),
            Role.O_BIAS: (d,),
            Role.ATTENTION_OUT_NORM: (d,),
            Role.POST_NORM: (d,),
            Role.ROUTER: (self.experts.n_experts if self.experts is not None else 0, d),
            Role.GATE: (d_ffn, d),
            Role.UP: (d_ffn, d),
            Role.GATE_UP: (2 * d_ffn, d),
            Role.GATE_BIAS: (d_ffn,),
            Role.UP_BIAS: (d_ffn,),
            Role.DOWN: (d, d_ffn),
            Role.DOWN_BIAS: (d,),
            Role.FFN_OUT_NORM: (d,),
        }

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], origin: str = "config.json") -> ModelConfig:
        """Reads the `config.json` of a Hugging Face checkpoint, of transformers 4 or 5.

        Raises ModelError naming the field that is missing, wrong, or asks for something that is not computed here.
        """
        config = Fields(values, origin)
        family = family_of(_architecture(config))
        _refuse_unsupported(config, family)
        n_heads, d_model = config.integer("num_attention_heads"), config.integer("hidden_size")
        n_blocks = config.integer("num_hidden_layers")
        listed = min(n_blocks, MAX_BLOCKS)  # a larger number is refused below
        max_positions = config.integer("max_position_embeddings", family.max_positions)
        rope = Rope.from_hf(config, max_positions, family.rope_theta)
        unrotated = unrotated_blocks(config, family, listed)
        windowed = windowed_blocks(config, family, listed, unrotated)
        return cls(
            architecture=family.architecture,
            n_blocks=n_blocks,
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=config.optional_integer("num_key_value_heads", family.n_kv_heads) or n_heads,
            head_dim=config.optional_integer("head_dim", family.head_dim) or d_model // n_heads,
            d_ffn=config.integer("intermediate_size"),
            vocab_size=config.integer("vocab_size"),
            max_positions=max(max_positions, rope.stretched_positions),
            norm_eps=config.number("rms_norm_eps", family.norm_eps),
            rope=rope,
            sliding_window=config.optional_integer("sliding_window", family.sliding_window) if windowed else None,
            tied_head=config.boolean("tie_word_embeddings", family.tied_head),
            bos_id=config.optional_integer("bos_token_id", family.bos_id, least=0),
            eos_ids=config.token_ids("eos_token_id", family.eos_id),
            windowed_blocks=windowed,
            unrotated_blocks=unrotated,
            sparse_blocks=sparse_blocks(config, family, listed),
            experts=Experts.from_hf(config, family.experts) if family.experts else None,
            local_rope=_local_rope(config, family, max_positions),
            qkv_bias=family.qkv_bias or config.boolean("attention_bias", False),
            o_bias=not family.qkv_bias and config.boolean("attention_bias", False),
            mlp_bias=config.boolean("mlp_bias", False),
            attention_scale=_attention_scale(config, family),
            attention_softcap=_softcap(config, family, "attn_logit_softcapping", family.attention_softcap),
            logit_softcap=_softcap(config, family, "final_logit_softcapping", family.logit_softcap),
        )

    def to_json(self) -> str:
        """Equal configs give equal text, so hashes of it are stable."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values |= {name: value.to_dict() for name, value in values.items() if isinstance(value, Rope | Experts)}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = "a model config") -> ModelConfig:
        """The inverse of `to_json`, for text that may come from anyone: raises ModelError naming the wrong field."""
        config = Fields.parse(text, origin)
        n_blocks, max_positions = config.integer("n_blocks"), config.integer("max_positions")
        rope = _rope_from_json(config, "rope", max_positions)
        if rope is None:
            raise config.refusal("rope", "an object")
        experts = config.object("experts")
        return cls(
            architecture=config.text("architecture"),
            n_blocks=n_blocks,
            d_model=config.integer("d_model"),
            n_heads=config.integer("n_heads"),
            n_kv_heads=config.integer("n_kv_heads"),
            head_dim=config.integer("head_dim"),
            d_ffn=config.integer("d_ffn"),
            vocab_size=config.integer("vocab_size"),
            max_positions=max_positions,
            norm_eps=config.number("norm_eps"),
            rope=rope,
            sliding_window=config.optional_integer("sliding_window"),
            tied_head=config.boolean("tied_head"),
            bos_id=config.optional_integer("bos_id", least=0),
            eos_ids=config.token_ids("eos_ids"),
            windowed_blocks=config.integers("windowed_blocks", n_blocks) or (),
            unrotated_blocks=config.integers("unrotated_blocks", n_blocks) or (),
            sparse_blocks=config.integers("sparse_blocks", n_blocks) or (),
            experts=None if experts is None else Experts.from_json(experts),
            local_rope=_rope_from_json(config, "local_rope", max_positions),
            qkv_bias=config.boolean("qkv_bias"),
            o_bias=config.boolean("o_bias"),
            mlp_bias=config.boolean("mlp_bias"),
            attention_scale=config.optional_number("attention_scale"),
            attention_softcap=config.optional_number("attention_softcap"),
            logit_softcap=config.optional_number("logit_softcap"),
        )


def _architecture(config: Fields) -> str:
    names = config.values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise config.refusal("architectures", "a list of one architecture name")
    return names[0]


def _refuse_unsupported(config: Fields, family: Family) -> None:
    def unsupported(name: str) -> ModelError:
        return ModelError(f"{config.origin} has {name} = {config.values[name]!r:.80}, which is not supported")

    Coding.of_config(config)
    named = config.text(family.activation_field, family.activation)
    if ACTIVATIONS.get(named, named) != family.activation:
        raise unsupported(family.activation_field)
    for name in BIASES:
        if name not in family.bias_fields and config.boolean(name, False):
            raise unsupported(name)
    for name in SOFTCAPS:
        if name not in family.softcap_fields and config.optional_number(name) is not None:
            raise unsupported(name)
    if config.boolean("use_bidirectional_attention", False):
        raise unsupported("use_bidirectional_attention")
    rope = config.object("rope_scaling") or config.object("rope_parameters") or config
    for fields in (rope, config):
        if not family.partial_rotation and fields.number("partial_rotary_factor", 1.0) != 1.0:
            raise ModelError(f"{config.origin} turns only part of each head (partial_rotary_factor), which is not supported")


def _local_rope(config: Fields, family: Family, max_positions: int) -> Rope | None:
    return None if family.local_rope_theta is None else Rope.local_from_hf(config, max_positions, family.local_rope_theta)


def _attention_scale(config: Fields, family: Family) -> float | None:
    return None if family.query_scalar is None else 1 / math.sqrt(config.number("query_pre_attn_scalar", family.query_scalar))


def _softcap(config: Fields, family: Family, name: str, silence: float | None) -> float | None:
    return config.optional_number(name, silence) if name in family.softcap_fields else None


def _rope_from_json(config: Fields, name: str, max_positions: int) -> Rope | None:
    rope = config.object(name)
    return None if rope is None else Rope.from_hf(Fields({"rope_parameters": rope.values}, config.origin), max_positions)
