"""IdMatcher: recognises the messages on lists, streams and queues that have one of some ids."""

from __future__ import annotations

import json
import re
from typing import Any

from keepsake_client.fields import MAX_ID_BYTES

#: The fields of a message that may hold the id.
ID_FIELDS = ("message_id", "request_id", "task_id")
#: The field of a reply's `meta` that holds the id of the message which it answers.
REPLIED_TO = "original_message_id"


class IdMatcher:
    """Whether a message in JSON has one of some ids."""

    def __init__(self, ids: set[str]) -> None:
        self._ids = ids
        self._needles = {needle for text in ids if text for needle in _spellings(text)}

    def __call__(self, raw: bytes) -> dict[str, Any] | None:
        """The message in `raw`, if it is an object with one of the ids."""
        item = decoded(raw) if self.may_be_in(raw) else None
        return item if item is not None and self.is_in(item) else None

    def may_be_in(self, raw: bytes) -> bool:
        """Whether the text of one of the ids occurs, in any place."""
        for needle in self._needles:  # noqa: SIM110  # `any` would take twice as long, for each of 10,000 records
            if needle in raw:
                return True
        return False

    def is_word_of(self, raw: bytes) -> bool:
        """Whether one of the ids occurs as a whole in what may be no JSON, or only the beginning of some."""
        return any(re.search(rb"(?<![\w.-])" + re.escape(needle) + rb"(?![\w.-])", raw) for needle in self._needles)

    def is_in(self, item: dict[str, Any]) -> bool:
        """Whether the object has one of the ids, or answers the message that has it."""
        return not self._ids.isdisjoint(value for value in (*ids_of(item).values(), replied_to(item)) if value)


def _spellings(text: str) -> set[bytes]:
    """The text as it is, and as JSON has it: in ASCII, or with escapes of quotes and controls alone."""
    escaped = json.dumps(text, ensure_ascii=False)[1:-1]
    return {*(one.encode("utf-8", "surrogatepass") for one in (text, escaped)), json.dumps(text)[1:-1].encode()}


def decoded(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in `raw`, if it is one."""
    try:
        item = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return item if isinstance(item, dict) else None


def ids_of(item: dict[str, Any]) -> dict[str, str | None]:
    """The ids of a message, as text."""
    return {name: None if item.get(name) is None else str(item[name]) for name in ID_FIELDS}


def replied_to(item: dict[str, Any]) -> str | None:
    """The message_id of the message that an event answers, as text; None where that is too long for an id."""
    meta = item.get("meta")
    found = meta.get(REPLIED_TO) if isinstance(meta, dict) else None
    return found if isinstance(found, str) and len(found) <= MAX_ID_BYTES else None
