"""What shape a model has: everything about it that is not a weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mdi.errors import ModelError
from mdi.model.families import Family, Role, family_of
from mdi.model.fields import Fields
from mdi.model.gptq_awq import Coding
from mdi.model.rope import Rope

# Configs also arrive from the network, and buffers are sized by them. The largest open models stay 8 times below.
MAX_BLOCKS = 1024
MAX_WIDTH = 1 << 18  # d_model, d_ffn, heads and head_dim, each
MAX_VOCAB = 1 << 22
MAX_POSITIONS = 1 << 27

MUST_BE_FALSE = ("attention_bias", "mlp_bias")  # true changes the mathematics, in a way that is not computed here
ACTIVATIONS = {"silu": "silu", "swish": "silu"}  # two names of one function


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
    sliding_window: int | None  # a token sees itself and the `sliding_window - 1` before it; None: all before it
    tied_head: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]

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
        if self.head_dim % 2:
            raise ModelError(f"a head of {self.head_dim} dimensions cannot be rotated in pairs")

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

    def block_shapes(self) -> dict[Role, tuple[int, ...]]:
        """Shapes of one block's tensors; matrices are [out, in]."""
        return {
            Role.INPUT_NORM: (self.d_model,),
            Role.Q: (self.d_q, self.d_model),
            Role.K: (self.d_kv, self.d_model),
            Role.V: (self.d_kv, self.d_model),
            Role.O: (self.d_model, self.d_q),
            Role.POST_NORM: (self.d_model,),
            Role.GATE: (self.d_ffn, self.d_model),
            Role.UP: (self.d_ffn, self.d_model),
            Role.DOWN: (self.d_model, self.d_ffn),
        }

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], origin: str = "config.json") -> ModelConfig:
        """Reads the `config.json` of a Hugging Face checkpoint, of transformers 4 or 5.

        Raises ModelError naming the field that is missing, wrong, or asks for something that is not computed here.
        """
        config = Fields(values, origin)
        family = family_of(_architecture(config))
        _refuse_unsupported(config, family)
        n_heads = config.integer("num_attention_heads")
        d_model = config.integer("hidden_size")
        max_positions = config.integer("max_position_embeddings", family.max_positions)
        window = config.optional_integer("sliding_window", family.sliding_window) if family.windowed else None
        return cls(
            architecture=family.architecture,
            n_blocks=config.integer("num_hidden_layers"),
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=config.optional_integer("num_key_value_heads", family.n_kv_heads) or n_heads,
            head_dim=config.optional_integer("head_dim") or d_model // n_heads,
            d_ffn=config.integer("intermediate_size"),
            vocab_size=config.integer("vocab_size"),
            max_positions=max_positions,
            norm_eps=config.number("rms_norm_eps", 1e-6),
            rope=Rope.from_hf(config, max_positions),
            sliding_window=window,
            tied_head=config.boolean("tie_word_embeddings", False),
            bos_id=config.optional_integer("bos_token_id", 1, least=0),
            eos_ids=config.token_ids("eos_token_id", 2),
        )

    def to_json(self) -> str:
        """Equal configs give equal text, so hashes of it are stable."""
        values = {name: getattr(self, name) for name in self.__slots__} | {"rope": self.rope.to_dict()}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = "a model config") -> ModelConfig:
        """The inverse of `to_json`, for text that may come from anyone: raises ModelError naming the wrong field."""
        config = Fields.parse(text, origin)
        if config.object("rope") is None:
            raise config.refusal("rope", "an object")
        max_positions = config.integer("max_positions")
        return cls(
            architecture=config.text("architecture"),
            n_blocks=config.integer("n_blocks"),
            d_model=config.integer("d_model"),
            n_heads=config.integer("n_heads"),
            n_kv_heads=config.integer("n_kv_heads"),
            head_dim=config.integer("head_dim"),
            d_ffn=config.integer("d_ffn"),
            vocab_size=config.integer("vocab_size"),
            max_positions=max_positions,
            norm_eps=config.number("norm_eps"),
            rope=Rope.from_hf(Fields({"rope_parameters": config.values["rope"]}, origin), max_positions),
            sliding_window=config.optional_integer("sliding_window"),
            tied_head=config.boolean("tied_head"),
            bos_id=config.optional_integer("bos_id", least=0),
            eos_ids=config.token_ids("eos_ids"),
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
    if ACTIVATIONS.get(config.text("hidden_act", family.activation)) != family.activation:
        raise unsupported("hidden_act")
    for name in MUST_BE_FALSE:
        if config.boolean(name, False):
            raise unsupported(name)
