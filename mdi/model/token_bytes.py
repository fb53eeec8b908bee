"""From token ids back to text, a token at a time: every token is some bytes, and the bytes are UTF-8."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable
from typing import Any

from tokenizers import Tokenizer

from mdi.errors import ModelError

SPACE = "▁"


def _byte_letters() -> dict[str, int]:
    """Byte-level BPE writes every byte as one printable letter (Radford et al. 2019): Latin-1's own where it has one."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_LETTERS = _byte_letters()
BYTE_PIECES = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}  # SentencePiece's byte fallback


def _byte_level(token: str) -> bytes:
    if all(letter in BYTE_LETTERS for letter in token):
        return bytes(BYTE_LETTERS[letter] for letter in token)
    return token.encode()


def _pieces(token: str) -> bytes:
    return BYTE_PIECES.get(token) or token.replace(SPACE, " ").encode()


class TokenBytes:
    """The bytes of each token of a tokenizer. Special tokens, and ids that it does not have, are no bytes."""

    def __init__(self, tokenizer: Tokenizer, origin: str) -> None:
        """Raises ModelError when the tokenizer decodes in a way that is neither byte-level nor SentencePiece's."""
        self._token_of: Callable[[int], str | None] = tokenizer.id_to_token
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token_id: b"" if token.special else token.content.encode() for token_id, token in added.items()}
        decoder = json.loads(tokenizer.to_str())["decoder"]
        steps = _steps(decoder)
        kinds = {step["type"] for step in steps}
        if "ByteLevel" in kinds:
            self._convert = _byte_level
        elif kinds & {"ByteFallback", "Metaspace"}:
            self._convert = _pieces
        else:
            raise ModelError(f"{origin} decodes by {sorted(kinds) or 'nothing'}, which is not supported")
        self.strips_space = any(
            (step["type"] == "Strip" and step["start"] > 0)
            or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
            for step in steps
        )
        """Whether the first space of a text is the tokenizer's own addition."""

    def __getitem__(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return added
        token = self._token_of(token_id)
        return b"" if token is None else self._convert(token)


class StreamDecoder:
    """Text as tokens arrive. It never gives half a character: `push` holds at most 3 bytes back, `flush` ends the text.

    The texts of all pushes and the flush together are `Tokenizer.decode` of the same ids, for any ids. Bytes that are no
    UTF-8 become U+FFFD.
    """

    def __init__(self, token_bytes: TokenBytes, *, continues: bool = False) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = token_bytes.strips_space and not continues

    def push(self, token_id: int) -> str:
        """The text that this token completes, often empty."""
        return self._emit(self._token_bytes[token_id], final=False)

    def flush(self) -> str:
        """What was held back: U+FFFD if the text ended inside a character, else nothing."""
        return self._emit(b"", final=True)

    def text(self, token_ids: Iterable[int]) -> str:
        """All of a text at once."""
        return "".join(map(self.push, token_ids)) + self.flush()

    def _emit(self, data: bytes, *, final: bool) -> str:
        text = self._utf8.decode(data, final)
        if text and self._strip:
            self._strip = False
            return text.removeprefix(" ")
        return text


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return [step for part in decoder["decoders"] for step in _steps(part)] if "decoders" in decoder else [decoder]
