"""Mixtures of experts in torch: a router chooses a few for each token, and only the chosen ones' weights are read.

Two ways compute the same sum. *Grouped*: the tokens of one expert together, one expert after another; the host must know which were chosen.
*Paired*: every token with every expert that it chose, whatever they are; nothing depends on values, so that a step can be compiled
and recorded as a graph. A token alone reads the same weights in both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mdi.engine.torch_weights import Expand, Part, linear, load_linear, load_vector, paired_products, stacked, take
from mdi.errors import ModelError
from mdi.model.experts import Experts
from mdi.model.packs import Pack


class Mixture(NamedTuple):
    """router float32 [experts, d_model]; weights stacked by expert: `gate_up` [experts, 2 d_ffn, d_model] (rows take turns), `down`."""

    router: Tensor
    gate_up: Part
    down: Part
    n_chosen: int
    normalised: bool


def load_mixture(pack: Pack, experts: Experts, d_model: int, device: torch.device, dtype: torch.dtype) -> Mixture:
    """Raises ModelError when the pack has not these experts, or stores them in several forms."""
    gate_up = _load_experts(pack, "experts_gate_up", (experts.n_experts, 2 * experts.d_ffn, d_model), device, dtype)
    down = _load_experts(pack, "experts_down", (experts.n_experts, d_model, experts.d_ffn), device, dtype)
    router = load_vector(pack, "router", device, (experts.n_experts, d_model))
    return Mixture(router, gate_up, down, experts.n_chosen, experts.normalised)


def _load_experts(pack: Pack, name: str, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> Part:
    n_experts, rows, columns = shape
    parts = load_linear(pack, name, columns, device, dtype, rows=n_experts * rows)
    if len(parts) != 1:
        raise ModelError(f"pack {pack.path.name} stores its experts in several forms: {name}")
    return stacked(parts[0], n_experts)


def mixture(x: Tensor, weights: Mixture, dtype: torch.dtype, expand: Expand | None, *, static: bool) -> Tensor:
    """The chosen experts' outputs on x float32 [R, d_model], added up by router probability: [R, d_model].

    `static`: paired, else grouped. Without `expand` it must be static.
    """
    probabilities = functional.linear(x, weights.router).softmax(-1)
    shares, chosen = probabilities.topk(weights.n_chosen, dim=-1)  # [R, n_chosen]
    if weights.normalised:
        shares = shares / shares.sum(-1, keepdim=True)
    if not static:
        return _grouped(x, weights, shares, chosen, dtype, expand)
    pairs, of_pairs = x.repeat_interleave(weights.n_chosen, dim=0), chosen.flatten()
    if expand is None:
        inner = _gated(paired_products(pairs, take(weights.gate_up, of_pairs)))
        outs = paired_products(inner, take(weights.down, of_pairs))
    else:  # one by one: many experts as numbers would not fit any memory
        outs = torch.cat([_one(pairs[i : i + 1], weights, of_pairs[i], dtype, expand) for i in range(len(pairs))])
    return (outs.view(*chosen.shape, -1) * shares.unsqueeze(-1)).sum(1)


def _grouped(x: Tensor, weights: Mixture, shares: Tensor, chosen: Tensor, dtype: torch.dtype, expand: Expand | None) -> Tensor:
    by_expert = chosen.flatten().argsort(stable=True)  # pairs of tokens and experts, in the order of experts
    counts = torch.bincount(chosen.flatten(), minlength=len(weights.router)).tolist()
    out = torch.zeros_like(x)
    for expert, pairs in enumerate(torch.split(by_expert, counts)):
        if len(pairs):
            rows = torch.div(pairs, weights.n_chosen, rounding_mode="floor")
            part = _one(x[rows], weights, expert, dtype, expand)
            out.index_add_(0, rows, part * shares.flatten()[pairs].unsqueeze(-1))
    return out


def _one(x: Tensor, weights: Mixture, expert: int | Tensor, dtype: torch.dtype, expand: Expand | None) -> Tensor:
    """One expert on x [R, d_model]."""
    inner = _gated(linear(x, (take(weights.gate_up, expert),), dtype, expand))
    return linear(inner, (take(weights.down, expert),), dtype, expand)


def _gated(gate_up: Tensor) -> Tensor:
    return functional.silu(gate_up[..., 0::2]) * gate_up[..., 1::2]
