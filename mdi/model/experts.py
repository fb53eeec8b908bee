"""Mixtures of experts: a block whose feed-forward part is many small ones, of which a router chooses a few for each token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mdi.errors import ModelError
from mdi.model.families import ExpertFamily
from mdi.model.fields import Fields

MAX_EXPERTS = 1 << 12  # configs come from anyone; the largest open models have 512
MAX_D_FFN = 1 << 18  # as wide as a dense feed-forward part may be


@dataclass(frozen=True, slots=True)
class Experts:
    """Each token goes to the `n_chosen` experts with the highest router probability, and their outputs are added by it.

    `normalised`: the chosen ones' probabilities are first made to add up to 1. Raises ModelError when there are not so many.
    """

    n_experts: int
    n_chosen: int
    d_ffn: int  # of each
    normalised: bool

    def __post_init__(self) -> None:
        if not 1 <= self.n_chosen <= self.n_experts <= MAX_EXPERTS:
            raise ModelError(
                f"{self.n_chosen} of {self.n_experts} experts for each token are not possible (at most {MAX_EXPERTS})"
            )
        if not 1 <= self.d_ffn <= MAX_D_FFN:
            raise ModelError(f"the width of the model's experts is {self.d_ffn}, outside 1 to {MAX_D_FFN}")

    @classmethod
    def from_hf(cls, config: Fields, family: ExpertFamily) -> Experts:
        """Reads the fields of the config, of transformers 4 or 5."""
        count = "num_local_experts" if "num_local_experts" in config.values else "num_experts"
        return cls(
            config.integer(count, family.n_experts),
            config.integer("num_experts_per_tok", family.n_chosen),
            config.integer("intermediate_size")
            if family.d_ffn is None
            else config.integer("moe_intermediate_size", family.d_ffn),
            config.boolean("norm_topk_prob", False) if family.normalised is None else family.normalised,
        )

    @classmethod
    def from_json(cls, experts: Fields) -> Experts:
        """The inverse of `to_dict`. Raises ModelError naming the wrong field."""
        n_experts, n_chosen, d_ffn = (experts.integer(name) for name in ("n_experts", "n_chosen", "d_ffn"))
        return cls(n_experts, n_chosen, d_ffn, experts.boolean("normalised"))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
