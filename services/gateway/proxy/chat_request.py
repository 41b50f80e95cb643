"""ChatRequest: the body of a chat completion, as far as the memory needs it, and the place for what is remembered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Self

from keepsake_client.errors import InvalidJSON
from keepsake_client.fields import MAX_ID_BYTES

from services.gateway.proxy.json_cursor import JSONCursor, Span

#: Roles of the messages whose content is the system prompt.
_SYSTEM: Final = ("system", "developer")
#: Roles of the messages that are the conversation.
_SPEAKERS: Final = ("user", "assistant")
BEFORE_CONTEXT: Final = "\n\n"
#: Of a body: it can hold no more values. A body of 32 MiB could hold 16 million, which take Python half a gigabyte, and
#: no model reads a text of so many commas.
MAX_COMMAS: Final = 100_000
#: Of the name of a model; a longer one would only fill the turn records.
MAX_MODEL_CHARS: Final = 200


class ChatMessage(NamedTuple):
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
        user: OpenAI's field of that name, where it can be the id of a user.
        model: the beginning of the field of that name, where it is a text.
    """

    conversation: Sequence[ChatMessage]
    user: str | None
    model: str | None
    _messages: Sequence[Any]
    _text: str
    _place: _Place

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read a body.

        Raises:
            InvalidJSON: it is no JSON object with a list of messages, in UTF-8.
        """
        if body.count(b",") > MAX_COMMAS:
            raise InvalidJSON(f"the body has more than {MAX_COMMAS} commas")
        try:
            return cls._read(body.decode())
        except (ValueError, RecursionError):
            raise InvalidJSON("the body is no JSON object with a list of messages, in UTF-8") from None

    @classmethod
    def _read(cls, text: str) -> Self:
        cursor = JSONCursor(text)
        # Of several, the last one counts, as with most readers.
        fields = {key: cursor.value() for key in cursor.members()}
        messages, user = fields.get("messages"), fields.get("user")
        if cursor.char or messages is None or not isinstance(messages.value, list):
            raise ValueError("something stands behind the object, or it has no list of messages")
        named = user.value if user is not None and isinstance(user.value, str) else ""
        is_id = named.strip() and len(named) <= MAX_ID_BYTES  # a longer one would only fill the log
        model = fields["model"].value if "model" in fields else None
        return cls(
            _conversation(messages.value),
            named if is_id else None,
            model[:MAX_MODEL_CHARS] if isinstance(model, str) else None,
            messages.value,
            text,
            _place(text, messages),
        )

    @property
    def asked(self) -> Sequence[ChatMessage]:
        """The conversation up to the last message of the user, which is its last element; empty without one."""
        last = max((at for at, message in enumerate(self.conversation) if message.role == "user"), default=-1)
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

    def prompt(self, context: str) -> list[ChatMessage]:
        """The messages that upstream gets, with the context at its place: the role and the text of each."""
        messages = [message for message in self._messages if isinstance(message, dict)]
        first = next((at for at, message in enumerate(messages) if _is_prompt(message)), None)
        if context and first is None:
            messages.insert(0, {"role": "system", "content": context})
        elif context and first is not None:
            content = messages[first]["content"]
            if isinstance(content, list):
                with_context: Any = [*content, {"type": "text", "text": context}]
            else:
                with_context = content + BEFORE_CONTEXT + context if content else context
            messages[first] = {**messages[first], "content": with_context}
        return [ChatMessage(str(message.get("role")), text_of(message.get("content"))) for message in messages]


def text_of(content: Any) -> str:
    """The text of a message's content: the content itself, or the texts among its parts, a line each."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _conversation(messages: Sequence[Any]) -> list[ChatMessage]:
    found = [message for message in messages if isinstance(message, dict)]
    spoken = [
        ChatMessage(each["role"], text_of(each.get("content"))) for each in found if each.get("role") in _SPEAKERS
    ]
    return [message for message in spoken if message.text.strip()]


def _place(text: str, messages: Span) -> _Place:
    """The end of the first system prompt that has a content, or the beginning of the messages."""
    first = next((at for at, message in enumerate(messages.value) if _is_prompt(message)), None)
    if first is None:
        return _Place(messages.start + 1, "message", alone=not messages.value)
    cursor = JSONCursor(text, messages.start)
    for at, _ in enumerate(cursor.elements()):
        if at == first:
            break
        cursor.value()
    content = {key: cursor.value() for key in cursor.members()}["content"]
    return _Place(content.end - 1, "text" if isinstance(content.value, str) else "part", alone=not content.value)


def _is_prompt(message: Any) -> bool:
    """Whether it is a system prompt that a context can be added to."""
    if not isinstance(message, dict) or message.get("role") not in _SYSTEM:
        return False
    return isinstance(message.get("content"), str | list)
