"""What the memory service takes in, and the form in which it stores and publishes it."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from keepsake_client.errors import MessageTooLarge
from keepsake_client.protocol import (
    MAX_MESSAGE_BYTES,
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
    """A message whose producer may write null, or an empty id, where another leaves the field out."""

    @model_validator(mode="before")
    @classmethod
    def _missing_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        empty_ids = ("task_id", "original_message_id")
        return {k: v for k, v in data.items() if not (v is None or (v == "" and k in empty_ids))}


class UserInput(_Incoming):
    """One message on `user_input_queue`. `source` is where it came in, such as "mic" or "bilibili"."""

    type: Literal["text"] = "text"
    user_id: Id
    content: Text
    source: Annotated[Any, BeforeValidator(clean)] = None
    timestamp: Timestamp = Field(default_factory=time.time)
    meta: JSONObject = Field(default_factory=dict)
    task_id: KeptId | None = None


class AIResponse(_Incoming):
    """One message on `ai_responses`."""

    user_id: Id
    text: Text
    original_message_id: Id | None = None
    timestamp: Timestamp = Field(default_factory=time.time)


def parse_user_input(raw: bytes, max_content_chars: int) -> MemoryUpdateMessage:
    """The user's message in `raw`, with a message_id of its own and its origin as `meta.origin`.

    Raises:
        InvalidMessage: and its subclasses, saying what is wrong.
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
        )
    )


def parse_ai_response(raw: bytes, max_content_chars: int) -> AIResponse:
    """The AI's reply in `raw`.

    Raises:
        InvalidMessage: and its subclasses, saying what is wrong.
    """
    response = parse_as(AIResponse, raw)
    _check_length("text", response.text, max_content_chars)
    return response


def ai_message(response: AIResponse, message_id: str, session_id: Any = None) -> MemoryUpdateMessage:
    """The AI's reply as a message of the conversation, within the session of the message it answers.

    Raises:
        MessageTooLarge: its readers would refuse it.
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
        )
    )


def to_wire(message: MemoryUpdateMessage, *, logged: bool = False) -> str:
    """The message as JSON, in Redis, in the log and on `memory_updates` alike.

    `task_id` only where there is one. `logged` says that the message is in the log, so that the adapters need not take
    it from the channel too.
    """
    fields = message.model_dump(exclude=set() if message.task_id else {"task_id"})
    # ASCII-only JSON carries every id there is, lone surrogates included.
    return json.dumps({**fields, "logged": True} if logged else fields)


def _check_length(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise MessageTooLarge(f"{name} has {len(text)} characters; {most} are allowed")


def _publishable(message: MemoryUpdateMessage) -> MemoryUpdateMessage:
    if (size := len(to_wire(message, logged=True))) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"the message would be published with {size} bytes; {MAX_MESSAGE_BYTES} are allowed")
    return message
