"""The key-value part of a GGUF header, checked as a whole when read and decoded when asked for."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.gguf.cursor import Cursor

MAX_KEYS = 4096  # published files have 20 to 60
MAX_KEY_BYTES = 65_535  # the format's own limit
MAX_TEXT_BYTES = 64 << 20  # the longest known are whole tokenizer.json files, of 35 MB, which nobody here asks for
MAX_READ_BYTES = 1 << 22  # of a text that is asked for: chat templates, of at most 2^20 characters
MAX_TEXTS = 1 << 21  # in all arrays together: Gemma has 262,144 tokens and 514,906 merges
MAX_TEXTS_BYTES = 128 << 20  # of all arrays of texts together: Gemma's are 14 MB
MAX_NUMBERS = 1 << 24  # in one array: scores and types go with tokens

BOOL, TEXT, ARRAY = 7, 8, 9
# u8, i8, u16, i16, u32, i32, f32, bool, and from 10 on u64, i64, f64
SCALARS: Mapping[int, struct.Struct] = MappingProxyType(
    {kind: struct.Struct(f"<{letter}") for kind, letter in [*enumerate("BbHhIifB"), *enumerate("Qqd", 10)]}
)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value lies. `count` None: a single value."""

    kind: int
    start: int
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Texts:
    """An array of texts, decoded one by one as they are iterated over. Raises ModelError for text that is not UTF-8."""

    data: NDArray[np.uint8] = field(repr=False)
    place: _Place = field(repr=False)
    count: int
    what: str = field(repr=False)
    origin: str = field(repr=False)

    def __iter__(self) -> Iterator[str]:
        cursor = Cursor(self.data, self.origin)
        cursor.position = self.place.start
        for _ in range(self.count):
            yield cursor.text(self.what, MAX_TEXT_BYTES)


class Metadata(Mapping[str, Any]):
    """Values by key: int, float, bool, str; arrays of texts as `Texts`, of numbers as numpy views of the file.

    Texts are decoded at every access, so that nobody's file decides how much memory is taken. Raises ModelError for text that is
    not UTF-8, or longer than anything that is asked for.
    """

    def __init__(self, data: NDArray[np.uint8], places: Mapping[str, _Place], origin: str) -> None:
        self._data = data
        self._places = places
        self._origin = origin

    @classmethod
    def read(cls, cursor: Cursor, count: int, data: NDArray[np.uint8], origin: str) -> Metadata:
        """`count` keys with their values from the cursor on. Raises ModelError for a key that comes twice, an unknown type, a
        nested array, or a length beyond the file or the bounds above."""
        places: dict[str, _Place] = {}
        texts_left, bytes_left = MAX_TEXTS, MAX_TEXTS_BYTES
        for number in range(count):
            key = cursor.name(f"key {number}", MAX_KEY_BYTES)
            if key in places:
                raise cursor.error(f"the key {key!r:.80} comes twice")
            place = _read_place(cursor, f"{key!r:.80}")
            if place.kind == TEXT and place.count is not None:
                texts_left -= place.count
                if texts_left < 0:
                    raise cursor.error(f"its arrays hold more than {MAX_TEXTS} texts")
                cursor.skip_texts(place.count, f"{key!r:.80}")
                bytes_left -= cursor.position - place.start
                if bytes_left < 0:
                    raise cursor.error(f"its arrays of texts are longer than {MAX_TEXTS_BYTES} bytes")
            places[key] = place
        return cls(data, places, origin)

    def __getitem__(self, key: str) -> Any:
        place = self._places[key]
        if place.kind == TEXT:
            if place.count is not None:
                return Texts(self._data, place, place.count, f"{key!r:.80}", self._origin)
            cursor = Cursor(self._data, self._origin)
            cursor.position = place.start
            return cursor.text(f"{key!r:.80}", MAX_READ_BYTES)
        form = SCALARS[place.kind]
        if place.count is not None:
            dtype = np.dtype(form.format)
            return self._data[place.start : place.start + place.count * form.size].view(dtype).view(np.ndarray)
        (value,) = form.unpack_from(self._data.data, place.start)
        return bool(value) if place.kind == BOOL else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def length(self, key: str) -> int:
        """How long the array under `key` is; 0 when there is none."""
        place = self._places.get(key)
        return 0 if place is None or place.count is None else place.count

    def texts(self, key: str) -> list[str]:
        """The array of texts under `key`. Raises ModelError when there is none."""
        place = self._places.get(key)
        if place is None or place.kind != TEXT or place.count is None:
            raise ModelError(f"{self._origin} lacks {key!r} (a list of texts)")
        return list(self[key])

    def numbers(self, key: str) -> NDArray[Any]:
        """The array of numbers under `key`. Raises ModelError when there is none."""
        place = self._places.get(key)
        if place is None or place.kind == TEXT or place.count is None:
            raise ModelError(f"{self._origin} lacks {key!r} (a list of numbers)")
        numbers: NDArray[Any] = self[key]
        return numbers


def _read_place(cursor: Cursor, what: str) -> _Place:
    """Passes over one value, except the elements of an array of texts."""
    kind = cursor.u32(f"the type of {what}")
    if kind == TEXT:
        start = cursor.position
        length = cursor.count(f"the length of {what}", MAX_TEXT_BYTES, 1)
        cursor.skip(length, what)
        return _Place(TEXT, start)
    if kind == ARRAY:
        return _read_array_place(cursor, what)
    return _Place(kind, cursor.skip(_form(cursor, kind, what).size, what))


def _read_array_place(cursor: Cursor, what: str) -> _Place:
    kind = cursor.u32(f"the element type of {what}")
    if kind == ARRAY:
        raise cursor.error(f"{what} is an array of arrays, which no model has")
    if kind == TEXT:
        count = cursor.count(f"the length of {what}", MAX_TEXTS, 8)
        return _Place(TEXT, cursor.position, count)
    form = _form(cursor, kind, what)
    count = cursor.count(f"the length of {what}", MAX_NUMBERS, form.size)
    return _Place(kind, cursor.skip(count * form.size, what), count)


def _form(cursor: Cursor, kind: int, what: str) -> struct.Struct:
    form = SCALARS.get(kind)
    if form is None:
        raise cursor.error(f"{what} has the value type {kind}, which is not known")
    return form
