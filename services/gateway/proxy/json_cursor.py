"""JSONCursor: a reader of JSON text that says where each value stands, so that a change leaves the rest as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from json import JSONDecodeError
from json.decoder import JSONDecoder
from typing import Any, Final, NamedTuple

_SPACE: Final = re.compile(r"[ \t\r\n]*")


#: Python's own integers refuse 5,000 digits, and no number is looked at.
_DECODER: Final = JSONDecoder(parse_int=float)


class Span(NamedTuple):
    """A value, and its place in the text: from its first character up to `end`, which is behind its last one."""

    start: int
    end: int
    value: Any


class JSONCursor:
    """A position in JSON text, and what is read from there.

    Numbers are read as floats. Every method raises `JSONDecodeError` where the text is no JSON, and `RecursionError`
    where it is nested too deep.

    Args:
        at: where to begin.
    """

    def __init__(self, text: str, at: int = 0) -> None:
        self._text = text
        self._at = at

    @property
    def at(self) -> int:
        """Where the next value begins."""
        space = _SPACE.match(self._text, self._at)
        return space.end() if space else self._at

    @property
    def char(self) -> str:
        """The first character of the next value; empty at the end of the text."""
        at = self.at
        return self._text[at : at + 1]

    def value(self) -> Span:
        """Read the next value."""
        start = self.at
        value, self._at = _DECODER.raw_decode(self._text, start)
        return Span(start, self._at, value)

    def members(self) -> Iterator[str]:
        """Read an object: yields each key, behind which the caller reads the value."""
        self._expect("{")
        if self._accept("}"):
            return
        while True:
            key = self.value().value
            if not isinstance(key, str):
                raise JSONDecodeError("a key is no string", self._text, self._at)
            self._expect(":")
            yield key
            if self._accept("}"):
                return
            self._expect(",")

    def elements(self) -> Iterator[None]:
        """Read an array: yields before each element, which the caller reads."""
        self._expect("[")
        if self._accept("]"):
            return
        while True:
            yield
            if self._accept("]"):
                return
            self._expect(",")

    def _accept(self, char: str) -> bool:
        at = self.at
        if not self._text.startswith(char, at):
            return False
        self._at = at + 1
        return True

    def _expect(self, char: str) -> None:
        if not self._accept(char):
            raise JSONDecodeError(f"{char} is missing", self._text, self.at)
