"""From tokens to text: one request's way through the drive, with stop strings, constraints and timings."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from mdi.engine.constraint import Guide, Guides
from mdi.engine.logits import TokenLogprobs
from mdi.model.tokenizer import Tokenizer
from mdi.pipeline.api import Answer, FinishReason, Piece, Request, Timings
from mdi.pipeline.core import NewToken
from mdi.pipeline.drive import Drive, Inbox
from mdi.pipeline.scheduler import Sequence


class StopFilter:
    """Holds text back while it could still become a stop string. Pure."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.stop: str | None = None

    @property
    def stopped(self) -> bool:
        return self.stop is not None

    def push(self, text: str) -> str:
        """The text that may be shown now. After a stop string `stop` is that one, and nothing more comes."""
        if self.stopped:
            return ""
        self._held += text
        found = [(position, stop) for stop in self._stops if (position := self._held.find(stop)) >= 0]
        if found:
            position, self.stop = min(found)
            shown, self._held = self._held[:position], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


@dataclass(slots=True)
class _Told:
    """What has come of an answer so far. `ends`: how long the decoded text was after each token, stop strings included."""

    texts: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def n_shown(self) -> int:
        """Tokens up to the one in which the last shown character stands; those after it belong to a stop string alone."""
        return bisect_left(self.ends, len(self.text)) + 1 if self.text else 0


async def answer(
    drive: Drive, tokenizer: Tokenizer, guides: Guides, request: Request, inbox: Inbox
) -> AsyncGenerator[Piece | Answer, None]:
    """Pieces, then the Answer. Ends early when None is put into the inbox; when the caller stops listening, it is cancelled."""
    started_s = time.perf_counter()
    stop_ids = frozenset() if request.ignore_eos else tokenizer.stop_ids
    decoder, stops, told = tokenizer.stream(continues=request.continues), StopFilter(request.stop), _Told()
    async with drive.running(
        inbox,
        request.prompt_ids,
        request.params,
        max_new=request.max_tokens,
        stop_ids=stop_ids,
        speculate=request.speculate,
        guide=await _guide(guides, request, stop_ids),
    ) as sequence:
        while not stops.stopped:
            match await inbox.get():
                case NewToken(token_id=int(token_id), is_last=is_last, made_s=made_s, logprobs=logprobs):
                    told.times_s.append(made_s)
                    text = decoder.push(token_id)
                    told.ends.append((told.ends[-1] if told.ends else 0) + len(text))
                    told.texts.append(stops.push(text))
                    if logprobs is not None:
                        told.logprobs.append(logprobs)
                    yield Piece(told.texts[-1], token_id, logprobs)
                    if is_last:
                        break
                case BaseException() as failure:
                    raise failure
                case _:
                    break
        rest = stops.push(decoder.flush()) + stops.flush()
    if rest:
        told.texts.append(rest)
        yield Piece(rest, None)
    yield _finished(request, sequence, told, started_s, stops.stop)


async def _guide(guides: Guides, request: Request, stop_ids: frozenset[int]) -> Guide | None:
    """In a thread: it may take a second, and the links to other nodes must live on. Raises UserError."""
    if request.constraint is None:
        return None
    return await asyncio.to_thread(guides.compile, request.constraint, stop_ids=stop_ids, continues=request.continues)


def _finished(request: Request, sequence: Sequence, told: _Told, started_s: float, stop: str | None) -> Answer:
    times_s = told.times_s
    n_new = len(times_s)
    spread_s = times_s[-1] - times_s[0] if n_new > 1 else 0.0
    drafter = sequence.drafter
    timings = Timings(
        ttft_s=(times_s[0] if times_s else time.perf_counter()) - started_s,
        total_s=time.perf_counter() - started_s,
        prompt_tokens=len(request.prompt_ids),
        reused_tokens=sequence.n_reused,
        new_tokens=n_new,
        decode_tokens_per_s=(n_new - 1) / spread_s if spread_s > 0 else None,
        drafted_tokens=drafter.n_drafted if drafter else 0,
        accepted_tokens=drafter.n_accepted if drafter else 0,
    )
    reason = FinishReason.STOP if stop is not None else sequence.finish or FinishReason.CANCELLED
    n_kept = told.n_shown if stop is not None else n_new
    new_ids = tuple(sequence.answer[:n_kept])
    return Answer(told.text, new_ids, request.prompt_ids, reason, timings, tuple(told.logprobs[:n_kept]), stop)
