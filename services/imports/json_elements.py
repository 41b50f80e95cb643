"""Elements of a JSON document of any size: those at named paths are built one by one, the rest passes by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from decimal import Decimal
from typing import Any, Final, NamedTuple

import ijson
from keepsake_client.protocol import MAX_NESTING

from services.imports.files import ExportFile
from services.imports.records import UnreadableFile

#: Keys from the top, "[]" for the elements of an array: ("messages", "[]").
Path = tuple[str, ...]
ITEM: Final = "[]"
_STARTS: Final = frozenset({"start_map", "start_array"})
_ENDS: Final = frozenset({"end_map", "end_array"})

#: Of one element: as much as takes up to about 100 MB of memory.
MAX_VALUES: Final = 500_000
MAX_CHARS: Final = 16_000_000
#: Of one text, or of the space between two: yajl keeps all of it.
MAX_TOKEN_BYTES: Final = 32_000_000
_CHUNK: Final = 65_536
_LOW_SURROGATE: Final = re.compile(r"\\u[dD][c-fC-F]")
#: An escape that the end of the piece cuts off; a pair of surrogates; a low one on its own; any other escape.
_ESCAPES: Final = re.compile(
    r"(?P<cut>\\(?:u(?:[0-9a-fA-F]{0,3}|[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?))?\Z)"
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<alone>\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|\\.",
    re.DOTALL,
)


class Found(NamedTuple):
    """An element, a scalar outside of elements, or what is wrong with an element."""

    path: Path
    value: Any
    problem: str | None = None


def elements(file: ExportFile, paths: Set[Path], ignored: frozenset[str] = frozenset()) -> Iterator[Found]:
    """The elements of a document that lie at `paths`, and the scalars around them, in order.

    Args:
        paths: the empty one is a document that is an object.
        ignored: keys within elements whose values are left out.

    Raises:
        UnreadableFile: it is not JSON; what stands before the damage was yielded.
    """
    stream = _Utf8(file)
    found = 0
    try:
        for one in _Walk(stream, ignored).found(paths):
            found += one.path in paths
            yield one
    except (ijson.JSONError, ValueError) as error:  # ValueError: numbers of thousands of digits
        reason = str(error).split("\n")[0][:100].strip("b'")
        cut = "it ends too early" if "EOF" in reason or "ncomplete" in reason else f"it is not JSON ({reason})"
        raise UnreadableFile(f"{file.name}: {cut}, after {found:,} elements, before byte {file.position:,}") from None


class _Walk:
    """One pass over the events of a document.

    Args:
        stream: the document; it is told of progress, by which it knows a token without end.
    """

    def __init__(self, stream: _Utf8, ignored: frozenset[str]) -> None:
        self._stream = stream
        self._events = iter(ijson.basic_parse(stream, buf_size=_CHUNK))
        self._ignored = ignored

    def found(self, paths: Set[Path]) -> Iterator[Found]:
        path: list[str] = []  # for each container that is open: the key, or ITEM
        for event, value in self._events:
            self._stream.since_event = 0
            if event == "map_key":
                path[-1] = value
            elif event in _ENDS:
                path.pop()
            elif event not in _STARTS:
                yield Found(tuple(path), value)
            elif (here := tuple(path)) in paths and (here or event == "start_map"):
                yield Found(here, *self._built({} if event == "start_map" else []))
            elif len(path) >= MAX_NESTING:
                raise ValueError(f"nested deeper than {MAX_NESTING} levels")
            else:
                path.append("" if event == "start_map" else ITEM)

    def _built(self, root: Any) -> tuple[Any, str | None]:  # noqa: PLR0912 - the innermost loop: calls would double it
        """The container that was opened, filled; None and the problem where it is too large or too deep."""
        stack: list[Any] = [root]
        key, values, chars = "", 0, 0
        for event, value in self._events:
            if event == "map_key":
                key = value
                chars += len(value)
                continue
            if event in _ENDS:
                stack.pop()
                if not stack:
                    return root, None
                continue
            container, opens = stack[-1], event in _STARTS
            in_map = type(container) is dict
            if in_map and key in self._ignored:
                if opens:
                    self._skip(1)
                continue
            new: Any = value
            if opens:
                new = {} if event == "start_map" else []
            elif event == "string":
                chars += len(value)
            elif type(value) is Decimal:
                new = float(value)
            if in_map:
                container[key] = new
            else:
                container.append(new)
            if opens:
                stack.append(new)
            values += 1
            if not values & 0xFF:
                self._stream.since_event = 0
            if values > MAX_VALUES or chars > MAX_CHARS or len(stack) > MAX_NESTING:
                root.clear()
                problem = f"nested deeper than {MAX_NESTING} levels" if len(stack) > MAX_NESTING else "too large"
                self._skip(len(stack))
                return None, problem
        return None, "incomplete"

    def _skip(self, depth: int) -> None:
        """Read past the end of so many open containers."""
        for event, _ in self._events:
            self._stream.since_event = 0
            depth += (event in _STARTS) - (event in _ENDS)
            if not depth:
                return


class _Utf8:
    """A binary stream of a document in UTF-8, for ijson.

    Low surrogates on their own, which JavaScript writes where it cut a text, become U+FFFD: yajl's output of them is no
    UTF-8.

    Attributes:
        since_event: bytes since the parser had anything to tell; its reader sets it to 0.
    """

    def __init__(self, file: ExportFile) -> None:
        self._pieces = file.text()
        self._carry = ""
        self._pending = b""
        self.since_event = 0

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end."""
        if not size:
            return b""
        while not self._pending:
            piece = next(self._pieces, None)
            if piece is None:
                self._pending, self._carry = self._carry.encode(), ""
                break
            self._pending = self._paired(self._carry + piece).encode()
        data, self._pending = self._pending[:size], self._pending[size:]
        self.since_event += len(data)
        if self.since_event > MAX_TOKEN_BYTES:
            raise ValueError(f"a text of more than {MAX_TOKEN_BYTES:,} bytes")
        return data

    def _paired(self, text: str) -> str:
        self._carry = ""
        backslash = text.rfind("\\", max(len(text) - 12, 0))
        if backslash < 0 and not _LOW_SURROGATE.search(text):
            return text
        return _ESCAPES.sub(self._one, text)

    def _one(self, found: re.Match[str]) -> str:
        if found["cut"] is not None:
            self._carry = found[0]
            return ""
        return "\\ufffd" if found["alone"] else found[0]
