"""From an answer's tokens to what all APIs tell of it: text, tool calls, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mdi.engine.logits import TokenLogprobs
from mdi.pipeline.api import Answer, FinishReason, Piece
from mdi.serve.tools import CallFinder, ToolCall


class Reason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class Delta:
    """What one token brought; often nothing that can be shown yet. `is_token` False: text that was held back until the end."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    logprobs: TokenLogprobs | None = None
    is_token: bool = True


@dataclass(slots=True)
class Outcome:
    """One answer as it is told. `finder` None: there are no tools, and all is text."""

    finder: CallFinder | None = None
    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    answer: Answer | None = None

    def piece(self, piece: Piece) -> Delta:
        if self.finder is None:
            self.texts.append(piece.text)
            return Delta(piece.text, (), piece.logprobs, piece.token_id is not None)
        found = self.finder.push(piece.text)
        self.texts.append(found.text)
        self.calls += found.calls
        return Delta(found.text, found.calls, piece.logprobs, piece.token_id is not None)

    def end(self, answer: Answer) -> Delta:
        """What was held back."""
        self.answer = answer
        if self.finder is None:
            return Delta("", is_token=False)
        found = self.finder.finish()
        self.texts.append(found.text)
        self.calls += found.calls
        return Delta(found.text, found.calls, is_token=False)

    def whole(self, answer: Answer) -> Outcome:
        """This outcome, of an answer that nobody followed."""
        self.piece(Piece(answer.text, None))
        self.end(answer)
        return self

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reason(self) -> Reason:
        assert self.answer is not None
        if self.calls:
            return Reason.TOOL_CALLS
        return Reason.LENGTH if self.answer.finish_reason is FinishReason.LENGTH else Reason.STOP
