"""From tokens to text: one request's way through the drive, with stop strings and timings."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

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
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that may be shown now. After a stop string `stopped` is set, and nothing more comes."""
        if self.stopped:
            return ""
        self._held += text
        found = [position for stop in self._stops if (position := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
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


async def answer(drive: Drive, tokenizer: Tokenizer, request: Request, inbox: Inbox) -> AsyncGenerator[Piece | Answer, None]:
    """Pieces, then the Answer. Ends early when None is put into the inbox; when the caller stops listening, it is cancelled."""
    started_s = time.perf_counter()
    stop_ids = frozenset() if request.ignore_eos else tokenizer.stop_ids
    decoder, stops, texts, times_s = tokenizer.stream(continues=request.continues), StopFilter(request.stop), [], []
    async with drive.running(
        inbox, request.prompt_ids, request.params, max_new=request.max_tokens, stop_ids=stop_ids
    ) as sequence:
        while not stops.stopped:
            match await inbox.get():
                case NewToken(token_id=int(token_id), is_last=is_last):
                    times_s.append(time.perf_counter())
                    texts.append(stops.push(decoder.push(token_id)))
                    yield Piece(texts[-1], token_id)
                    if is_last:
                        break
                case BaseException() as failure:
                    raise failure
                case _:
                    break
        rest = stops.push(decoder.flush()) + stops.flush()
    if rest:
        texts.append(rest)
        yield Piece(rest, None)
    yield _finished(request, sequence, "".join(texts), started_s, times_s, stopped=stops.stopped)


def _finished(
    request: Request, sequence: Sequence, text: str, started_s: float, times_s: list[float], *, stopped: bool
) -> Answer:
    n_new = len(times_s)
    spread_s = times_s[-1] - times_s[0] if n_new > 1 else 0.0
    timings = Timings(
        ttft_s=(times_s[0] if times_s else time.perf_counter()) - started_s,
        total_s=time.perf_counter() - started_s,
        prompt_tokens=len(request.prompt_ids),
        reused_tokens=sequence.n_reused,
        new_tokens=n_new,
        decode_tokens_per_s=(n_new - 1) / spread_s if spread_s > 0 else None,
    )
    reason = FinishReason.STOP if stopped else sequence.finish or FinishReason.CANCELLED
    new_ids = tuple(sequence.tokens[sequence.n_prompt :][:n_new])
    return Answer(text, new_ids, request.prompt_ids, reason, timings)
