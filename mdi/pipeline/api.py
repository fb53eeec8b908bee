"""What the command line (and later the HTTP server) says to the pipeline, and hears from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from mdi.engine.constraint import Constraint
from mdi.engine.logits import TokenLogprobs
from mdi.engine.protocol import check_threads
from mdi.engine.sampling import SamplingParams
from mdi.errors import UserError
from mdi.model.kv import KvType
from mdi.model.quantise import Quant
from mdi.plan.plan import Objective
from mdi.plan.solve import MIXED_SHARE
from mdi.plan.wishes import NO_WISHES, Wishes

MAX_NODES = 1024
MIN_CTX = 16
DEFAULT_WAIT_S = 1.5  # mDNS answers come within 0.3 s on a quiet LAN; a sleeping Wi-Fi radio takes up to a second


@dataclass(frozen=True, slots=True)
class StarterOptions:
    """How to bring a model up. `ctx` None takes the model's own, at most DEFAULT_CTX; `split` gives each node's blocks by hand.

    `kv_type` None keeps KV in 8 bits, unless the weights are fp32. `device` None takes what this home's own daemon computes on, or
    else the best there is.
    """

    model: str = "demo"
    quant: Quant = Quant.AUTO
    block: int | None = None
    kv_type: KvType | None = None
    ctx: int | None = None
    n_slots: int = 1
    objective: Objective = Objective.LATENCY
    min_nodes: int = 1
    mixed_share: float = MIXED_SHARE
    split: tuple[int, ...] | None = None
    wishes: Wishes = NO_WISHES
    peers: tuple[str, ...] = ()
    discovery: bool = True
    wait_s: float = DEFAULT_WAIT_S
    threads: int | None = None
    device: str | None = None
    max_memory_bytes: int | None = None
    refresh_profiles: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.min_nodes <= MAX_NODES:
            raise UserError(f"--min-nodes {self.min_nodes} is outside 1 to {MAX_NODES}")
        check_shape(self.ctx, self.block)
        check_threads(self.threads)
        if self.split is not None and (min(self.split) < 0 or not any(self.split)):
            raise UserError("--split needs counts of blocks such as 4,6,6", hint="a node's count may be 0, but not all of them")
        if self.split is not None and self.wishes.pins:
            raise UserError("--split says where every block lies, and --pin too", hint="use one of the two")
        if not 0 <= self.mixed_share <= 1:
            raise UserError(
                f"--busy-share {self.mixed_share:g} is outside 0 to 1", hint="0.5 means as many tokens under load as alone"
            )


def check_shape(ctx: int | None, block: int | None) -> None:
    """Raises UserError for what no model can have."""
    if ctx is not None and ctx < MIN_CTX:
        raise UserError(f"--ctx {ctx} is too short for any conversation", hint=f"choose at least {MIN_CTX} tokens")
    if block is not None and block < 1:
        raise UserError(f"--block {block} is no number of weights", hint="leave it out, or take 32, 64, 128 or 256")


@dataclass(frozen=True, slots=True)
class Progress:
    """One long piece of work that goes on: `label` names it for a person, `done` of `total` counts parts or bytes."""

    key: str
    label: str
    done: int
    total: int


OnProgress = Callable[[Progress], None]


class FinishReason(StrEnum):
    STOP = "stop"  # the model ended its turn, or a stop string came
    LENGTH = "length"  # max_tokens, or the context is full
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to generate. `max_tokens` None goes on until the model stops or the context is full.

    `continues`: the answer goes on the prompt's own text (`--raw`), so a leading space is a part of it. `constraint`: what its text
    must match. `speculate`: guess tokens by prompt lookup while that pays; the answer is the same with and without.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    continues: bool = False
    constraint: Constraint | None = None
    speculate: bool = True

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise UserError("the prompt is empty", hint="type something to answer")
        check_ends(self.max_tokens, self.stop)


def check_ends(max_tokens: int | None, stop: tuple[str, ...]) -> None:
    """Raises UserError for limits at which no answer could begin."""
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"--max-tokens {max_tokens} asks for nothing", hint="choose at least 1")
    if any(not text for text in stop):
        raise UserError("an empty --stop string would end every answer at once", hint="give it a text, or leave it out")


@dataclass(frozen=True, slots=True)
class Piece:
    """The text that one more token made printable; may be empty. `token_id` None: text that was held back until the end.

    `logprobs` are there when the request's settings ask for them.
    """

    text: str
    token_id: int | None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """`decode_tokens_per_s` counts from the first token to the last; None with fewer than two.

    `new_tokens` were generated, among them `accepted_tokens` that were guessed before; `drafted_tokens` is how many guesses there were.
    """

    ttft_s: float
    total_s: float
    prompt_tokens: int
    reused_tokens: int  # of the prompt, found in KV
    new_tokens: int
    decode_tokens_per_s: float | None
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. `text` is without the stop string, which is `stop`; `token_ids` without the end-of-turn token.

    After a stop string `token_ids` ends with the token in which the last character of `text` stands; so does `logprobs`, which has an
    entry for each of them, or none at all when they were not asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings
    logprobs: tuple[TokenLogprobs, ...] = ()
    stop: str | None = None
