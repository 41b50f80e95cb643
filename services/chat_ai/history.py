"""The conversation before a message, of the entries of its list in Redis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import MemoryUpdateMessage, parse_update


def messages_before(
    message: MemoryUpdateMessage, entries: Iterable[Any], max_content_chars: int
) -> list[MemoryUpdateMessage]:
    """The messages before `message`, newest last: those of its character and the shared ones, of no other character."""
    past: list[MemoryUpdateMessage] = []
    for entry in entries:
        if not isinstance(entry, bytes):
            continue
        try:
            stored = parse_update(entry, max_content_chars)
        except InvalidMessage:
            continue
        if message.message_id and message.is_same_event(stored.message_id, stored.source, stored.content):
            break
        if stored.agent_id in (None, message.agent_id):
            past.append(stored)
    return past
