"""The model families that can be run, one row each. A new one is a new row, and code only where it computes something new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from mdi.errors import ModelError


class Role(StrEnum):
    """What a tensor does inside a block. Matrices are [out, in], as checkpoints store them; biases are [out]."""

    INPUT_NORM = "input_norm"
    Q = "q"
    K = "k"
    V = "v"
    QKV = "qkv"  # the three before in one matrix, in that order
    Q_BIAS = "q_bias"
    K_BIAS = "k_bias"
    V_BIAS = "v_bias"
    Q_NORM = "q_norm"  # of every head by itself, before it is rotated
    K_NORM = "k_norm"
    O = "o"  # noqa: E741
    O_BIAS = "o_bias"
    ATTENTION_OUT_NORM = "attention_out_norm"  # of what attention adds to the residual stream
    POST_NORM = "post_norm"  # before the feed-forward part
    ROUTER = "router"
    GATE = "gate"
    UP = "up"
    GATE_UP = "gate_up"  # the two before in one matrix, in that order
    GATE_BIAS = "gate_bias"
    UP_BIAS = "up_bias"
    DOWN = "down"
    DOWN_BIAS = "down_bias"
    FFN_OUT_NORM = "ffn_out_norm"  # of what the feed-forward part adds to the residual stream


BIASED: Mapping[Role, Role] = MappingProxyType(
    {
        Role.Q_BIAS: Role.Q,
        Role.K_BIAS: Role.K,
        Role.V_BIAS: Role.V,
        Role.O_BIAS: Role.O,
        Role.GATE_BIAS: Role.GATE,
        Role.UP_BIAS: Role.UP,
        Role.DOWN_BIAS: Role.DOWN,
    }
)


class Windows(StrEnum):
    """Which blocks see only a window of `sliding_window` tokens, where the config does not list them (`layer_types`)."""

    NEVER = "never"  # whatever the config's sliding_window says
    ALL = "all"  # all, when there is a window
    SWITCHED = "switched"  # all, when the config says use_sliding_window
    LATE = "late"  # those from max_window_layers on, when it says so
    UNROTATED = "unrotated"  # those without rotation, when it says so
    PERIODIC = "periodic"  # all but every n-th


class Activation(StrEnum):
    """The feed-forward part's non-linearity, by its name in transformers."""

    SILU = "silu"
    GELU_TANH = "gelu_pytorch_tanh"


def _names(attention: Mapping[Role, str], *rest: Mapping[Role, str]) -> Mapping[Role, str]:
    merged = dict(attention)
    for names in rest:
        merged |= names
    return MappingProxyType({role: f"model.layers.{{block}}.{name}.weight" for role, name in merged.items()})


_PRE_NORMS = {Role.INPUT_NORM: "input_layernorm", Role.POST_NORM: "post_attention_layernorm"}
_SANDWICH_NORMS = {  # before and after both parts
    Role.INPUT_NORM: "input_layernorm",
    Role.ATTENTION_OUT_NORM: "post_attention_layernorm",
    Role.POST_NORM: "pre_feedforward_layernorm",
    Role.FFN_OUT_NORM: "post_feedforward_layernorm",
}
_QKV = {Role.Q: "self_attn.q_proj", Role.K: "self_attn.k_proj", Role.V: "self_attn.v_proj", Role.O: "self_attn.o_proj"}
_FUSED_QKV = {Role.QKV: "self_attn.qkv_proj", Role.O: "self_attn.o_proj"}
_HEAD_NORMS = {Role.Q_NORM: "self_attn.q_norm", Role.K_NORM: "self_attn.k_norm"}
_GATED = {Role.GATE: "mlp.gate_proj", Role.UP: "mlp.up_proj", Role.DOWN: "mlp.down_proj"}
_FUSED_GATED = {Role.GATE_UP: "mlp.gate_up_proj", Role.DOWN: "mlp.down_proj"}

