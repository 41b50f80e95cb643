"""Elements of a JSON document of any size: those at named paths are read one by one, the rest passes by.

The standard library's decoder reads each element, out of a buffer that holds little more than one. ijson would do the
rest too, but its C backend ends the process on a number of 5,000 digits (SIGSEGV, ijson 3.6), and its Python backend
keeps all text since a piece last ended between two tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from json import JSONDecodeError
from json.decoder import JSONDecoder
from typing import Any, Final, NamedTuple

from keepsake_client.protocol import MAX_NESTING

from services.imports.files import ExportFile
from services.imports.records import UnreadableFile

#: Keys from the top, "[]" for the elements of an array: ("messages", "[]"). The empty one is a whole object.
Path = tuple[str, ...]
ITEM: Final = "[]"

#: Of one element, or of any other text or number.
MAX_ELEMENT_CHARS: Final = 16_000_000
_MORE_CHARS: Final = 65_536
#: Errors this close to the end of what was read are of its end: an escape, a number or a word that is cut off.
_CUT_CHARS: Final = 16
#: What was read ends with these: they may belong to the number before them.
_NUMBER_GOES_ON: Final = re.compile(r"[-+.eE0-9]*\Z")
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_STRUCTURE: Final = re.compile(r'["\[\]{}]')
_STRING_END: Final = re.compile(r'["\\]')


class Found(NamedTuple):
    """An element, a scalar outside of elements, or what is wrong with an element."""

    path: Path
    value: Any
    problem: str | None = None


class DamagedJSON(ValueError):
    """The structure around elements is not JSON, or the text ends too early."""


def elements(file: ExportFile, paths: Set[Path]) -> Iterator[Found]:
    """The elements of a document that lie at `paths`, and the scalars around them, in order.

    An element that is no JSON, too large or too deep costs itself alone.

    Raises:
        UnreadableFile: the document is not JSON; what stands before the damage was yielded.
    """
    document = Document(file.text())
    found = 0
    try:
        for one in document.found(paths):
            found += one.path in paths
            yield one
    except DamagedJSON as error:
        raise UnreadableFile(f"{file.name}, line {document.line:,}, after {found:,} elements: {error}") from None


class Document:
    """A JSON document, as its text arrives.

    Args:
        pieces: its text.
        more_chars: as much of it as is read at once, at least.
    """

    def __init__(self, pieces: Iterator[str], more_chars: int = _MORE_CHARS) -> None:
        self._pieces = pieces
        self._more_chars = more_chars
        self._buffer = ""
        self._at = 0
        self._ended = False
        self._lines_before = 1
        self._decoder = JSONDecoder()

    @property
    def line(self) -> int:
        """The number of the line that is read."""
        return self._lines_before + self._buffer.count("\n", 0, self._at)

    def found(self, paths: Set[Path]) -> Iterator[Found]:
        """What the document holds; see `elements`.

        Raises:
            DamagedJSON: it is not JSON.
        """
        yield from self._value((), paths)
        if self._next_char():
            raise DamagedJSON("something follows the end of the document")

    def _value(self, path: Path, paths: Set[Path]) -> Iterator[Found]:
        char = self._next_char()
        if char not in ("[", "{"):
            yield Found(path, self._token())
        elif path in paths and (path or char == "{"):
            yield Found(path, *self._element())
        elif len(path) >= MAX_NESTING:
            raise DamagedJSON(f"nested deeper than {MAX_NESTING} levels")
        else:
            yield from self._members(path, paths, char)

    def _members(self, path: Path, paths: Set[Path], opening: str) -> Iterator[Found]:
        closing = "}" if opening == "{" else "]"
        self._at += 1
        if self._next_char() == closing:
            self._at += 1
            return
        while True:
            key = ITEM
            if opening == "{":
                if self._next_char() != '"':
                    raise DamagedJSON("a key is missing")
                key = self._token()
                self._expect(":")
            yield from self._value((*path, key), paths)
            if self._expect(f",{closing}") == closing:
                return

    def _expect(self, chars: str) -> str:
        char = self._next_char()
        if not char or char not in chars:
            raise DamagedJSON(f"{' or '.join(chars)} is missing" if char else "the file ends too early")
        self._at += 1
        return char

    def _next_char(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            space = _SPACE.match(self._buffer, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read_more():
                return ""

    def _token(self) -> Any:
        try:
            value, self._at = self._decoded()
        except ValueError as error:
            raise DamagedJSON(str(error)) from None
        return value

    def _element(self) -> tuple[Any, str | None]:
        """The element that begins here; None and the problem where it cannot be read, with the reader behind it."""
        try:
            value, self._at = self._decoded()
        except DamagedJSON:
            raise
        except RecursionError:
            problem = "nested too deep"
        except ValueError as error:
            problem = str(error)
        else:
            return value, None
        self._skip()
        return None, problem

    def _decoded(self) -> tuple[Any, int]:
        """The value that begins here, and where it ends.

        Raises:
            DamagedJSON: the text ends within it.
            ValueError: it is not JSON, or too large.
        """
        while True:
            end, cut = 0, False
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except JSONDecodeError as error:
                problem = f"it is not JSON: {error.msg}"
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._buffer) - _CUT_CHARS
            except ValueError:  # the limit of Python's int
                problem = "it is not JSON: a number of too many digits"
            if end and (self._ended or not _NUMBER_GOES_ON.match(self._buffer, end)):
                return value, end
            if not end and not cut:
                raise ValueError(problem)
            if len(self._buffer) - self._at > MAX_ELEMENT_CHARS:
                raise ValueError(f"larger than {MAX_ELEMENT_CHARS:,} characters")
            if not self._read_more() and not end:
                raise DamagedJSON("the file ends too early")

    def _read_more(self) -> bool:
        """Read as much again as is there of the present value, but hardly more than an element; False at the end."""
        self._lines_before += self._buffer.count("\n", 0, self._at)
        pieces = [self._buffer[self._at :]]
        wanted = min(len(pieces[0]), MAX_ELEMENT_CHARS - len(pieces[0]))
        wanted = max(wanted, self._more_chars)
        self._at = 0
        while wanted > 0 and not self._ended:
            piece = next(self._pieces, None)
            self._ended = piece is None
            pieces.append(piece or "")
            wanted -= len(pieces[-1])
        self._buffer = "".join(pieces)
        return len(self._buffer) > len(pieces[0])

    def _skip(self) -> None:
        """Go behind the array or object that begins here, by its brackets alone."""
        depth, in_string = 0, False
        while True:
            found = (_STRING_END if in_string else _STRUCTURE).search(self._buffer, self._at)
            if found is None:
                self._at = len(self._buffer)
            else:
                char, self._at = found[0], found.end()
                if char == "\\":
                    self._at += 1  # perhaps beyond what was read: then it is the next piece's first
                elif char == '"':
                    in_string = not in_string
                else:
                    depth += 1 if char in "[{" else -1
                    if not depth:
                        return
            if self._at >= len(self._buffer):
                beyond = self._at - len(self._buffer)
                self._at = len(self._buffer)
                if not self._read_more():
                    raise DamagedJSON("the file ends too early")
                self._at = beyond
