"""Answers that obey a JSON schema or a regular expression: which tokens may come next, by llguidance.

llguidance (MIT; one wheel per platform, 3 MB, no dependencies) parses the grammar lazily, so no automaton over the vocabulary is
built before the first token. It sees tokens as bytes, whatever kind of tokenizer they come from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from mdi.engine.logits import Allowed
from mdi.errors import ModelError, UserError
from mdi.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_SOURCE_CHARS = 1 << 20  # of a schema or expression; the compiler bounds its own work beside that
MAX_ERROR_CHARS = 200
# JSON allows any white space between tokens, and small models love to write it for ever. These are the usual ways: none, one space,
# a new line and its indentation.
JSON_SPACE = r"(?: |\n[ \t]{0,16})?"
APART = "\x02"  # a control character: SentencePiece has it as a byte of its own


class Language(StrEnum):
    JSON_SCHEMA = "JSON schema"
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the text of an answer must match, from its first character to its last. A regex is that of Rust's regex crate,
    with \\d the ten digits.

    Raises UserError for a schema or an expression that cannot be used, or asks for what llguidance does not know.
    """

    language: Language
    source: str

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE_CHARS:
            raise UserError(f"the {self.language} is {len(self.source)} characters long, more than {MAX_SOURCE_CHARS}")
        if self.language is Language.JSON_SCHEMA:
            try:
                schema = json.loads(self.source)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"the JSON schema is not JSON ({error})", hint="give a schema such as {} for any JSON"
                ) from None
            if not isinstance(schema, dict):
                raise UserError("a JSON schema is an object", hint="{} is the schema of any JSON")
        elif not self.source or (len(self.source) - len(self.source.rstrip("\\"))) % 2:
            raise UserError(f"{self.source[:40]!r} is not a regular expression", hint="give one such as [a-z]+")
        self._check(self.grammar(after_space=False))

    def _check(self, grammar: str) -> None:
        from llguidance import LLMatcher

        is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
        if is_error:
            raise UserError(f"the {self.language} cannot be used: {_essence(messages)}")

    def grammar(self, *, after_space: bool) -> str:
        """In llguidance's dialect of Lark. `after_space`: the text comes after one space that is not part of it."""
        from llguidance import regex_to_lark

        if self.language is Language.REGEX:
            body = f"/{regex_to_lark(self.source, 'd')}/"
        else:
            body = "%json " + json.dumps({"x-guidance": {"whitespace_pattern": JSON_SPACE}} | json.loads(self.source))
        space = '" " ' if after_space else ""
        return f"start: {space}body\nbody: {body}\n"