LLAMA_BLOCK = _names(_PRE_NORMS, _QKV, _GATED)
QWEN3_BLOCK = _names(_PRE_NORMS, _QKV, _HEAD_NORMS, _GATED)
PHI3_BLOCK = _names(_PRE_NORMS, _FUSED_QKV, _FUSED_GATED)
GEMMA2_BLOCK = _names(_SANDWICH_NORMS, _QKV, _GATED)
GEMMA3_BLOCK = _names(_SANDWICH_NORMS, _QKV, _HEAD_NORMS, _GATED)
MIXTRAL_BLOCK = _names(_PRE_NORMS, _QKV, {Role.ROUTER: "block_sparse_moe.gate"})
QWEN3_MOE_BLOCK = _names(_PRE_NORMS, _QKV, _HEAD_NORMS, _GATED, {Role.ROUTER: "mlp.gate"})
MIXTRAL_EXPERT = _names(
    {
        Role.GATE: "block_sparse_moe.experts.{expert}.w1",
        Role.UP: "block_sparse_moe.experts.{expert}.w3",
        Role.DOWN: "block_sparse_moe.experts.{expert}.w2",
    }
)
QWEN_EXPERT = _names({role: name.replace("mlp.", "mlp.experts.{expert}.") for role, name in _GATED.items()})


@dataclass(frozen=True, slots=True)
class ExpertFamily:
    """How a family with mixtures of experts names an expert's tensors, and what its config means where it is silent."""

    tensors: Mapping[Role, str]
    n_experts: int
    n_chosen: int
    d_ffn: int | None = None  # of moe_intermediate_size; None: an expert is as wide as intermediate_size says
    normalised: bool | None = None  # whether the chosen experts' weights add up to 1; None: norm_topk_prob says it


@dataclass(frozen=True, slots=True)
class Family:
    """How checkpoints of one HF architecture name their tensors, what they compute, and what their config means where it is silent."""

    architecture: str
    # Defaults of the config class in transformers: a checkpoint's silence means them.
    max_positions: int
    n_kv_heads: int | None = None  # None: as many as query heads
    head_dim: int | None = None  # None: d_model / query heads
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    tied_head: bool = False
    bos_id: int | None = 1
    eos_id: int | None = 2
    # Which blocks are special
    windows: Windows = Windows.NEVER
    sliding_window: int | None = None
    window_period: int | None = None  # every so many blocks, one without a window
    unrotated_period: int | None = None  # every so many blocks, one without rotation
    # What is computed
    activation: Activation = Activation.SILU
    activation_field: str = "hidden_act"
    qkv_bias: bool = False  # whatever the config says
    bias_fields: tuple[str, ...] = ()  # those of the config that are obeyed; others must be false
    partial_rotation: bool = False  # whether partial_rotary_factor is obeyed; else it must be 1
    local_rope_theta: float | None = None  # of blocks with a window, where they have a rotation of their own
    norm_offset: float = 0.0  # what checkpoints leave out of every norm's weight
    scaled_embedding: bool = False  # by sqrt(d_model)
    query_scalar: float | None = None  # of query_pre_attn_scalar; None: scores are divided by sqrt(head_dim)
    attention_softcap: float | None = None  # of attn_logit_softcapping
    logit_softcap: float | None = None  # of final_logit_softcapping
    softcap_fields: tuple[str, ...] = ()  # those of the config that are obeyed
    experts: ExpertFamily | None = None
    # What its tensors are called
    block: Mapping[Role, str] = field(default_factory=lambda: LLAMA_BLOCK)
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"

    def block_tensors(self, block: int) -> dict[Role, str]:
        """Tensor names of one block by what they do: all that a block of the family may have."""
        names = {role: pattern.format(block=block) for role, pattern in self.block.items()}
        biases = {bias: names[role].removesuffix("weight") + "bias" for bias, role in BIASED.items() if role in names}
        return names | biases

    def expert_tensors(self, block: int, expert: int) -> dict[Role, str]:
        """Names of one expert's gate, up and down. The family must have experts."""
        assert self.experts is not None
        return {role: pattern.format(block=block, expert=expert) for role, pattern in self.experts.tensors.items()}


