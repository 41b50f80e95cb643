"""Tolerance: the fields of messages as other programs write them, put into the form of the wire models.

Only what can be meant in one way is read; docs/contract.md lists all of it. The models themselves stay strict.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any

from keepsake_client.errors import NoText
from keepsake_client.times import time_of_event

ANONYMOUS_USER = "anonymous"
#: The values of `source` and `role` that say that the AI spoke; all others are the user's.
AI_SOURCES = frozenset({"ai", "assistant", "bot", "model", "system"})
#: The values of `type` of a message that need not hold a text.
MEDIA_TYPES = ("audio", "file", "image", "photo", "sticker", "video", "voice")
#: The keys of `meta` that keep what was sent where something else was stored.
SENT_TIMESTAMP, SENT_SOURCE = "sent_timestamp", "sent_source"
#: Of what was sent and is neither a text nor a number; and of the name of a speaker.
MAX_KEPT_CHARS = 200
#: A hundred years. What is to be kept for longer does not expire.
MAX_TTL_DAYS = 36_500


@dataclass(frozen=True, slots=True)
class MessageDefaults:
    """What a message that leaves something out is read by.

    Args:
        zone: that of times which name none.
        anonymous_user: the user of messages without a user_id.
    """

    zone: tzinfo = UTC
    anonymous_user: str = ANONYMOUS_USER


#: Those of a stack without settings.
DEFAULTS = MessageDefaults()


def read_event(fields: dict[str, Any], arrived_at: float, defaults: MessageDefaults) -> None:
    """Put the fields of an event into the form of `MemoryUpdateMessage`, in place.

    Args:
        arrived_at: when it arrived, in seconds since 1970.

    Raises:
        NoText: it is a recording or a file without a text.
    """
    if not read_text(fields, "content", ("text", "message")) and is_media(fields):
        raise NoText("content: there is no text")
    read_common(fields, arrived_at, defaults)
    source = fields.get("source")
    if source not in ("user", "ai"):
        _read_source(fields)


def read_text(fields: dict[str, Any], name: str, other_names: Iterable[str]) -> bool:
    """Put what was said into the field `name`, in place; whether anything was.

    Args:
        other_names: the names under which other programs send it.
    """
    sent = fields.get(name)
    if type(sent) is str and _says_something(sent):
        return True
    for value in (sent, *(fields.get(other) for other in other_names)):
        text = _text_of(value)
        if text is not None and _says_something(text):
            fields[name] = text
            return True
    return False


def is_media(fields: dict[str, Any]) -> bool:
    """Whether a message says that it is something else than a text, such as a recording or the call of a tool."""
    parts = fields.get("content")
    in_parts = isinstance(parts, list) and any(isinstance(part, dict) and "type" in part for part in parts)
    return in_parts or fields.get("type") in MEDIA_TYPES or "input_file" in fields or "tool_calls" in fields


def read_common(fields: dict[str, Any], arrived_at: float, defaults: MessageDefaults) -> None:
    """Put the fields that all messages have into form, in place: user_id, meta, ids, time, speaker, expiry."""
    user_id = fields.get("user_id")
    if user_id is None or (type(user_id) is str and not user_id.strip()):
        fields["user_id"] = defaults.anonymous_user
    meta = fields.get("meta")
    if meta is not None and type(meta) is not dict:
        fields["meta"] = {"value": meta}
    for name in ("message_id", "task_id", "original_message_id", "agent_id"):
        sent_id = fields.get(name)
        if sent_id is not None and type(sent_id) is not str:
            fields[name] = as_text(sent_id)
        elif sent_id is not None and not _says_something(sent_id):
            fields[name] = None
    if "speaker" in fields:
        _read_speaker(fields)
    if "ttl_days" in fields:
        _read_ttl(fields)
    _read_time(fields, arrived_at, defaults.zone)


def keep_sent(fields: dict[str, Any], name: str, value: Any) -> None:
    """Keep what was sent in `meta`, where its publisher has not used the key."""
    meta = fields.get("meta") or {}
    if name not in meta:
        fields["meta"] = {**meta, name: _scalar(value)}


def as_text(value: Any) -> str | None:
    """A text, or a number as one; None for all else."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    return math.isfinite(value) if isinstance(value, float) else type(value) is int


def _scalar(value: Any) -> Any:
    """What was sent, for people to read: what is neither a text nor a finite number as the beginning of its JSON."""
    if isinstance(value, str | bool) or _is_number(value):
        return value
    try:
        return json.dumps(value)[:MAX_KEPT_CHARS]
    except RecursionError:
        return type(value).__name__


def _says_something(text: str) -> bool:
    return bool(text.replace("\0", "").strip())


def _text_of(value: Any) -> str | None:
    """The text of a content: itself, a number's, or that of the parts of a list, as OpenAI's messages have them."""
    if isinstance(value, dict):
        return value["text"] if isinstance(value.get("text"), str) else None
    if isinstance(value, list):
        return "\n".join(part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str))
    return as_text(value)


def _read_source(fields: dict[str, Any]) -> None:
    sent = fields.get("source")
    if sent is None:
        sent = fields.get("role")  # as OpenAI's messages and Mem0's have it
    word = sent.strip().casefold() if isinstance(sent, str) else None
    fields["source"] = "ai" if word in AI_SOURCES else "user"
    if sent is not None and word not in ("user", "ai", ""):
        taken = "source" in (fields.get("meta") or {})
        keep_sent(fields, SENT_SOURCE if taken else "source", sent)


def _read_speaker(fields: dict[str, Any]) -> None:
    sent = fields.pop("speaker")
    parts = sent if isinstance(sent, dict) else {"name": sent}
    read = {name: as_text(parts.get(name)) for name in ("id", "name")}
    speaker = {
        name: text
        for name, text in read.items()
        if text is not None and _says_something(text) and len(text) <= MAX_KEPT_CHARS
    }
    if speaker:
        fields["speaker"] = speaker
    elif sent is not None and sent != "":
        keep_sent(fields, "speaker", sent)


def _read_ttl(fields: dict[str, Any]) -> None:
    sent = fields.pop("ttl_days")
    try:
        days = float(sent)
    except (TypeError, ValueError, OverflowError):
        days = 0.0
    if 0 < days <= MAX_TTL_DAYS and not isinstance(sent, bool):
        fields["ttl_days"] = days
    elif sent is not None and sent != "":
        keep_sent(fields, "ttl_days", sent)


def _read_time(fields: dict[str, Any], arrived_at: float, zone: tzinfo) -> None:
    sent = fields.get("timestamp")
    if sent is None or sent == "":
        fields["timestamp"] = arrived_at
        return
    fields["timestamp"], as_sent = time_of_event(sent, arrived_at, zone)
    if not as_sent:
        keep_sent(fields, SENT_TIMESTAMP, sent)
