"""Reading forward through a mapped file that somebody else wrote: what would pass its end is refused before it is touched."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError

AGAIN = "download the model again"

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Cursor:
    """A position in `data`; every method moves it on, or raises ModelError naming the file (`origin`) and what was being read."""

    def __init__(self, data: NDArray[np.uint8], origin: str) -> None:
        self._data = data.data
        self._origin = origin
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes between here and the end of the file."""
        return len(self._data) - self.position

    def skip(self, n_bytes: int, what: str) -> int:
        """Passes over `n_bytes` and returns where they begin."""
        start = self.position
        if n_bytes > self.left:
            raise self.error(f"{what} needs {n_bytes} bytes at byte {start}, and the file ends at {len(self._data)}")
        self.position = start + n_bytes
        return start

    def u32(self, what: str) -> int:
        return int(self.scalar(_U32, what))

    def u64(self, what: str) -> int:
        return int(self.scalar(_U64, what))

    def scalar(self, form: struct.Struct, what: str) -> Any:
        (value,) = form.unpack_from(self._data, self.skip(form.size, what))
        return value

    def count(self, what: str, most: int, each_bytes: int) -> int:
        """A u64 count of things that take at least `each_bytes` each: at most `most`, and at most what the file has room for."""
        value = self.u64(what)
        if value > most:
            raise self.error(f"{what} is {value}, more than {most}")
        if value * each_bytes > self.left:
            raise self.error(f"{what} is {value}, which needs more than the {self.left} bytes that are left")
        return value

    def text(self, what: str, most_bytes: int) -> str:
        """A u64 length and so many bytes of UTF-8."""
        length = self.u64(f"the length of {what}")
        if length > most_bytes:
            raise self.error(f"{what} is {length} bytes long, more than {most_bytes}")
        start = self.skip(length, what)
        try:
            return str(self._data[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} at byte {start} is not UTF-8") from error

    def name(self, what: str, most_bytes: int) -> str:
        """A text that is not empty: padding that is read by mistake would be a row of empty ones."""
        name = self.text(what, most_bytes)
        if not name:
            raise self.error(f"{what} is empty")
        return name

    def skip_texts(self, count: int, what: str) -> None:
        """Passes over `count` texts as `text` reads them, touching only their lengths: vocabularies have a million."""
        unpack, data, position = _U64.unpack_from, self._data, self.position
        try:
            for _ in range(count):
                position += 8 + unpack(data, position)[0]
        except (struct.error, OverflowError):  # the position is past the end, or past any address
            position = len(data) + 1
        if position > len(data):
            raise self.error(f"{what} goes on beyond the end of the file")
        self.position = position

    def error(self, what: str) -> ModelError:
        return ModelError(f"{self._origin} is damaged or cut short: {what}", hint=AGAIN)
