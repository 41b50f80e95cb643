"""The memory service's messages: parsing of what arrives, and the form in which it is stored and published."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import uuid4

from keepsake_client.errors import MessageTooLarge, NoText
from keepsake_client.protocol import (
    MAX_MESSAGE_BYTES,
    Days,
    Flag,
    Id,
    JSONObject,
    KeptId,
    MemoryUpdateMessage,
    Speaker,
    Text,
    Timestamp,
    TraceParent,
    WireModel,
    check_length,
    clean,
    load_object,
    validate,
)
from keepsake_client.tolerance import DEFAULTS, MessageDefaults, keep_sent, read_common, read_text
from pydantic import BeforeValidator, Field


class UserInput(WireModel):
    """One message on `user_input_queue`. `source` is the input it came from, such as "mic" or "bilibili"."""

    user_id: Id
    content: Text
    source: Annotated[Any, BeforeValidator(clean)] = None
    timestamp: Timestamp
    meta: JSONObject = Field(default_factory=dict)
    task_id: KeptId | None = None
    require_ai_response: Flag = None
    agent_id: KeptId | None = None
    speaker: Speaker | None = None
    ttl_days: Days | None = None
    traceparent: TraceParent = None


class AIResponse(WireModel):
    """One message on `ai_responses`. Its `meta` holds what was sent and is not used, such as a time that is none."""

    user_id: Id
    text: Text
    original_message_id: Id | None = None
    timestamp: Timestamp
    meta: JSONObject = Field(default_factory=dict)
    agent_id: KeptId | None = None
    ttl_days: Days | None = None
    traceparent: TraceParent = None


@dataclass(frozen=True)
class Answered:
    """What a reply takes from the message that it answers.

    Args:
        session_id: its session.
        agent_id: the character that it is for.
        ttl_days: it expires so many days after it was said; a reply often repeats it.
        traceparent: the span that it belongs to.
    """

    session_id: Any = None
    agent_id: str | None = None
    ttl_days: float | None = None
    traceparent: str | None = None


def parse_user_input(raw: bytes, max_content_chars: int, defaults: MessageDefaults = DEFAULTS) -> MemoryUpdateMessage:
    """Parse a user's message. It gets a new message_id, and its `source` becomes `meta.origin`.

    Raises:
        InvalidMessage: it is no such message, or too large; the error names the field. `NoText` where it has no text.
    """
    fields = load_object(raw)
    if not read_text(fields, "content", ("text", "message", "transcript")):
        raise NoText("content: there is no text")
    read_common(fields, time.time(), defaults)
    if (kind := fields.get("type")) not in (None, "text"):
        keep_sent(fields, "type", kind)
    incoming = validate(UserInput, fields)
    check_length("content", incoming.content, max_content_chars)
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
            agent_id=incoming.agent_id,
            speaker=incoming.speaker,
            ttl_days=incoming.ttl_days,
            traceparent=incoming.traceparent,
        )
    )


def parse_ai_response(raw: bytes, max_content_chars: int, defaults: MessageDefaults = DEFAULTS) -> AIResponse:
    """Parse a reply of the AI.

    Raises:
        InvalidMessage: it is no such message, or too large; the error names the field.
    """
    fields = load_object(raw)
    read_text(fields, "text", ("content", "message"))
    read_common(fields, time.time(), defaults)
    response = validate(AIResponse, fields)
    check_length("text", response.text, max_content_chars)
    return response


def ai_message(response: AIResponse, message_id: str, answered: Answered = Answered()) -> MemoryUpdateMessage:
    """The AI's reply as a message of the conversation.

    Args:
        answered: the message that it answers.

    Raises:
        MessageTooLarge: its readers would reject it.
    """
    meta = {"original_message_id": response.original_message_id, "session_id": answered.session_id}
    return _publishable(
        MemoryUpdateMessage(
            user_id=response.user_id,
            content=response.text,
            source="ai",
            timestamp=response.timestamp,
            meta={**response.meta, **{name: value for name, value in meta.items() if value is not None}},
            message_id=message_id,
            require_ai_response=False,
            agent_id=response.agent_id or answered.agent_id,
            ttl_days=response.ttl_days or answered.ttl_days,
            traceparent=response.traceparent or answered.traceparent,
        )
    )


def traced(message: MemoryUpdateMessage, traceparent: str | None) -> MemoryUpdateMessage:
    """The message as one of another span; as it is where no room for that is left."""
    if traceparent == message.traceparent:
        return message
    other = message.model_copy(update={"traceparent": traceparent})
    return other if len(other.to_wire(logged=True)) <= MAX_MESSAGE_BYTES else message


def _publishable(message: MemoryUpdateMessage) -> MemoryUpdateMessage:
    if (size := len(message.to_wire(logged=True))) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"the message would be published with {size} bytes; {MAX_MESSAGE_BYTES} are allowed")
    return message
