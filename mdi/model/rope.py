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
FULL, LOCAL = "full_attention", "sliding_attention"  # transformers' names of the two kinds of blocks


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Position interpolation: every frequency divided by `factor` (arXiv 2306.15595)."""

    factor: float

    def apply(self, frequencies: NDArray[np.float32], ctx: int) -> NDArray[np.float32]:
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

    def apply(self, frequencies: NDArray[np.float32], ctx: int) -> NDArray[np.float32]:
        turns = self.original_positions * frequencies / (2 * math.pi)
        blend = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        scaled: NDArray[np.float32] = ((1 - blend) * frequencies / self.factor + blend * frequencies).astype(np.float32)
        return scaled


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """LongRoPE (arXiv 2402.13753): each frequency divided by a factor of its own.

    One list of factors serves contexts up to `original_positions`, the other longer ones. `attention_factor` lengthens every rotated
    query and key.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_positions: int
    attention_factor: float

    def apply(self, frequencies: NDArray[np.float32], ctx: int) -> NDArray[np.float32]:
        factors = np.array(self.long if ctx > self.original_positions else self.short, np.float32)
        return (frequencies / factors).astype(np.float32)

    @classmethod
    def from_hf(cls, rope: Fields, original: int, max_positions: int) -> LongRopeScaling:
        """`original` positions were trained before the context was stretched to `max_positions`."""
        stretch = rope.number("factor", max_positions / original)
        factor = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
        short, long = (rope.numbers(name) for name in ("short_factor", "long_factor"))
        return cls(short, long, original, rope.number("attention_factor", factor))


Scaling = LinearScaling | Llama3Scaling | LongRopeScaling


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotation of a model: frequencies `theta ** (-2i / rotated)`, scaled where the context was stretched.

    Only the first `part` of a head's dimensions is rotated.
    """

    theta: float = DEFAULT_THETA
    scaling: Scaling | None = None
    part: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.part <= 1:
            raise ModelError(f"partial_rotary_factor is {self.part}, outside 0 to 1")

    def rotated(self, head_dim: int) -> int:
        """How many of a head's dimensions are rotated."""
        return int(head_dim * self.part)

    def check(self, head_dim: int) -> None:
        """Raises ModelError when a head of this size cannot be rotated so."""
        n_pairs, odd = divmod(self.rotated(head_dim), 2)
        if odd or not n_pairs:
            raise ModelError(f"{self.rotated(head_dim)} dimensions of a head of {head_dim} cannot be rotated in pairs")
        if isinstance(self.scaling, LongRopeScaling) and {len(self.scaling.short), len(self.scaling.long)} != {n_pairs}:
            raise ModelError(
                f"rope has {len(self.scaling.short)} short and {len(self.scaling.long)} long factors for {n_pairs} frequencies"
            )

    def inverse_frequencies(self, head_dim: int, ctx: int = 1) -> NDArray[np.float32]:
        """Radians per position, fp32 [rotated / 2]; equal to transformers' `inv_freq` to the last fp32 place or so.

        `ctx`, the longest context to come, chooses between LongRoPE's two lists. transformers chooses anew for every length, and so
        mixes both in one KV cache; here a sequence is rotated one way from its first token to its last.
        """
        rotated = self.rotated(head_dim)
        exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
        frequencies = np.float32(1) / np.power(np.float32(self.theta), exponents)
        return self.scaling.apply(frequencies, ctx) if self.scaling else frequencies

    def tables(self, head_dim: int, ctx: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines [ctx, rotated / 2] of every position's rotation angles, with the attention factor in both."""
        angles = np.outer(np.arange(ctx, dtype=np.float64), self.inverse_frequencies(head_dim, ctx).astype(np.float64))
        factor = self.scaling.attention_factor if isinstance(self.scaling, LongRopeScaling) else 1.0
        return (factor * np.cos(angles)).astype(np.float32), (factor * np.sin(angles)).astype(np.float32)

    @classmethod
    def from_hf(cls, config: Fields, max_positions: int, theta: float = DEFAULT_THETA, *, kind: str = FULL) -> Rope:
        """Reads `rope_theta` with `rope_scaling`, and the `rope_parameters` of transformers 5 that replaced both.

        `theta` is what silence means, `kind` the kind of block where the config tells them apart. Raises ModelError naming a rope
        type that is not computed here.
        """
        rope = config.object("rope_scaling") or config.object("rope_parameters") or Fields({}, config.origin)
        if FULL in rope.values or LOCAL in rope.values:
            rope = rope.object(kind) or Fields({}, config.origin)
        theta = (rope if "rope_theta" in rope.values else config).number("rope_theta", theta)
        part = (rope if "partial_rotary_factor" in rope.values else config).number("partial_rotary_factor", 1.0)
        return cls(theta, _scaling(config, rope, max_positions), part)

    @classmethod
    def local_from_hf(cls, config: Fields, max_positions: int, theta: float) -> Rope:
        """The rotation in blocks that see a window, where it is another: `rope_local_base_freq`, or an entry of `rope_parameters`."""
        nested = config.object("rope_parameters")
        if nested is not None and LOCAL in nested.values:
            return cls.from_hf(Fields({"rope_parameters": nested.values}, config.origin), max_positions, theta, kind=LOCAL)
        return cls(config.number("rope_local_base_freq", theta))

    def to_dict(self) -> dict[str, Any]:
        """The `rope_parameters` of transformers 5, which `from_hf` reads back."""
        common = {"rope_theta": self.theta} | ({} if self.part == 1.0 else {"partial_rotary_factor": self.part})
        match self.scaling:
            case None:
                return {"rope_type": "default"} | common
            case LinearScaling(factor):
                return {"rope_type": "linear", "factor": factor} | common
            case Llama3Scaling(factor, low, high, original):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                } | common
            case LongRopeScaling(short, long, original, attention_factor):
                return {
                    "rope_type": "longrope",
                    "short_factor": list(short),
                    "long_factor": list(long),
                    "original_max_position_embeddings": original,
                    "attention_factor": attention_factor,
                } | common


def _scaling(config: Fields, rope: Fields, max_positions: int) -> Scaling | None:
    # A length beside the scaling overrides the one inside it: so transformers reads it.
    outer = "original_max_position_embeddings" in config.values
    match rope.text("rope_type", rope.text("type", "default")):
        case "default":
            return None
        case "linear":
            return LinearScaling(rope.number("factor"))
        case "llama3":
            original = (config if outer else rope).integer("original_max_position_embeddings", max_positions)
            factor, low, high = (rope.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
            return Llama3Scaling(factor, low, high, original)
        case "longrope" | "su":  # its name in the first Phi-3 files
            original = (config if outer else rope).integer("original_max_position_embeddings", max_positions)
            return LongRopeScaling.from_hf(rope, original, max_positions)
        case unknown:
            raise ModelError(
                f"{config.origin} asks for the rope type {unknown!r:.80}, which is not supported",
                hint="choose a model with rope type default, linear, llama3 or longrope",
            )
