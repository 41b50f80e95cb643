"""The memory service's messages: parsing of what arrives, and the form in which it is stored and published."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from keepsake_client.errors import MessageTooLarge
from keepsake_client.protocol import (
    MAX_MESSAGE_BYTES,
    Flag,
    Id,
    JSONObject,
    KeptId,
    MemoryUpdateMessage,
    Text,
    Timestamp,
    WireModel,
    clean,
    parse_as,
)
from pydantic import BeforeValidator, Field, model_validator


class _Incoming(WireModel):
    """A message of which an optional field may be null, or an id empty, in place of being absent."""

    @model_validator(mode="before")
    @classmethod
    def _missing_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        empty_ids = ("task_id", "original_message_id")
        return {k: v for k, v in data.items() if not (v is None or (v == "" and k in empty_ids))}


class UserInput(_Incoming):
    """One message on `user_input_queue`. `source` is the input it came from, such as "mic" or "bilibili"."""

    type: Literal["text"] = "text"
    user_id: Id
    content: Text
    source: Annotated[Any, BeforeValidator(clean)] = None
    timestamp: Timestamp = Field(default_factory=time.time)
    meta: JSONObject = Field(default_factory=dict)
    task_id: KeptId | None = None
    require_ai_response: Flag = None


class AIResponse(_Incoming):
    """One message on `ai_responses`."""

    user_id: Id
    text: Text
    original_message_id: Id | None = None
    timestamp: Timestamp = Field(default_factory=time.time)


def parse_user_input(raw: bytes, max_content_chars: int) -> MemoryUpdateMessage:
    """Parse a user's message. It gets a new message_id, and its `source` becomes `meta.origin`.

    Raises:
        InvalidMessage: it is no such message, or too large; the error names the field.
    """
    incoming = parse_as(UserInput, raw)
    _check_length("content", incoming.content, max_content_chars)
    origin = {} if incoming.source is None else {"origin": incoming.source}
    return _publishable(
        MemoryUpdateMessage(
            user_id=incoming.user_id,
            content=incoming.content,
            source="user",
            timestamp=incoming.timestamp,
            meta={**incoming.meta, **origin},
            message_id=uuid4().hex,
            task_id=incoming.task_id,
            require_ai_response=incoming.require_ai_response is not False,
        )
    )


def parse_ai_response(raw: bytes, max_content_chars: int) -> AIResponse:
    """Parse a reply of the AI.

    Raises:
        InvalidMessage: it is no such message, or too large; the error names the field.
    """
    response = parse_as(AIResponse, raw)
    _check_length("text", response.text, max_content_chars)
    return response


def ai_message(response: AIResponse, message_id: str, session_id: Any = None) -> MemoryUpdateMessage:
    """The AI's reply as a message of the conversation.

    Args:
        session_id: that of the message that it answers.

    Raises:
        MessageTooLarge: its readers would reject it.
    """
    meta = {"original_message_id": response.original_message_id, "session_id": session_id}
    return _publishable(
        MemoryUpdateMessage(
            user_id=response.user_id,
            content=response.text,
            source="ai",
            timestamp=response.timestamp,
            meta={name: value for name, value in meta.items() if value is not None},
            message_id=message_id,
            require_ai_response=False,
        )
    )


def _check_length(name: str, text: str, max_chars: int) -> None:
    if len(text) > max_chars:
        raise MessageTooLarge(f"{name} has {len(text)} characters; {max_chars} are allowed")


def _publishable(message: MemoryUpdateMessage) -> MemoryUpdateMessage:
    if (size := len(message.to_wire(logged=True))) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"the message would be published with {size} bytes; {MAX_MESSAGE_BYTES} are allowed")
    return message
