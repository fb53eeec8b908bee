"""Rotary position embedding: how fast each pair of a head's dimensions turns with the position."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.fields import MAX_FLOAT, Fields

DEFAULT_THETA = 10_000.0  # of the RoPE paper (arXiv 2104.09864), and of every config that does not say
EMPTY_BLEND = 0.001  # frequencies; where YaRN's blend would divide by 0
FULL, LOCAL = "full_attention", "sliding_attention"  # transformers' names of the two kinds of blocks


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Position interpolation: every frequency divided by `factor` (arXiv 2306.15595)."""

    factor: float

    def apply(self, frequencies: NDArray[np.float32], theta: float, ctx: int) -> NDArray[np.float32]:
        return frequencies / np.float32(self.factor)


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """Dynamic NTK: contexts beyond the `original_positions` of training are rotated with a larger theta, the larger the longer they are."""

    factor: float
    original_positions: int

    def apply(self, frequencies: NDArray[np.float32], theta: float, ctx: int) -> NDArray[np.float32]:
        if ctx <= self.original_positions:
            return frequencies
        rotated = 2 * len(frequencies)
        growth: float = (self.factor * ctx / self.original_positions - (self.factor - 1)) ** (rotated / (rotated - 2))
        return _frequencies(min(theta * growth, MAX_FLOAT), rotated)


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

    def apply(self, frequencies: NDArray[np.float32], theta: float, ctx: int) -> NDArray[np.float32]:
        turns = self.original_positions * frequencies / (2 * math.pi)
        blend = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        scaled: NDArray[np.float32] = ((1 - blend) * frequencies / self.factor + blend * frequencies).astype(np.float32)
        return scaled


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): slow frequencies divided by `factor`, fast ones kept, those between blended by their number.

    Fast and slow are turns within the `original_positions` of pre-training: above `beta_fast`, below `beta_slow`. `truncate` widens the
    blend to whole numbers of frequencies. `attention_factor` lengthens every rotated query and key.
    """

    factor: float
    original_positions: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool

    def __post_init__(self) -> None:
        if self.beta_fast < self.beta_slow:
            raise ModelError(f"YaRN rope scaling needs beta_fast above beta_slow, not {self.beta_fast} and {self.beta_slow}")

    def apply(self, frequencies: NDArray[np.float32], theta: float, ctx: int) -> NDArray[np.float32]:
        rotated = 2 * len(frequencies)
        fast, slow = (self._number(turns, theta, rotated) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            fast, slow = math.floor(fast), math.ceil(slow)
        first, last = (
            max(fast, 0),
            min(slow, rotated - 1),
        )  # not len(frequencies) - 1: so the paper's code and transformers have it
        width = last - first or EMPTY_BLEND
        blend = np.clip((np.arange(len(frequencies), dtype=np.float32) - first) / width, 0, 1)
        scaled: NDArray[np.float32] = (blend * frequencies / self.factor + (1 - blend) * frequencies).astype(np.float32)
        return scaled

    def _number(self, turns: float, theta: float, rotated: int) -> float:
        """Which frequency, counted from the fastest and between two of them, makes so many turns."""
        return rotated * math.log(self.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    @classmethod
    def from_hf(cls, rope: Fields, original: int, max_positions: int) -> YarnScaling:
        """`original` positions were trained before the context was stretched to `max_positions`."""
        factor = rope.number("factor", max_positions / original)
        mscale, all_dim = (rope.optional_number(name) for name in ("mscale", "mscale_all_dim"))
        lengthened = (
            _yarn_length(factor, mscale) / _yarn_length(factor, all_dim) if mscale and all_dim else _yarn_length(factor, 1.0)
        )
        return cls(
            factor,
            original,
            rope.number("beta_fast", 32.0),
            rope.number("beta_slow", 1.0),
            rope.number("attention_factor", lengthened),
            rope.boolean("truncate", True),
        )


def _yarn_length(factor: float, scale: float) -> float:
    """How much longer rotated queries and keys should be: eq. 22 of the paper, with the `scale` that later models put in."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


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

    def apply(self, frequencies: NDArray[np.float32], theta: float, ctx: int) -> NDArray[np.float32]:
        factors = np.array(self.long if ctx > self.original_positions else self.short, np.float32)
        return (frequencies / factors).astype(np.float32)

    @classmethod
    def from_hf(cls, rope: Fields, original: int, max_positions: int) -> LongRopeScaling:
        """`original` positions were trained before the context was stretched to `max_positions`."""
        stretch = rope.number("factor", max_positions / original)
        factor = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
        short, long = (rope.numbers(name) for name in ("short_factor", "long_factor"))
        return cls(short, long, original, rope.number("attention_factor", factor))


Scaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


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

    @property
    def stretched_positions(self) -> int:
        """Up to where the scaling carries; 0 where that is the config's `max_position_embeddings` or not said.

        Owners of Qwen models are told to add YaRN to config.json and leave the rest as it is, so `max_position_embeddings` stays that of
        training; and dynamic scaling only does something beyond it.
        """
        if isinstance(self.scaling, DynamicScaling | YarnScaling):
            return int(self.scaling.original_positions * self.scaling.factor)
        return 0

    def check(self, head_dim: int) -> None:
        """Raises ModelError when a head of this size cannot be rotated so."""
        n_pairs, odd = divmod(self.rotated(head_dim), 2)
        if odd or not n_pairs:
            raise ModelError(f"{self.rotated(head_dim)} dimensions of a head of {head_dim} cannot be rotated in pairs")
        if isinstance(self.scaling, YarnScaling) and self.theta <= 1:
            raise ModelError(f"YaRN rope scaling needs a rope_theta above 1, not {self.theta}")
        if isinstance(self.scaling, DynamicScaling) and n_pairs < 2:
            raise ModelError(f"dynamic rope scaling needs more than the {n_pairs} frequency of a head of {head_dim}")
        if isinstance(self.scaling, LongRopeScaling) and {len(self.scaling.short), len(self.scaling.long)} != {n_pairs}:
            raise ModelError(
                f"rope has {len(self.scaling.short)} short and {len(self.scaling.long)} long factors for {n_pairs} frequencies"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            longest = 1 if self.scaling is None else sys.maxsize
            finite = all(np.isfinite(self.inverse_frequencies(head_dim, ctx)).all() for ctx in {1, longest})
        if not finite:
            raise ModelError("the model's rope scaling gives frequencies that are not finite")

    def inverse_frequencies(self, head_dim: int, ctx: int = 1) -> NDArray[np.float32]:
        """Radians per position, fp32 [rotated / 2]; equal to transformers' `inv_freq` to the last fp32 place or so.

        `ctx`, the longest context to come, decides between LongRoPE's two lists, and what dynamic scaling does. transformers decides anew
        for every length, and so mixes rotations in one KV cache; here a sequence is rotated one way from its first token to its last.
        """
        frequencies = _frequencies(self.theta, self.rotated(head_dim))
        return self.scaling.apply(frequencies, self.theta, ctx) if self.scaling else frequencies

    def tables(self, head_dim: int, ctx: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines [ctx, rotated / 2] of every position's rotation angles, with the attention factor in both."""
        angles = np.outer(np.arange(ctx, dtype=np.float64), self.inverse_frequencies(head_dim, ctx).astype(np.float64))
        factor = self.scaling.attention_factor if isinstance(self.scaling, YarnScaling | LongRopeScaling) else 1.0
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
            case DynamicScaling(factor, original):
                return {"rope_type": "dynamic", "factor": factor, "original_max_position_embeddings": original} | common
            case Llama3Scaling(factor, low, high, original):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                } | common
            case YarnScaling(factor, original, fast, slow, attention_factor, truncate):
                return {
                    "rope_type": "yarn",
                    "factor": factor,
                    "original_max_position_embeddings": original,
                    "beta_fast": fast,
                    "beta_slow": slow,
                    "attention_factor": attention_factor,
                    "truncate": truncate,
                } | common
            case LongRopeScaling(short, long, original, attention_factor):
                return {
                    "rope_type": "longrope",
                    "short_factor": list(short),
                    "long_factor": list(long),
                    "original_max_position_embeddings": original,
                    "attention_factor": attention_factor,
                } | common


def _frequencies(theta: float, rotated: int) -> NDArray[np.float32]:
    """Radians per position without scaling, fp32 [rotated / 2]."""
    exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    frequencies: NDArray[np.float32] = np.float32(1) / np.power(np.float32(theta), exponents)
    return frequencies


def _scaling(config: Fields, rope: Fields, max_positions: int) -> Scaling | None:
    def original() -> int:
        # A length beside the scaling overrides the one inside it: so transformers reads it.
        name = "original_max_position_embeddings"
        return (config if name in config.values else rope).integer(name, max_positions)

    match rope.text("rope_type", rope.text("type", "default")):
        case "default":
            return None
        case "linear":
            return LinearScaling(rope.number("factor"))
        case "dynamic":
            return DynamicScaling(rope.number("factor"), original())
        case "llama3":
            factor, low, high = (rope.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
            return Llama3Scaling(factor, low, high, original())
        case "yarn":
            return YarnScaling.from_hf(rope, original(), max_positions)
        case "longrope" | "su":  # its name in the first Phi-3 files
            return LongRopeScaling.from_hf(rope, original(), max_positions)
        case unknown:
            raise ModelError(
                f"{config.origin} asks for the rope type {unknown!r:.80}, which is not supported",
                hint="choose a model with rope type default, linear, dynamic, llama3, yarn or longrope",
            )
