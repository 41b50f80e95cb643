"""Dead letters of the workers' queues: recorded with the reason, listed, replayed and dropped.

Dramatiq keeps them for seven days. In Redis, its nack moves the copy of the message that was enqueued, and that copy
knows nothing of the attempt that failed, so `record` replaces it first. RabbitMQ's are in `rabbitmq_dead_letters`.
This module works without Dramatiq: tests/integration/test_dead_letters.py has Dramatiq's workers make the dead letters
and run what was replayed.
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import redis

from services.runtime.errors import StackError
from services.runtime.queues import QUEUES, QueueKeys

#: Options that a message gathers on its way to the dead letters. Without these it is as it was first sent.
_GATHERED_OPTIONS = ("retries", "failing_since", "traceback", "error", "eta", "requeue_timestamp", "redis_message_id")

#: Replaces a message only while this process holds it: another process may hold it by now, or have finished it.
_RECORD = """
if redis.call("sismember", KEYS[1], ARGV[1]) == 1 then
    redis.call("hset", KEYS[2], ARGV[1], ARGV[2])
end
"""

#: Removes a dead letter only if it still is what was read; its new copy, if there is one, goes to the queue.
_MOVE = """
local letters, bodies, queue, messages = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, body, new_id, new_body = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if redis.call("hget", bodies, id) ~= body then
    return 0
end
redis.call("zrem", letters, id)
redis.call("hdel", bodies, id)
if new_id ~= "" then
    redis.call("hset", messages, new_id, new_body)
    redis.call("rpush", queue, new_id)
end
return 1
"""


def record(client: redis.Redis, keys: QueueKeys, broker_id: str, redis_id: str, body: bytes) -> None:
    """Replace the copy of a failed message that a nack will move to the dead letters.

    Args:
        broker_id: the worker process that must still hold the message; otherwise nothing is written.
        body: the message with its attempts, its `error` and its `traceback` in the options.
    """
    client.eval(_RECORD, 2, keys.acks(broker_id), keys.messages, redis_id, body)


@dataclass(frozen=True)
class DeadLetter:
    """One message that failed for good.

    Args:
        died_at: in seconds since 1970.
        raw: as the broker keeps it.
        message: decoded; None if it is no message of Dramatiq's.
    """

    id: str
    queue: str
    died_at: float
    raw: bytes
    message: dict[str, Any] | None

    @property
    def actor(self) -> str:
        """Name of the actor that the message was sent to."""
        return str(self.message["actor_name"]) if self.message else "?"

    @property
    def tries(self) -> int:
        """How often the message was run."""
        retries = self._option("retries", 0)
        return retries if isinstance(retries, int) else 0

    @property
    def error(self) -> str:
        """Why the message failed, without content."""
        return str(self._option("error", "unknown")) if self.message else "undecodable: it is no actor message"

    @property
    def traceback(self) -> str:
        """Where the message failed; a traceback may quote content."""
        return str(self._option("traceback", ""))

    @property
    def payload(self) -> Any:
        """The arguments of the actor."""
        return {"args": self.message["args"], **self.message["kwargs"]} if self.message else None

    def _option(self, name: str, default: Any) -> Any:
        return self.message["options"].get(name, default) if self.message else default


class DeadLetters(ABC):
    """Lists, replays and drops dead letters."""

    @abstractmethod
    def all(self, queue: str | None = None) -> Iterator[DeadLetter]:
        """The dead letters of one queue or of all, each queue's oldest first."""

    @abstractmethod
    def replay(self, letter: DeadLetter) -> bool:
        """Send a dead letter to its queue again as if for the first time; False if it is no message, or gone by now."""

    @abstractmethod
    def drop(self, letter: DeadLetter) -> bool:
        """Delete a dead letter; False if it is gone by now."""

    def replay_all(self, letters: Iterable[DeadLetter]) -> int:
        """`replay` of several; how many were sent."""
        return sum(map(self.replay, letters))

    def drop_all(self, letters: Iterable[DeadLetter]) -> int:
        """`drop` of several; how many were deleted."""
        return sum(map(self.drop, letters))

    def newest(self, limit: int) -> list[DeadLetter]:
        """The last messages that died, of all queues, newest first."""
        return sorted(self.all(), key=lambda letter: letter.died_at, reverse=True)[:limit]

    def get(self, letter_id: str) -> DeadLetter | None:
        """The dead letter of this id; None where there is none."""
        return next((letter for letter in self.all() if letter.id == letter_id), None)

    def find(self, prefix: str) -> DeadLetter:
        """Find the dead letter whose id begins with `prefix`.

        Raises:
            StackError: no dead letter has such an id, or several have.
        """
        found = {letter.id: letter for letter in self.all() if letter.id.startswith(prefix)}
        if len(found) != 1:
            raise StackError(f"{len(found) or 'no'} dead letters have an id that begins with {prefix!r}")
        return found.popitem()[1]


