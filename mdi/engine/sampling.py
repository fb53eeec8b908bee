"""From logits to the next token. Pure, and stateless: a token depends on the logits, the settings, the tokens before it and its
index, so a replay repeats it, and so does any other split of the model that computes the same logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdi.engine.logits import Allowed, Penalties, adjust, likeliest
from mdi.errors import InternalError, UserError

MAX_SEED = (1 << 64) - 1
MAX_PENALTY = 2.0  # of frequency and presence, either way: OpenAI's and vLLM's range
MAX_BIAS = 100.0  # either way: bans a token or forces it, whatever the model says
MAX_BIASES = 1024  # so many take 0.4 ms per token
MAX_LOGPROBS = 20  # OpenAI's and vLLM's bound on alternatives per token

# Tokens with less than this part of the likeliest one's probability are looked at only when the likelier ones do not fill top_p.
NUCLEUS_FLOORS = (1e-3, 1e-6, 0.0)
BLOCK = 256  # weights that are summed as one in the search for the drawn token
ROUNDING = 1e-6  # of a logit in fp32, with room


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Temperature 0 takes the likeliest token. `top_k` 0, `top_p` 1 and `min_p` 0 leave all tokens in the draw.

    `logit_bias` holds (token id, what is added to its logit); `logprobs` None reports none, N those of the chosen token and of the
    N likeliest. Raises UserError for values out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_k", self.top_k, 0, 1 << 31),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("seed", self.seed, 0, MAX_SEED),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100.0),
            ("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY),
            ("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY),
            ("logprobs", self.logprobs or 0, 0, MAX_LOGPROBS),
        ):
            if not low <= value <= high:
                raise UserError(
                    f"{name} is {value}, outside {low} to {high}", hint=f"choose --{name.replace('_', '-')} in that range"
                )
        if self.top_p == 0.0:
            raise UserError(
                "top_p 0 leaves no token", hint="choose --top-p above 0, or --temperature 0 for the likeliest token"
            )
        self._check_bias()

    def _check_bias(self) -> None:
        if len(self.logit_bias) > MAX_BIASES:
            raise UserError(f"logit_bias names {len(self.logit_bias)} tokens, more than {MAX_BIASES}")
        if len({token for token, _ in self.logit_bias}) < len(self.logit_bias):
            raise UserError("logit_bias names a token twice", hint="give each token id one bias")
        for token, value in self.logit_bias:
            if token < 0 or not -MAX_BIAS <= value <= MAX_BIAS:
                raise UserError(
                    f"logit_bias {value} of token {token} is not possible",
                    hint=f"--logit-bias ID=X takes X from {-MAX_BIAS} to {MAX_BIAS}",
                )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises UserError for a bias of a token that the model does not have."""
        for token, _ in self.logit_bias:
            if token >= vocab_size:
                raise UserError(f"logit_bias names token {token}, and the model has only {vocab_size}")

    @property
    def penalties(self) -> Penalties:
        return Penalties(self.repetition_penalty, self.frequency_penalty, self.presence_penalty)


def sample(
    logits: NDArray[np.float32],
    params: SamplingParams,
    index: int,
    tokens: Sequence[int] = (),
    allowed: Allowed | None = None,
) -> int:
    """The token at `index` of the answer from logits [vocab], which stay as they are. `tokens`: prompt and answer so far.

    Steps, in vLLM's order up to the temperature: what is not `allowed` goes, logit bias, repetition, frequency and presence
    penalty; at temperature 0 the likeliest token is the answer. Else temperature, then what llama.cpp and transformers both keep in
    this order: top-k, top-p on what is left, min-p. Then the draw.
    Raises InternalError when the logits are not finite: such an answer would be noise.
    """
    adjusted = adjust(logits, tokens, index, allowed=allowed, bias=params.logit_bias, penalties=params.penalties)
    best = int(adjusted.argmax())
    if not math.isfinite(adjusted[best]):
        raise InternalError(
            "the model computed logits that are not finite", hint="try --quant none; if it stays, the checkpoint is damaged"
        )
    if params.temperature == 0.0:
        return best
    ids, weights = candidates(adjusted, params, float(adjusted[best]))
    # One independent generator per token: counter-based, so nothing has to be remembered between tokens.
    uniform = np.random.Generator(np.random.Philox(key=params.seed, counter=index)).random()
    # Drawn in the order of ids, not of ranks: where rounding swaps two tokens of almost equal logits, a boundary moves by that
    # rounding, and the draw is almost surely the same.
    place = _place(weights, uniform)
    return place if ids is None else int(ids[place])


