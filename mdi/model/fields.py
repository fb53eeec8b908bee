"""Typed reading of a JSON object that somebody else wrote: a refusal names the field, what was found and what is expected."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdi.errors import ModelError

MAX_FLOAT = 3e38  # fp32 ends at 3.4e38
_SHORT = reprlib.Repr()  # values may be lists of millions; this one writes a few elements
_SHORT.maxstring = _SHORT.maxother = 80
MAX_JSON_BYTES = 32 << 20  # the longest known, an index of 140,000 tensors, are half of it


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """A whole file. Raises ModelError naming it when it cannot be read or is longer than `most_bytes`."""
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > most_bytes:
        raise ModelError(f"{path} is longer than {most_bytes} bytes", hint="download the model again")
    return data


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and where it came from (`origin`, said in every error). Unknown fields are left alone.

    Every method raises ModelError for a value of another kind. A field with a default may be absent or null, others not;
    `optional_integer`, `optional_number` and `token_ids` alone tell null (nothing) from absent (the default).
    """

    values: Mapping[str, Any]
    origin: str

    @classmethod
    def parse(cls, text: str | bytes, origin: str) -> Fields:
        """Raises ModelError when `text` is not one JSON object, or holds texts that are no Unicode (JSON can write half a pair)."""
        try:
            values = json.loads(text)
            if _may_hold_half_pairs(text):
                json.dumps(values, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{origin} is not valid JSON: {error}", hint="download the model again") from error
        if not isinstance(values, dict):
            raise ModelError(f"{origin} holds a {type(values).__name__} where a JSON object is expected")
        return cls(values, origin)

    @classmethod
    def read(cls, path: Path) -> Fields:
        """The JSON object in a file. Raises ModelError as `parse` does, or when the file cannot be read."""
        return cls.parse(read_bounded(path, MAX_JSON_BYTES), str(path))

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refusal(name, "a whole number")
        if value < least:
            raise self.refusal(name, f"a whole number, at least {least}")
        return value

    def optional_integer(self, name: str, default: int | None = None, *, least: int = 1) -> int | None:
        """None when the field is null; `default` when it is absent."""
        return None if self.values.get(name, default) is None else self.integer(name, default, least=least)

    def number(self, name: str, default: float | None = None) -> float:
        """A number above zero that fp32 can hold: that is what every epsilon, theta and factor is."""
        value = self._value(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < MAX_FLOAT:
            raise self.refusal(name, "a number above zero")
        return float(value)

    def optional_number(self, name: str, default: float | None = None) -> float | None:
        """None when the field is null; `default` when it is absent."""
        return None if self.values.get(name, default) is None else self.number(name, default)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers as `number` takes them."""
        values = self.values.get(name)
        if not isinstance(values, list):
            raise self.refusal(name, "a list of numbers above zero")
        return tuple(Fields({name: value}, self.origin).number(name) for value in values)

    def integers(self, name: str, below: int) -> tuple[int, ...] | None:
        """A list of whole numbers from 0 to `below - 1`; None when the field is absent or null."""
        values = self.values.get(name)
        if values is None:
            return None
        if not isinstance(values, list) or not all(type(value) is int and 0 <= value < below for value in values):
            raise self.refusal(name, f"a list of whole numbers below {below}")
        return tuple(values)

    def boolean(self, name: str, default: bool | None = None) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.refusal(name, "a text")
        return value

    def token_ids(self, name: str, default: int | None = None) -> tuple[int, ...]:
        """One id, a list of ids or null, as a tuple."""
        value = self.values.get(name, default)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(token_id, int) and not isinstance(token_id, bool) and token_id >= 0 for token_id in ids):
            raise self.refusal(name, "a token id or a list of them")
        return tuple(ids)

    def object(self, name: str) -> Fields | None:
        """The JSON object under `name`, or None when it is absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refusal(name, "an object")
        return Fields(value, f"{name} of {self.origin}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def refusal(self, name: str, expected: str) -> ModelError:
        if name not in self.values:
            return ModelError(f"{self.origin} lacks the field {name!r} ({expected})")
        return ModelError(f"{name!r:.80} in {self.origin} is {_SHORT.repr(self.values[name]):.80}, but must be {expected}")


def _may_hold_half_pairs(text: str | bytes) -> bool:
    """Whether JSON has escapes, or bytes that begin a character from U+D000 to U+DFFF."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return b"\\u" in raw or b"\xed" in raw
