"""Answers: the assistant's text, gathered from a copy of the response while that is passed on."""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

from keepsake_client.protocol import clean

from services.gateway.proxy.chat_request import text_of

#: The most bytes of a response that is not streamed, or of one event of a stream, and the most characters of a stream's
#: text. A larger answer is passed on, and not remembered.
MAX_ANSWER_BYTES: Final = 4_194_304
_DONE: Final = b"[DONE]"
_BOM: Final = b"\xef\xbb\xbf"


class Answer(Protocol):
    """The answer of a response that is being passed on."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the response."""

    def end(self) -> None:
        """Note that the response ended as it should."""

    @property
    def text(self) -> str | None:
        """What the assistant said, empty where it only calls tools; None of an answer that is not complete."""


class WholeAnswer:
    """The answer of a response that is one JSON document."""

    def __init__(self) -> None:
        self._body = bytearray()
        self._too_large = False
        self.text: str | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the response."""
        self._too_large = self._too_large or len(self._body) + len(chunk) > MAX_ANSWER_BYTES
        if not self._too_large:
            self._body += chunk

    def end(self) -> None:
        """Read what was gathered."""
        completion = None if self._too_large else _parsed(self._body)
        message = _first_choice(completion or {}).get("message")
        if isinstance(message, dict):
            self.text = text_of(message.get("content"))


class StreamedAnswer:
    """The answer of a response that is a stream of events (SSE), each a chunk of the completion.

    It is complete with `[DONE]` or the first choice's `finish_reason`, even if the client hangs up then.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._data = bytearray()
        self._texts: list[str] = []
        self._chars = 0
        self._complete = False
        self._failed = False

    @property
    def text(self) -> str | None:
        """What was gathered, if the answer is complete."""
        if self._failed or not self._complete:
            return None
        # Servers that count in UTF-16 may send the two halves of a character in two chunks.
        text: str = clean("".join(self._texts))
        return text

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the response."""
        if self._failed:
            return
        self._line += chunk
        if b"\n" in chunk:
            *lines, self._line = self._line.split(b"\n")
            for line in lines:
                if not self._failed:
                    self._read_line(line.removesuffix(b"\r"))
        self._failed = self._failed or len(self._line) + len(self._data) > MAX_ANSWER_BYTES

    def end(self) -> None:
        """Read a last event that no empty line ends."""
        self._read_line(self._line)
        self._read_line(b"")

    def _read_line(self, line: bytes | bytearray) -> None:
        line = line.removeprefix(_BOM)
        if line.startswith(b"data:"):
            self._data += line[5:].strip() + b"\n"
        elif line.startswith(b"error:") or (line.startswith(b"event:") and line[6:].strip() == b"error"):
            self._failed = True
        elif not line and self._data:
            data, self._data = self._data.strip(), bytearray()
            self._read_event(data)

    def _read_event(self, data: bytes | bytearray) -> None:
        if data == _DONE:
            self._complete = True
            return
        chunk = _parsed(data)
        if chunk is None:
            self._failed = True
            return
        choice = _first_choice(chunk)  # empty where the chunk has none, such as that of the usage
        delta = choice.get("delta")
        if isinstance(delta, dict) and (text := text_of(delta.get("content"))):
            self._texts.append(text)
            self._chars += len(text)
            self._failed = self._chars > MAX_ANSWER_BYTES
        self._complete = self._complete or choice.get("finish_reason") is not None


def _parsed(data: bytes | bytearray) -> dict[str, Any] | None:
    """The completion, or a chunk of one; None where it is an error, or none."""
    try:
        completion = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(completion, dict) or completion.get("error"):
        return None
    return completion if isinstance(completion.get("choices"), list | None) else None


def _first_choice(completion: dict[str, Any]) -> dict[str, Any]:
    """The first choice, the one that most programs show where they asked for several; empty where there is none.

    Servers differ in all that does not matter here, such as an `index` that is missing or null.
    """
    choices = completion.get("choices") or []
    return next((each for each in choices if isinstance(each, dict) and each.get("index") in (None, 0)), {})