_BIASES = ("attention_bias", "mlp_bias")
_GEMMA = Family(
    "",
    max_positions=8192,
    n_kv_heads=4,
    head_dim=256,
    tied_head=True,
    bos_id=2,
    eos_id=1,
    windows=Windows.PERIODIC,
    sliding_window=4096,
    activation=Activation.GELU_TANH,
    activation_field="hidden_activation",
    bias_fields=("attention_bias",),
    norm_offset=1.0,
    scaled_embedding=True,
    query_scalar=256.0,
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.architecture: family
        for family in (
            Family("LlamaForCausalLM", max_positions=2048, bias_fields=_BIASES),
            Family("MistralForCausalLM", max_positions=131_072, n_kv_heads=8, windows=Windows.ALL, sliding_window=4096),
            Family(
                "Qwen2ForCausalLM",
                max_positions=32_768,
                n_kv_heads=32,
                bos_id=None,
                eos_id=None,
                windows=Windows.LATE,
                sliding_window=4096,
                qkv_bias=True,
                bias_fields=("attention_bias",),  # some files have it, and it changes nothing
            ),
            Family(
                "Qwen3ForCausalLM",
                max_positions=32_768,
                n_kv_heads=32,
                head_dim=128,
                bos_id=None,
                eos_id=None,
                windows=Windows.LATE,
                sliding_window=4096,
                bias_fields=("attention_bias",),
                block=QWEN3_BLOCK,
            ),
            Family(
                "SmolLM3ForCausalLM",
                max_positions=32_768,
                n_kv_heads=4,
                rope_theta=2_000_000.0,
                tied_head=True,
                bos_id=128_000,
                eos_id=128_001,
                windows=Windows.UNROTATED,
                unrotated_period=4,
                bias_fields=_BIASES,
            ),
            Family(
                "Phi3ForCausalLM",
                max_positions=4096,
                norm_eps=1e-5,
                eos_id=32_000,
                windows=Windows.ALL,
                partial_rotation=True,
                block=PHI3_BLOCK,
            ),
            replace(
                _GEMMA,
                architecture="Gemma2ForCausalLM",
                window_period=2,
                attention_softcap=50.0,
                logit_softcap=30.0,
                softcap_fields=("attn_logit_softcapping", "final_logit_softcapping"),
                block=GEMMA2_BLOCK,
            ),
            replace(
                _GEMMA,
                architecture="Gemma3ForCausalLM",
                max_positions=131_072,
                rope_theta=1_000_000.0,
                local_rope_theta=10_000.0,
                window_period=6,
                softcap_fields=("final_logit_softcapping",),
                block=GEMMA3_BLOCK,
            ),
            Family(
                "MixtralForCausalLM",
                max_positions=131_072,
                n_kv_heads=8,
                norm_eps=1e-5,
                rope_theta=1_000_000.0,
                windows=Windows.ALL,
                experts=ExpertFamily(MIXTRAL_EXPERT, n_experts=8, n_chosen=2, normalised=True),
                block=MIXTRAL_BLOCK,
            ),
            Family(
                "Qwen3MoeForCausalLM",
                max_positions=32_768,
                n_kv_heads=4,
                bos_id=None,
                eos_id=None,
                windows=Windows.SWITCHED,
                sliding_window=4096,
                bias_fields=("attention_bias",),
                experts=ExpertFamily(QWEN_EXPERT, n_experts=128, n_chosen=8, d_ffn=768),
                block=QWEN3_MOE_BLOCK,
            ),
        )
    }
)


def family_of(architecture: str) -> Family:
    """Raises ModelError with the list of what is known."""
    try:
        return FAMILIES[architecture]
    except KeyError:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(
            f"models of the architecture {architecture!r:.80} are not supported", hint=f"choose a model that is one of: {known}"
        ) from None
