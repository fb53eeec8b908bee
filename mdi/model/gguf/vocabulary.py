"""The tokens of a GGUF file: texts, kinds and scores, and which of them are special."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.config import MAX_VOCAB
from mdi.model.fields import Fields
from mdi.model.gguf.metadata import Metadata
from mdi.model.sentencepiece_bpe import MAX_TOKEN_CHARS
from mdi.model.tokenizer import END_OF_TURN

SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "padding", "separator", "mask")
# Where a SentencePiece file is silent: the order in which SentencePiece makes vocabularies.
SPM_DEFAULTS = {"unknown": 0, "bos": 1, "eos": 2}
PREFIX = "tokenizer.ggml"


class Kind(IntEnum):
    """What a token is, as SentencePiece numbers it."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Texts by id, each only once, with a kind for each and a score where there are any."""

    texts: list[str]
    kinds: NDArray[np.int32]
    scores: NDArray[np.float32] | None

    @classmethod
    def read(cls, metadata: Metadata, origin: str) -> Vocabulary:
        """Raises ModelError when the lists are missing, of different lengths, or hold a text twice."""
        texts = metadata.texts(f"{PREFIX}.tokens")
        if not 1 <= len(texts) <= MAX_VOCAB:
            raise ModelError(f"{origin} has {len(texts)} tokens, outside 1 to {MAX_VOCAB}")
        longest = max(map(len, texts))
        if longest > MAX_TOKEN_CHARS:
            raise ModelError(f"{origin} has a token of {longest} characters, more than {MAX_TOKEN_CHARS}")
        texts = [text or f"[EMPTY_{token_id}]" for token_id, text in enumerate(texts)]
        if len(set(texts)) != len(texts):
            seen: set[str] = set()
            twice = next(text for text in texts if text in seen or seen.add(text))  # type: ignore[func-returns-value]
            raise ModelError(f"{origin} has the token {twice!r:.80} twice")
        found = _list(metadata, "token_type", len(texts), origin)
        if found is not None and found.dtype.kind not in "iu":
            raise ModelError(f"'{PREFIX}.token_type' holds no whole numbers in {origin}")
        kinds = np.full(len(texts), Kind.NORMAL, np.int32) if found is None else found.astype(np.int32)
        scores = _list(metadata, "scores", len(texts), origin)
        ends = set(END_OF_TURN)  # converters often forget that these are control tokens
        kinds[[token_id for token_id, text in enumerate(texts) if text in ends]] = Kind.CONTROL
        return cls(texts, kinds, None if scores is None else scores.astype(np.float32))

    def of_kind(self, *kinds: Kind) -> Iterator[tuple[int, str]]:
        """Ids and texts, by id."""
        for token_id in np.flatnonzero(np.isin(self.kinds, kinds)):
            yield int(token_id), self.texts[token_id]


def special_id(fields: Fields, name: str) -> int | None:
    """The id of a special token, by one of the names in `SPECIAL`; None where there is none, or one that is no token's."""
    model = fields.text(f"{PREFIX}.model", "")
    default = SPM_DEFAULTS.get(name) if model == "llama" else None
    token_id = fields.optional_integer(f"{PREFIX}.{name}_token_id", default, least=-1)
    if token_id is None or not isinstance(fields.values, Metadata):
        return token_id
    return token_id if 0 <= token_id < fields.values.length(f"{PREFIX}.tokens") else None


def _list(metadata: Metadata, name: str, length: int, origin: str) -> NDArray[np.generic] | None:
    """One number for each token; None where the file has no such list. Longer lists are cut, as llama.cpp does."""
    key = f"{PREFIX}.{name}"
    if key not in metadata:
        return None
    numbers = metadata.numbers(key)
    if len(numbers) < length:
        raise ModelError(f"{origin} has {length} tokens, but {key!r} is only {len(numbers)} long")
    return numbers[:length]
