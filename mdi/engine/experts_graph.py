"""The nodes of a mixture of experts: only the weights of the experts that a step chooses are read."""

from __future__ import annotations

from typing import Any

from mdi.engine.graph import CONTRIB, INT8_DOT, GraphBuilder
from mdi.errors import ModelError
from mdi.model.experts import Experts
from mdi.model.linear import LinearPart
from mdi.model.packs import Pack

INTERLEAVED = 1  # `swiglu_fusion`: rows of gate and up take turns; the kernels have no other layout
AS_STORED = 0  # `weights_prepacked`: codes lie as MatMulNBits takes them
N_ABSENT = 6  # inputs before `router_weights`: a third projection, and zero points


def experts(g: GraphBuilder, pack: Pack, mix: Experts, p: str, x: str, d_model: int) -> str:
    """The chosen experts' outputs on x [T, d_model], added up by router probability: [T, d_model].

    Raises ModelError when the pack's format has blocks that do not divide the experts' rows: the kernel has no padding.
    """
    g.reads["experts_gate_up"] = x
    logits = g.node("Gemm", [x, g.mapped(f"{p}.router.weight", pack, "router")], [f"{p}.router"], transB=1)  # [T, experts]
    attributes: dict[str, Any] = {
        "k": mix.n_chosen,
        "activation_type": "swiglu",
        "swiglu_fusion": INTERLEAVED,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": int(mix.normalised),
    }
    shapes = {"experts_gate_up": (2 * mix.d_ffn, d_model), "experts_down": (d_model, mix.d_ffn)}
    form, down_form = (_form(pack, name) for name in shapes)
    if (form.bits, form.block) != (down_form.bits, down_form.block):
        raise ModelError(f"pack {pack.path.name} stores its experts in several forms")
    if form.bits == 32:
        up, down = (
            g.mapped(f"{p}.{name}.weight", pack, f"{name}.weight", (mix.n_experts, *shape)) for name, shape in shapes.items()
        )
        return g.node("MoE", [x, logits, up, "", down], [f"{p}.experts"], domain=CONTRIB, **attributes)
    weights = [
        tensor for name, (n, k) in shapes.items() for tensor in (*_quantised(g, pack, mix, f"{p}.{name}", name, n, k), "")
    ]
    # Left to itself the kernel normalises whatever it is told; given weights, it follows them.
    given = [] if mix.normalised else [*[""] * N_ABSENT, g.node("Softmax", [logits], [f"{p}.probabilities"], axis=-1)]
    return g.node(
        "QMoE",
        [x, logits, *weights, *given],
        [f"{p}.experts"],
        domain=CONTRIB,
        expert_weight_bits=form.bits,
        block_size=form.block,
        accuracy_level=INT8_DOT,
        weights_prepacked=AS_STORED,
        **attributes,
    )


def _quantised(g: GraphBuilder, pack: Pack, mix: Experts, prefix: str, name: str, n: int, k: int) -> tuple[str, str]:
    """Codes and scales of all experts' [n, k]."""
    form = _form(pack, name)
    bits, block = form.bits, form.block
    if k % block:  # what converts models refuses it before (`check_format`); a pack may come from elsewhere
        raise ModelError(f"pack {pack.path.name}: blocks of {block} values do not divide the {k} columns of experts")
    codes = g.mapped(f"{prefix}.codes", pack, f"{name}.codes", (mix.n_experts, n, k * bits // 8))
    return codes, g.mapped(f"{prefix}.scales", pack, f"{name}.scales", (mix.n_experts, n, k // block))


def _form(pack: Pack, name: str) -> LinearPart:
    """The one form of all experts' rows. Raises ModelError for a pack that has several, or one that the kernel does not know."""
    parts = pack.linears.get(name, ())
    if len(parts) != 1 or not (parts[0].part.bits == 32 or parts[0].part.only_scaled):
        raise ModelError(f"pack {pack.path.name} has no usable linear layer {name}")
    return parts[0].part
