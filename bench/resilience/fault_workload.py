"""The workload of a fault run: messages, adds, profile updates and searches, each with a mark of its own."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bench.harness.stack import Stack
from bench.resilience.publisher import Publisher
from bench.resilience.statements import statement

USERS = 50
#: For so many messages there are 300 adds, 300 profile updates and 1,000 searches.
MESSAGES = 3_000
DEADLINE_MS = 1_000
TOPICS = ("tea in the garden", "the cat Mochi", "the train to Osaka", "a song about rain", "my sister's new flat")
#: An operation's id, wherever it occurs in a text.
MARK = re.compile(r"\bu\d+:(?:message|add|update|search):\d{6}\b")

Kind = Literal["message", "add", "update", "search"]


@dataclass(frozen=True)
class Operation:
    """A message or request to send.

    Args:
        due: when, in seconds after the beginning.
        number: unique among all operations of a run.
        deadline_ms: of a search.
    """

    due: float
    kind: Kind
    user: str
    number: int
    deadline_ms: int = DEADLINE_MS

    @property
    def id(self) -> str:
        """The request_id, and the mark in the content: unique in a run."""
        return f"{self.user}:{self.kind}:{self.number:06d}"

    @property
    def content(self) -> str:
        """A text that no other operation has."""
        if self.kind == "message":
            return f"{statement(self.number)} [{self.id}]"
        return f"I told you about {TOPICS[self.number % len(TOPICS)]}. [{self.id}]"

    def body(self) -> str:
        """The JSON to push."""
        if self.kind == "message":
            return json.dumps({"user_id": self.user, "content": self.content, "meta": {"session_id": "s1"}})
        data: dict[str, dict[str, Any]] = {
            "add": {"content": self.content},
            "update": {"updates": {self.id: self.number}},
            "search": {"query": TOPICS[self.number % len(TOPICS)], "limit": 5, "deadline_ms": self.deadline_ms},
        }
        request_type = "profile_update" if self.kind == "update" else self.kind
        return json.dumps({"request_id": self.id, "type": request_type, "user_id": self.user, "data": data[self.kind]})


def plan(seed: int, messages: int, seconds: float) -> list[Operation]:
    """The operations in order: each kind evenly over the run, by users that the seed decides."""
    rng = random.Random(seed)
    scale = messages / MESSAGES
    numbers: dict[Kind, int] = {
        "message": messages,
        "add": round(300 * scale),
        "update": round(300 * scale),
        "search": round(1_000 * scale),
    }
    operations = [
        Operation((place + rng.random()) * seconds / total, kind, f"u{rng.randrange(USERS):02d}", 0)
        for kind, total in numbers.items()
        for place in range(total)
    ]
    operations.sort(key=lambda one: one.due)
    return [Operation(one.due, one.kind, one.user, number) for number, one in enumerate(operations)]


def foreign_data(response: dict[str, Any]) -> str | None:
    """Find data of another user than the one who asked, whose name begins the response's request_id; None if clean."""
    user = str(response.get("request_id")).partition(":")[0]
    if response.get("user_id") != user:
        return f"answered to {response.get('user_id')}"
    marks = MARK.findall(json.dumps([response.get("memories"), response.get("user_profile")]))
    others = {mark.partition(":")[0] for mark in marks} - {user}
    return f"contains data of {', '.join(sorted(others))}" if others else None


@dataclass
class Sent:
    """The operations that were sent.

    Args:
        acknowledged: by Redis.
        unknown: Redis may have taken them; each was sent again under another number.
    """

    acknowledged: list[Operation] = field(default_factory=list)
    unknown: list[Operation] = field(default_factory=list)

    def of(self, *kinds: Kind) -> list[Operation]:
        """The acknowledged operations of these kinds."""
        return [one for one in self.acknowledged if one.kind in kinds]


class WorkloadThread(threading.Thread):
    """A thread that sends the operations when they are due, or during an outage as soon as possible after it.

    Attributes:
        begun: when it began, on the monotonic clock.
    """

    def __init__(self, stack: Stack, operations: Sequence[Operation]) -> None:
        super().__init__(name="workload", daemon=True)
        self.stopped = threading.Event()
        self.sent = Sent()
        self.begun = 0.0
        self._publisher = Publisher(stack.redis_url, self.stopped)
        self._messages = stack.settings.user_input_queue
        self._requests = stack.settings.ltm_requests_queue
        self._operations = operations
        self._next_number = len(operations)

    def run(self) -> None:
        self.begun = time.monotonic()
        for planned in self._operations:
            if self.stopped.wait(max(0.0, self.begun + planned.due - time.monotonic())):
                return
            operation, acknowledged = planned, self._send(planned)
            while acknowledged is None:
                self.sent.unknown.append(operation)
                operation = replace(planned, number=self._next_number)
                self._next_number += 1
                acknowledged = self._send(operation)
            if acknowledged:
                self.sent.acknowledged.append(operation)

    def _send(self, operation: Operation) -> bool | None:
        queue = self._messages if operation.kind == "message" else self._requests
        return self._publisher.send("LPUSH", queue, operation.body())
