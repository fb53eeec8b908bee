"""From logits to the next token. Pure, and stateless: a token depends on the logits, the settings and its index, so a replay repeats it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdi.errors import InternalError, UserError

MAX_SEED = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Temperature 0 takes the likeliest token. `top_k` 0, `top_p` 1 and `min_p` 0 leave all tokens in the draw."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_k", self.top_k, 0, 1 << 31),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("seed", self.seed, 0, MAX_SEED),
        ):
            if not low <= value <= high:
                raise UserError(
                    f"{name} is {value}, outside {low} to {high}", hint=f"choose --{name.replace('_', '-')} in that range"
                )
        if self.top_p == 0.0:
            raise UserError(
                "top_p 0 leaves no token", hint="choose --top-p above 0, or --temperature 0 for the likeliest token"
            )


def sample(logits: NDArray[np.float32], params: SamplingParams, index: int) -> int:
    """The token at `index` of the answer from logits [vocab].

    Filters apply in the usual order: top-k, then top-p on what is left, then min-p; the probabilities are those at the temperature.
    Raises InternalError when the logits are not finite: such an answer would be noise.
    """
    best = int(logits.argmax())
    if not np.isfinite(logits[best]):
        raise InternalError(
            "the model computed logits that are not finite", hint="try --quant none; if it stays, the checkpoint is damaged"
        )
    if params.temperature == 0.0:
        return best
    tokens, probabilities = _candidates(logits, params)
    # One independent generator per token: counter-based, so nothing has to be remembered between tokens.
    uniform = np.random.Generator(np.random.Philox(key=params.seed, counter=index)).random()
    cumulative = np.cumsum(probabilities)
    return int(tokens[min(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")), len(tokens) - 1)])


def _candidates(logits: NDArray[np.float32], params: SamplingParams) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Tokens that may be drawn, likeliest first, with their unnormalised probabilities."""
    k = min(params.top_k, len(logits)) or len(logits)
    tokens = np.argpartition(logits, len(logits) - k)[len(logits) - k :] if k < len(logits) else np.arange(len(logits))
    tokens = tokens[np.argsort(-logits[tokens], kind="stable")]
    scaled = logits[tokens].astype(np.float64) / params.temperature
    probabilities = np.exp(scaled - scaled[0])
    keep = len(tokens)
    if params.top_p < 1.0:
        cumulative = np.cumsum(probabilities)
        keep = int(np.searchsorted(cumulative, params.top_p * cumulative[-1])) + 1
    if params.min_p > 0.0:
        keep = min(keep, int(np.count_nonzero(probabilities >= params.min_p)))
    return tokens[:keep], probabilities[:keep]