def _place(weights: NDArray[np.float32], uniform: float) -> int:
    """Where the cumulated weights pass `uniform` of their sum. In two strides: 0.07 ms for 128,000, one by one 1.3."""
    n_blocks = len(weights) // BLOCK
    sums = weights[: n_blocks * BLOCK].reshape(n_blocks, BLOCK).sum(axis=1, dtype=np.float64)
    cumulative = np.cumsum(np.append(sums, weights[n_blocks * BLOCK :].sum(dtype=np.float64)))
    point = min(uniform * cumulative[-1], np.nextafter(cumulative[-1], 0.0))  # below the end: rounding must not pass it
    block = int(np.searchsorted(cumulative, point, side="right"))
    inside = np.cumsum(weights[block * BLOCK : (block + 1) * BLOCK], dtype=np.float64)
    point = min(point - (cumulative[block - 1] if block else 0.0), np.nextafter(inside[-1], 0.0))
    return block * BLOCK + int(np.searchsorted(inside, point, side="right"))


def candidates(
    logits: NDArray[np.float32], params: SamplingParams, best: float
) -> tuple[NDArray[np.intp] | None, NDArray[np.float32]]:
    """Ids of the tokens that may be drawn, ascending (None: all), and their probabilities as parts of the likeliest one's."""
    top_k = params.top_k if params.top_k < len(logits) else 0
    if params.top_p < 1.0:
        ids = np.sort(_nucleus(logits, params, top_k, best))
    elif params.min_p > 0.0:
        ids = _at_least(logits, params, best, params.min_p)
        ids = np.sort(ids[likeliest(logits[ids], top_k)]) if 0 < top_k < len(ids) else ids
    elif top_k:
        ids = np.sort(likeliest(logits, top_k))
    else:
        return None, _weights(logits, params, best)
    weights = _weights(logits[ids], params, best)
    if params.min_p > 0.0:
        kept = weights >= params.min_p
        return ids[kept], weights[kept]
    return ids, weights


def _nucleus(logits: NDArray[np.float32], params: SamplingParams, top_k: int, best: float) -> NDArray[np.intp]:
    """Ids of the likeliest tokens, of the `top_k` likeliest if it is not 0, that together have `top_p` of the probability.

    Of equally likely ones none is left out alone. With `min_p` those below it may be missing: they will not be drawn.
    """
    if top_k:
        ids = likeliest(logits, top_k)
        return _fill(ids, logits, params, best, params.top_p * _mass(logits[ids], params, best))[0]
    wanted = params.top_p * _mass(logits, params, best)
    for floor in (params.min_p,) if params.min_p else NUCLEUS_FLOORS:
        ids, full = _fill(_at_least(logits, params, best, floor), logits, params, best, wanted)
        if full:
            break
    return ids


def _fill(
    ids: NDArray[np.intp], logits: NDArray[np.float32], params: SamplingParams, best: float, wanted: float
) -> tuple[NDArray[np.intp], bool]:
    """The likeliest of `ids` that together weigh `wanted`, and whether they do. It sorts values: sorting ids takes twice as long."""
    values = np.sort(logits[ids])[::-1]
    cumulative = np.cumsum(_weights(values, params, best), dtype=np.float64)
    n_kept = int(np.searchsorted(cumulative, wanted)) + 1
    return (ids[logits[ids] >= values[n_kept - 1]], True) if n_kept <= len(ids) else (ids, False)


def _mass(logits: NDArray[np.float32], params: SamplingParams, best: float) -> float:
    return float(_weights(logits, params, best).sum(dtype=np.float64))


def _at_least(logits: NDArray[np.float32], params: SamplingParams, best: float, ratio: float) -> NDArray[np.intp]:
    """Ids of tokens with at least `ratio` of the likeliest one's probability, and perhaps some that rounding puts just below."""
    floor = best + params.temperature * math.log(ratio) if ratio else -math.inf
    return np.flatnonzero(logits >= np.float32(floor - ROUNDING * max(1.0, abs(floor))))


def _weights(logits: NDArray[np.float32], params: SamplingParams, best: float) -> NDArray[np.float32]:
    """Probabilities at the temperature, as parts of the likeliest one's. In fp32: 58 us for 128,000, in fp64 twice that."""
    weights: NDArray[np.float32] = np.exp((logits - np.float32(best)) / np.float32(params.temperature))
    return weights