class RedisDeadLetters(DeadLetters):
    """Dead letters in Redis.

    Args:
        client: connects to the broker's Redis.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._move_script = client.register_script(_MOVE)

    def all(self, queue: str | None = None) -> Iterator[DeadLetter]:
        for name in [queue] if queue else QUEUES:
            keys = QueueKeys(name)
            for redis_id, died_ms in self._by_time(keys.dead_ids):
                raw = self._client.hget(keys.dead_messages, redis_id)
                if isinstance(raw, bytes):
                    yield DeadLetter(redis_id, name, died_ms / 1000, raw, decoded(raw))

    def newest(self, limit: int) -> list[DeadLetter]:
        found = [letter for queue in QUEUES for letter in self._newest_of(queue, limit)]
        return sorted(found, key=lambda letter: letter.died_at, reverse=True)[:limit]

    def get(self, letter_id: str) -> DeadLetter | None:
        for queue in QUEUES:
            keys = QueueKeys(queue)
            raw: Any = self._client.hget(keys.dead_messages, letter_id)
            died_ms: Any = self._client.zscore(keys.dead_ids, letter_id)
            if isinstance(raw, bytes) and died_ms is not None:
                return DeadLetter(letter_id, queue, died_ms / 1000, raw, decoded(raw))
        return None

    def replay(self, letter: DeadLetter) -> bool:
        new_id = str(uuid.uuid4())
        body = as_first_sent(letter, redis_message_id=new_id)
        return body is not None and self._move(letter, new_id, body)

    def drop(self, letter: DeadLetter) -> bool:
        return self._move(letter, "", "")

    def _newest_of(self, queue: str, limit: int) -> Iterator[DeadLetter]:
        keys = QueueKeys(queue)
        ids: Any = self._client.zrevrange(keys.dead_ids, 0, limit - 1, withscores=True)
        bodies: Any = self._client.hmget(keys.dead_messages, [raw_id for raw_id, _ in ids]) if ids else []
        for (raw_id, died_ms), raw in zip(ids, bodies, strict=True):
            if raw is not None:
                yield DeadLetter(raw_id.decode(), queue, died_ms / 1000, raw, decoded(raw))

    def _by_time(self, dead_ids: str) -> Iterable[tuple[str, float]]:
        found: Any = self._client.zrange(dead_ids, 0, -1, withscores=True)
        return [(raw_id.decode(), score) for raw_id, score in found]

    def _move(self, letter: DeadLetter, new_id: str, new_body: str) -> bool:
        keys = QueueKeys(letter.queue)
        return bool(
            self._move_script(
                keys=[keys.dead_ids, keys.dead_messages, keys.ids, keys.messages],
                args=[letter.id, letter.raw, new_id, new_body],
            )
        )


def as_first_sent(letter: DeadLetter, **options: Any) -> str | None:
    """The body of a dead letter's message with no failed attempts counted; None where it is no message.

    Args:
        options: further options of the message.
    """
    if letter.message is None:
        return None
    kept = {name: value for name, value in letter.message["options"].items() if name not in _GATHERED_OPTIONS}
    message = {**letter.message, "queue_name": letter.queue, "options": {**kept, **options}}
    return json.dumps(message, separators=(",", ":"))


def decoded(raw: bytes) -> dict[str, Any] | None:
    """A message of Dramatiq's; None where it is none."""
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    shape = {"actor_name": str, "args": list, "kwargs": dict, "options": dict}
    if not isinstance(message, dict) or not all(isinstance(message.get(k), kind) for k, kind in shape.items()):
        return None
    return message
