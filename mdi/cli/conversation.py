"""A conversation with one model: what was said, and how the next answer is asked for."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mdi.engine.constraint import Constraint
from mdi.engine.sampling import SamplingParams
from mdi.errors import InternalError, UserError
from mdi.model.chat import Message
from mdi.pipeline.api import Answer, FinishReason, Piece, Request, check_ends

if TYPE_CHECKING:
    from mdi.pipeline.starter import Starter

_HALVES = re.compile(r"[\ud800-\udfff]")
SEED_BITS = 32  # every JSON reader keeps it exactly


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to answer. `seed` None draws one for each answer; `raw` continues the text as it is, without a chat template.

    `constraint`: what the text of each answer must match. `speculate`: guess tokens while it pays; it changes no answer.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    raw: bool = False
    constraint: Constraint | None = None
    speculate: bool = True

    def __post_init__(self) -> None:
        check_ends(self.max_tokens, self.stop)  # now, and not when the model is up

    def drawn(self) -> SamplingParams:
        """The settings of one answer, with its seed."""
        if self.seed is not None:
            return replace(self.params, seed=self.seed)
        return replace(self.params, seed=secrets.randbits(SEED_BITS)) if self.params.temperature > 0 else self.params


def check_question(text: str, *, raw: bool) -> None:
    """Raises UserError for a text that nothing could answer."""
    if not text.strip() and not raw:
        raise UserError("the prompt is empty", hint="type something to answer")


def well_formed(text: str) -> str:
    """Halves of characters, as arguments that are no UTF-8 and JSON files hold them, become U+FFFD: tokenizers refuse them."""
    return _HALVES.sub("\N{REPLACEMENT CHARACTER}", text)


class Conversation:
    """Renders all messages for every answer: the starter finds in KV what it has seen before.

    `messages` changes only when an answer is complete or was cancelled after its first words; a failed turn leaves it alone.
    """

    def __init__(self, starter: Starter, wishes: Wishes, system: str | None = None) -> None:
        self.starter = starter
        self.wishes = wishes
        self._system = well_formed(system) if system else None
        self._turns: list[Message] = []
        self.last: Answer | None = None
        self.params = wishes.params
        """Of the last answer, with the seed that was drawn for it."""

    @property
    def messages(self) -> list[Message]:
        return [*([Message("system", self._system)] if self._system else []), *self._turns]

    def reset(self, system: str | None = None) -> None:
        """Begin anew with this system message."""
        self.resume([])
        self._system = system or None

    def set_system(self, text: str) -> None:
        """Replace the system message in front of what was said; an empty one takes it away."""
        self._system = well_formed(text) or None

    @property
    def system(self) -> str | None:
        return self._system

    def resume(self, messages: Sequence[Message]) -> None:
        """Go on from `messages`, the first of which may be a system message."""
        first = messages[0] if messages and messages[0].role == "system" else None
        self._system = well_formed(first.content) if first else None
        self._turns = [Message(turn.role, well_formed(turn.content)) for turn in (messages[1:] if first else messages)]
        self.last = None

    async def ask(self, text: str) -> AsyncGenerator[Piece | Answer]:
        """Pieces, then the Answer. Raises UserError (nothing to answer), PromptTooLong, ModelError (the template refuses), ClusterError.

        In raw mode every text stands for itself.
        """
        check_question(text, raw=self.wishes.raw)
        text = well_formed(text)
        question = Message("user", text)
        model = self.starter.model
        ids = model.tokenizer.encode_prompt(text) if self.wishes.raw else model.encode_chat([*self.messages, question])
        self.params = self.wishes.drawn()
        wishes = self.wishes
        request = Request(
            tuple(ids),
            self.params,
            wishes.max_tokens,
            wishes.stop,
            wishes.ignore_eos,
            continues=wishes.raw,
            constraint=wishes.constraint,
            speculate=wishes.speculate,
        )
        answer = None
        async with aclosing(self.starter.generate(request)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    answer = event
                else:
                    yield event
        if answer is None:
            raise InternalError("the pipeline ended an answer without saying so")
        self.last = answer
        if not self.wishes.raw and (answer.text or answer.finish_reason is not FinishReason.CANCELLED):
            self._turns += [question, Message("assistant", answer.text)]
        yield answer