class Guides:
    """Compiles constraints for one model's tokens. The vocabulary is read when the first one comes: a second for 128,000 tokens."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._compiled: dict[frozenset[int], LLTokenizer] = {}  # two at most: with the model's stop ids, and without

    def compile(self, constraint: Constraint, *, stop_ids: frozenset[int], continues: bool = False) -> Guide:
        """A guide for one answer, which any of `stop_ids` may end where the constraint is satisfied.

        With `continues` the text goes on a prompt's own.
        """
        from llguidance import LLMatcher

        tokens = self._compiled.get(stop_ids)
        if tokens is None:
            tokens = self._compiled[stop_ids] = self._read_vocabulary(stop_ids)
        grammar = constraint.grammar(after_space=self._tokenizer.token_bytes.strips_space and not continues)
        return Guide(LLMatcher(tokens, grammar, log_level=0), self._vocab_size, str(constraint.language))

    def _read_vocabulary(self, stop_ids: frozenset[int]) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        ends = sorted(stop_ids) or [self._vocab_size]
        vocabulary = _Vocabulary(self._tokenizer, self._vocab_size, ends)
        return LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=len(vocabulary.tokens), eos_token=ends)


class _Vocabulary:
    """The model's tokens in the shape that llguidance reads, and one more, which no model draws: it ends answers without stop ids."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> None:
        self._encode = tokenizer.encode
        self._strips_space = tokenizer.token_bytes.strips_space
        texts = [tokenizer.token_bytes[token] for token in range(vocab_size)] + [b""]
        # A control token is no text. The byte 0xFF, which no UTF-8 has, keeps it apart from those that spell its name.
        self.tokens = [text or b"\xff[%d]" % token for token, text in enumerate(texts)]
        self.special_token_ids = [token for token, text in enumerate(texts) if not text]
        self.eos_token_id = stop_ids[0]
        self.bos_token_id = None
        self._ids = {text: token for token, text in reversed(list(enumerate(texts))) if text}
        self._longest_bytes = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids whose bytes are exactly `text`: as the tokenizer writes it inside a text, or where it cannot, the longest tokens first."""
        data = text.encode() if isinstance(text, str) else text
        try:
            ids = self._canonical(data.decode(errors="replace"))
            if b"".join([self.tokens[token] for token in ids]) == data:
                return ids
        except (ModelError, IndexError):
            pass  # it writes the text with a token that the model does not have
        return self._longest(data)

    def _canonical(self, text: str) -> list[int]:
        """Many tokenizers put a space before a text: behind a character that joins with none, there is no such beginning."""
        if not self._strips_space:
            return self._encode(text)
        ids = self._encode(APART + text)
        marks = [i for i, token in enumerate(ids) if self.tokens[token] == APART.encode()]
        return ids[marks[0] + 1 :] if marks else []

    def _longest(self, data: bytes) -> list[int]:
        ids = []
        while data:
            n = next((n for n in range(min(len(data), self._longest_bytes), 0, -1) if data[:n] in self._ids), 0)
            if not n:
                break  # no token has this byte: llguidance takes the rest for impossible
            ids.append(self._ids[data[:n]])
            data = data[n:]
        return ids


class Guide:
    """Which tokens may come next in one answer: a function of the answer's tokens, of which it remembers where it has read to.

    A new guide reads them all again, so an answer goes on after a failure as if nothing had happened. `answer` may only grow.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, language: str) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._language = language
        self._n_read = 0
        self._bits = np.zeros(vocab_size // 32 + 1, np.uint32)  # one for each token, and that of the end without stop ids

    def allowed(self, answer: Sequence[int]) -> Allowed:
        """[vocab_size]. Raises UserError when no token can go on, or the constraint became too complex to follow."""
        self._read(answer)
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        allowed = np.unpackbits(self._bits.view(np.uint8), count=self._vocab_size, bitorder="little").view(np.bool_)
        if not allowed.any():
            raise UserError(f"the answer cannot go on as the {self._language} asks: the model has no token for it")
        return allowed

    def is_complete(self, answer: Sequence[int]) -> bool:
        """Whether nothing can follow: the answer ends here, with or without a stop token."""
        self._read(answer)
        return self._matcher.is_stopped()

    def forced(self, answer: Sequence[int]) -> list[int]:
        """The tokens that must come next as the tokenizer would write them; often none. Other tokens may spell the same text."""
        self._read(answer)
        return self._matcher.compute_ff_tokens()

    def possible(self, answer: Sequence[int], draft: Sequence[int]) -> int:
        """How many of the first tokens of `draft` may follow."""
        self._read(answer)
        return self._matcher.validate_tokens(list(draft))

    def _read(self, answer: Sequence[int]) -> None:
        if len(answer) > self._n_read:
            self._matcher.consume_tokens(list(answer[self._n_read :]))
            self._n_read = len(answer)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UserError(f"the answer cannot go on as the {self._language} asks: {_essence([self._matcher.get_error()])}")


def _essence(messages: Collection[str]) -> str:
    """What the compiler complains of, without the place in our grammar where it was."""
    text = next(iter(messages), "no reason given").split("\n   1 |")[0].split("<state>")[0].split("<backtrace>")[0]
    text = " ".join(re.sub(r"^at \d+\(\d+\): ", "", text).rpartition("error: ")[2].split())
    return text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + "..."
