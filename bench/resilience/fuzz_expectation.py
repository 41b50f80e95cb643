"""Expected results of a fuzz run: which messages are to be answered, rejected or remembered."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field

from keepsake_client.errors import InvalidMessage, NoText
from keepsake_client.protocol import parse_request, parse_update

from adapters.memory_updates import says_logged
from bench.resilience.fuzz_inputs import UPDATES, Target
from services.memory.messages import parse_user_input

MARK = re.compile(r"\b(?:good|bad)-\d{6}\b")


@dataclass
class Expectation:
    """Expected results of the messages sent so far, according to the contract's own parsers.

    Args:
        good: when each good request was pushed, by its request_id, on the monotonic clock.
        errors, answers: how often each readable request_id is to be answered, with an error and in all.
        remembered: by what identifies the event, the marks in the contents of messages that are to become a memory.
        rejected: how many are to be rejected.
        skipped: how many hold no text, and are to be counted.
        crashes: messages on which a parser raised an unexpected error, with the error.
        unread_ids: how many JSON objects with a valid request_id the parser rejected without reading it.
        examples: one message by request_id.
    """

    good: dict[str, float] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    remembered: dict[tuple[str, str, str, str], set[str]] = field(default_factory=dict)
    rejected: int = 0
    skipped: int = 0
    crashes: list[str] = field(default_factory=list)
    unread_ids: int = 0
    examples: dict[str, bytes] = field(default_factory=dict)

    def add_request(self, raw: bytes, max_chars: int) -> None:
        """Add what a request should result in."""
        try:
            request_id: str | None = parse_request(raw, max_chars).request_id
        except InvalidMessage as error:
            request_id = error.request_id
            if request_id is None:
                self.rejected += 1
                self.unread_ids += _has_valid_id(raw)
                return
            self.errors[request_id] += 1
        assert request_id is not None
        self.answers[request_id] += 1
        self.examples[request_id] = raw

    def add_message(self, target: Target, raw: bytes, max_chars: int) -> None:
        """Add what an update or a user's input should result in."""
        try:
            if target is UPDATES:
                if says_logged(raw):
                    return  # its publisher has written it to the stream
                message = parse_update(raw, max_chars)
            else:
                message = parse_user_input(raw, max_chars)
        except NoText:
            self.skipped += 1
        except InvalidMessage:
            self.rejected += 1
        else:
            marks = MARK.findall(message.content)
            if marks:
                event = (message.user_id, message.message_id or marks[0], message.source, message.content)
                self.remembered.setdefault(event, set()).update(marks)

    def missing(self, found: set[str], kind: str) -> int:
        """How many messages should have become a memory and did not.

        Args:
            found: the marks in the contents of all memories.
            kind: "good" or "bad".
        """
        expected = [marks for marks in self.remembered.values() if any(mark.startswith(kind) for mark in marks)]
        return sum(not marks & found for marks in expected)


def _has_valid_id(raw: bytes) -> bool:
    """Whether a message is a JSON object with a valid request_id, independent of the contract's parser."""
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError):
        return False
    found = value.get("request_id") if isinstance(value, dict) else None
    return (isinstance(found, str) and bool(found.strip())) or type(found) is int
