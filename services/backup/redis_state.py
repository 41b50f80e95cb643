"""What Redis keeps that a backup holds: conversations, and events that are not indexed yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import redis
from keepsake_client import protocol
from keepsake_client.protocol import STREAM_ARRIVED_FIELD, STREAM_EVENT_FIELD, STREAM_GROUP

from services.runtime.queues import INDEX_QUEUE, WRITES_QUEUE, QueueKeys, queue_depths, taken_list
from services.runtime.redis import connect
from services.runtime.settings import Settings
from services.stack.readiness import stream_backlog

TIMEOUT_S = 10.0
#: Entries of the stream, or of a hash, that are read at once.
BATCH = 1_000
CONVERSATIONS = protocol.conversation_key("") + "*"
#: What an adapter adds to an event's fields in an actor message.
_ADDED = ("validated", "arrived_at")


class RedisState:
    """The pipeline's Redis and, where it is one, the broker's."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = connect(settings.redis_url.get_secret_value(), TIMEOUT_S)
        broker = settings.broker.get_secret_value()
        self._broker: Any = connect(broker, TIMEOUT_S) if broker.startswith(("redis", "unix")) else None
        self._stream = settings.ltm_stream_key

    def events(self) -> Iterator[dict[str, Any]]:
        """The events that are not indexed yet, some of them twice: each has its `event` and `arrived_at`, or None.

        In the order in which they move on, so that one which does so meanwhile is read in one place or the other.
        """
        yield from self._stream_events()
        if self._broker is None:
            return
        keys = QueueKeys(INDEX_QUEUE)
        waiting = (keys.messages, keys.delayed_messages)
        read: set[bytes] = set()
        # A message that is retried, or a dead letter that is replayed, goes back.
        for name in (*waiting, keys.dead_messages, *waiting):
            for message_id, body in self._broker.hscan_iter(name, count=BATCH):
                if message_id not in read and (found := _queued_event(body)):
                    read.add(message_id)
                    yield found

    def conversations(self) -> Iterator[dict[str, Any]]:
        """The conversations, each with its `key`, `messages` and the time that it has left, in `ttl_ms`."""
        seen: set[bytes] = set()
        for key in self._client.scan_iter(match=CONVERSATIONS, count=BATCH, _type="list"):
            if key in seen:  # as SCAN may name one twice
                continue
            seen.add(key)
            with self._client.pipeline() as transaction:
                transaction.lrange(key, 0, -1)
                transaction.pttl(key)
                messages, ttl_ms = transaction.execute()
            if messages:
                yield {"key": _text(key), "ttl_ms": ttl_ms, "messages": list(map(_text, messages))}

    def left_out(self) -> dict[str, int]:
        """Numbers of what a backup does not hold, by what it is: only what there is."""
        inputs = self._settings.user_input_queue
        adapters = [name.decode() for name in self._client.zrange(protocol.MEMBERSHIP_KEY, 0, -1)]
        requests = [
            name
            for queue in self._settings.request_queues
            for name in (queue, *(taken_list(queue, adapter) for adapter in adapters))
        ]
        writes = queue_depths(self._broker)[WRITES_QUEUE] if self._broker else {}
        counts = {
            f"messages on {inputs}": self._client.llen(inputs) + self._client.llen(f"{inputs}:processing"),
            "requests in progress": sum(map(self._client.llen, requests)) + sum(writes.values()),
        }
        return {name: count for name, count in counts.items() if count}

    @property
    def broker_unread(self) -> bool:
        """Whether the workers' queues are on a broker that cannot be read without taking from it."""
        return self._broker is None

    def filled(self) -> str | None:
        """What of Keepsake there is in Redis already, in words; None where there is nothing."""
        if next(self._client.scan_iter(match=CONVERSATIONS, count=BATCH, _type="list"), None):
            return "conversations"
        if stream_backlog(self._client, self._stream):
            return f"events in {self._stream}"
        if self._broker is not None and any(queue_depths(self._broker)[INDEX_QUEUE].values()):
            return f"messages on the queue {INDEX_QUEUE}"
        return None

    def restore(
        self, conversations: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]
    ) -> Callable[[], None]:
        """Write what a backup holds; what undoes that.

        Raises:
            redis.RedisError: Redis does not answer, or refuses; what was written is removed again.
        """
        keys: list[bytes] = []
        entries: list[bytes] = []

        def undo() -> None:
            for key in keys:
                self._client.pexpire(key, 0)  # the user `ltm` of deploy/redis-acl.conf may not DEL
            for entry in entries:
                self._client.xdel(self._stream, entry)

        try:
            for conversation in conversations:
                key = _raw(conversation["key"])
                keys.append(key)
                with self._client.pipeline() as transaction:
                    transaction.rpush(key, *map(_raw, conversation["messages"]))
                    if conversation["ttl_ms"] > 0:
                        transaction.pexpire(key, conversation["ttl_ms"])
                    transaction.execute()
            for event in events:
                fields = {STREAM_EVENT_FIELD: _raw(event["event"])}
                if event["arrived_at"] is not None:
                    fields[STREAM_ARRIVED_FIELD] = event["arrived_at"]
                entries.append(self._client.xadd(self._stream, fields))
        except BaseException:
            undo()
            raise
        return undo

    def _stream_events(self) -> Iterator[dict[str, Any]]:
        try:
            groups = {group["name"]: group for group in self._client.xinfo_groups(self._stream)}
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            return
        group = groups.get(STREAM_GROUP.encode())
        start = b"(" + group["last-delivered-id"] if group else b"-"
        while entries := self._client.xrange(self._stream, min=start, count=BATCH):
            yield from map(_stream_event, entries)
            start = b"(" + entries[-1][0]
        start = b"-"
        while group and (pending := self._pending(start)):
            for entry_id in pending:  # one that was trimmed is gone
                yield from map(_stream_event, self._client.xrange(self._stream, min=entry_id, max=entry_id))
            start = b"(" + pending[-1]

    def _pending(self, start: bytes) -> list[bytes]:
        found = self._client.xpending_range(self._stream, STREAM_GROUP, min=start, max="+", count=BATCH)
        return [entry["message_id"] for entry in found]


def _stream_event(entry: tuple[bytes, dict[bytes, bytes]]) -> dict[str, Any]:
    entry_id, fields = entry
    arrived = fields.get(STREAM_ARRIVED_FIELD.encode())
    arrived_at = float(arrived) if arrived else int(entry_id.partition(b"-")[0]) / 1000
    return {"event": _text(fields.get(STREAM_EVENT_FIELD.encode(), b"")), "arrived_at": arrived_at}


def _queued_event(body: bytes) -> dict[str, Any] | None:
    """The event of an actor message; None for one that holds none."""
    try:
        update = json.loads(body)["kwargs"]["update"]
    except (ValueError, KeyError, TypeError):
        return None
    fields = {name: value for name, value in update.items() if value is not None and name not in _ADDED}
    return {"event": json.dumps(fields), "arrived_at": update.get("arrived_at") or update.get("timestamp")}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
