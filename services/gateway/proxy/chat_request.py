"""ChatRequest: the body of a chat completion, as far as the memory needs it, and the place for what is remembered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Self

from keepsake_client.errors import InvalidJSON

from services.gateway.proxy.json_cursor import JSONCursor, Span

#: Roles of the messages whose content is the system prompt.
_SYSTEM: Final = ("system", "developer")
#: Roles of the messages that are the conversation.
_SPEAKERS: Final = ("user", "assistant")
BEFORE_CONTEXT: Final = "\n\n"


class Said(NamedTuple):
    """A message of the conversation: by the role of OpenAI's API, `user` or `assistant`, and its text."""

    role: str
    text: str


class _Place(NamedTuple):
    """Where the context goes.

    Args:
        at: the position in the text.
        form: as what: a text at the end of the system prompt, a part behind its parts, or a message before the others.
        alone: whether there is nothing that it must be separated from.
    """

    at: int
    form: Literal["text", "part", "message"]
    alone: bool


@dataclass(frozen=True)
class ChatRequest:
    """The body of a request for a chat completion.

    Args:
        conversation: the messages of user and assistant that have a text, oldest first.
        user: OpenAI's field of that name.
    """

    conversation: Sequence[Said]
    user: str | None
    _text: str
    _place: _Place

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read a body.

        Raises:
            InvalidJSON: it is no JSON object with a list of messages, in UTF-8.
        """
        try:
            return cls._read(body.decode())
        except (ValueError, RecursionError):
            raise InvalidJSON("the body is no JSON object with a list of messages, in UTF-8") from None

    @classmethod
    def _read(cls, text: str) -> Self:
        cursor = JSONCursor(text)
        messages: list[Span] = []
        start, user = -1, None
        for key in cursor.members():
            if key == "messages":  # of several, the last one counts, as with most readers
                start, messages = cursor.at, []
                for _ in cursor.elements():
                    messages.append(cursor.value())
                continue
            value = cursor.value().value
            if key == "user":
                user = value if isinstance(value, str) and value.strip() else None
        if cursor.char or start < 0:
            raise ValueError("something stands behind the object, or it has no messages")
        return cls(_conversation(messages), user, text, _place(text, start, messages))

    @property
    def asked(self) -> Sequence[Said]:
        """The conversation up to the last message of the user, which is its last element; empty without one."""
        last = max((at for at, said in enumerate(self.conversation) if said.role == "user"), default=-1)
        return self.conversation[: last + 1]

    def with_context(self, context: str) -> bytes:
        """The body with the context at the end of its system prompt, and otherwise byte for byte as it came."""
        at, form, alone = self._place
        if form == "text":
            added = json.dumps(context if alone else BEFORE_CONTEXT + context)[1:-1]
        elif form == "part":
            added = ("" if alone else ", ") + json.dumps({"type": "text", "text": context})
        else:
            added = json.dumps({"role": "system", "content": context}) + ("" if alone else ", ")
        return "".join((self._text[:at], added, self._text[at:])).encode()


def text_of(content: Any) -> str:
    """The text of a message's content: the content itself, or the texts among its parts, a line each."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _conversation(messages: Sequence[Span]) -> list[Said]:
    found = [message.value for message in messages if isinstance(message.value, dict)]
    said = [Said(value["role"], text_of(value.get("content"))) for value in found if value.get("role") in _SPEAKERS]
    return [one for one in said if one.text.strip()]


def _place(text: str, start: int, messages: Sequence[Span]) -> _Place:
    """The end of the first system prompt that has a content, or the beginning of the messages.

    Args:
        start: of the array of messages.
    """
    for message in messages:
        if not isinstance(message.value, dict) or message.value.get("role") not in _SYSTEM:
            continue
        content = _content(text, message.start)
        if content is not None and isinstance(content.value, str):
            return _Place(content.end - 1, "text", alone=not content.value)
        if content is not None and isinstance(content.value, list):
            return _Place(content.end - 1, "part", alone=not content.value)
    return _Place(start + 1, "message", alone=not messages)


def _content(text: str, at: int) -> Span | None:
    """The content of the message that begins there; of several, the last one."""
    cursor = JSONCursor(text, at)
    found = None
    for key in cursor.members():
        value = cursor.value()
        found = value if key == "content" else found
    return found
