"""Rotary position embedding: how fast each pair of a head's dimensions turns with the position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.fields import Fields

DEFAULT_THETA = 10_000.0  # of the RoPE paper (arXiv 2104.09864), and of every config that does not say


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Position interpolation: every frequency divided by `factor` (arXiv 2306.15595)."""

    factor: float

    def apply(self, frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
        return frequencies / np.float32(self.factor)


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1: slow frequencies divided by `factor`, fast ones kept, those between blended.

    Slow and fast are turns within the `original_positions` of pre-training: below `low_freq_factor`, above `high_freq_factor`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ModelError(
                f"Llama 3.1 rope scaling needs high_freq_factor above low_freq_factor, not {self.high_freq_factor} and "
                f"{self.low_freq_factor}"
            )

    def apply(self, frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
        turns = self.original_positions * frequencies / (2 * math.pi)
        blend = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        scaled: NDArray[np.float32] = ((1 - blend) * frequencies / self.factor + blend * frequencies).astype(np.float32)
        return scaled


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotation of a model: frequencies `theta ** (-2i / head_dim)`, scaled where the context was stretched."""

    theta: float = DEFAULT_THETA
    scaling: LinearScaling | Llama3Scaling | None = None

    def inverse_frequencies(self, head_dim: int) -> NDArray[np.float32]:
        """Radians per position, fp32 [head_dim / 2]; equal to transformers' `inv_freq` to the last fp32 place or so."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = np.float32(1) / np.power(np.float32(self.theta), exponents)
        return self.scaling.apply(frequencies) if self.scaling else frequencies

    @classmethod
    def from_hf(cls, config: Fields, max_positions: int) -> Rope:
        """Reads `rope_theta` with `rope_scaling`, and the `rope_parameters` of transformers 5 that replaced both.

        Raises ModelError naming a rope type that is not computed here.
        """
        rope = config.object("rope_scaling") or config.object("rope_parameters") or Fields({}, config.origin)
        theta = (rope if "rope_theta" in rope.values else config).number("rope_theta", DEFAULT_THETA)
        turned = (rope if "partial_rotary_factor" in rope.values else config).number("partial_rotary_factor", 1.0)
        if turned != 1.0:
            raise ModelError(f"{config.origin} turns only part of each head (partial_rotary_factor {turned}): not supported")
        match rope.text("rope_type", rope.text("type", "default")):
            case "default":
                return cls(theta)
            case "linear":
                return cls(theta, LinearScaling(rope.number("factor")))
            case "llama3":
                # A length beside the scaling overrides the one inside it: so transformers reads it.
                outer = "original_max_position_embeddings" in config.values
                original = (config if outer else rope).integer("original_max_position_embeddings", max_positions)
                factor, low, high = (rope.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
                return cls(theta, Llama3Scaling(factor, low, high, original))
            case unknown:
                raise ModelError(
                    f"{config.origin} asks for the rope type {unknown!r}, which is not supported",
                    hint="choose a model with rope type default, linear or llama3",
                )

    def to_dict(self) -> dict[str, Any]:
        """The `rope_parameters` of transformers 5, which `from_hf` reads back."""
        match self.scaling:
            case None:
                return {"rope_type": "default", "rope_theta": self.theta}
            case LinearScaling(factor):
                return {"rope_type": "linear", "rope_theta": self.theta, "factor": factor}
            case Llama3Scaling(factor, low, high, original):
                return {
                    "rope_type": "llama3",
                    "rope_theta": self.theta,
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
