"""TraceReader: finds what happened to one message, request or task, and where it waits if it has not come to an end.

What has ended has a record in the stream of traces. What has not is looked for where it can be, each place up to a
bound, in the order in which it passes them. Everything is read, nothing written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import redis
from keepsake_client.protocol import (
    MEMBERSHIP_KEY,
    REJECTED_STREAM,
    STREAM_EVENT_FIELD,
    STREAM_GROUP,
    TRACE_FIELD,
    TRACES_STREAM,
    TraceRecord,
)
from pydantic import BaseModel, Field, ValidationError
from redis.exceptions import NoPermissionError

from services.runtime.id_matcher import ID_FIELDS, IdMatcher, decoded, ids_of, replied_to
from services.runtime.logging import redact
from services.runtime.queues import QUEUES, QueueKeys, taken_list
from services.runtime.settings import Settings

#: Entries read by one command: they may hold a megabyte each.
PAGE = 100
#: Entries looked at in one place, the next to be served first in a list and the newest first in a stream.
MAX_LOOKED_AT = 20_000


class Waiting(BaseModel):
    """Something that has not come to an end, or was rejected.

    Args:
        place: the list, stream or queue.
        state: what it waits for there, or what became of it.
        since: when it came there, in seconds since 1970, where that is known.
        message_id, request_id, task_id: the ids it has, where it can be parsed.
        reply_to: the message_id of the message that it answers, where it is a reply.
    """

    place: str
    state: str
    since: float | None = None
    message_id: str | None = None
    request_id: str | None = None
    task_id: str | None = None
    reply_to: str | None = None


class Trace(BaseModel):
    """What is known of an id.

    Args:
        id: a message_id, request_id or task_id.
        records: of what has come to an end, oldest first.
        waiting: of what has not.
        unseen: places that could not be looked into whole, each with the reason.
    """

    id: str
    records: list[TraceRecord] = Field(default_factory=list)
    waiting: list[Waiting] = Field(default_factory=list)
    unseen: list[str] = Field(default_factory=list)


class TraceReader:
    """Reads traces.

    Args:
        client: connects to the pipeline's Redis.
        broker: connects to that of the workers' queues; None where they are elsewhere.
        settings: name the lists and the stream.
    """

    def __init__(self, client: redis.Redis, broker: redis.Redis | None, settings: Settings) -> None:
        self._client: Any = client  # redis-py's types of replies are those of every protocol at once
        self._broker: Any = broker
        self._inputs = settings.user_input_queue
        self._requests = settings.request_queues
        self._stream = settings.ltm_stream_key
        self._unseen: list[str] = []

    def follow(self, identifier: str, linked: Iterable[str] = ()) -> Trace:
        """What is known of an id, and of the requests and replies that belong to its message.

        Args:
            linked: ids that are known to belong to it.

        Raises:
            redis.ConnectionError, redis.TimeoutError: Redis does not answer.
        """
        self._unseen = []
        ids = {identifier, *linked}
        traces = self._traces()
        _linked(ids, traces)
        waiting = self._waiting(ids)
        # What ended meanwhile has left the places that were looked into, and has a record now.
        ids |= {id_ for item in waiting for id_ in (item.message_id, item.request_id, item.reply_to) if id_}
        traces = [*self._traces(since=f"({traces[0][0].decode()}" if traces else "-"), *traces]
        records = _linked(ids, traces)
        known = {(record.message_id, record.task_id) for record in records if record.kind == "message"}
        known |= {(item.message_id, item.task_id) for item in waiting if item.state != _DISPATCHED}
        waiting = [
            item for item in waiting if item.state != _DISPATCHED or (item.message_id, item.task_id) not in known
        ]
        return Trace(id=identifier, records=records, waiting=waiting, unseen=list(dict.fromkeys(self._unseen)))

    def _traces(self, since: str = "-") -> list[tuple[bytes, bytes]]:
        """The trace records with their places in the stream, newest first, as JSON: few of them are parsed."""
        entries = self._seen(TRACES_STREAM, partial(self._entries, TRACES_STREAM, since))
        return [(entry_id, fields.get(TRACE_FIELD.encode(), b"")) for entry_id, fields in entries]

    def _waiting(self, ids: set[str]) -> list[Waiting]:
        match = IdMatcher(ids)
        found: list[Waiting] = []
        for name, state in (
            (self._inputs, "waits for the memory service"),
            (f"{self._inputs}:processing", "is being stored by the memory service"),
            *((queue, "waits for an adapter") for queue in self._requests),
        ):
            found += self._seen(name, partial(self._in_list, name, state, match))
        found += self._seen(MEMBERSHIP_KEY, partial(self._taken, match))
        found += self._seen(self._stream, partial(self._in_stream, match))
        if self._broker is not None:
            for queue in QUEUES:
                found += self._seen(f"queue {queue}", partial(self._in_queue, queue, match))
        found += self._seen(REJECTED_STREAM, partial(self._rejected, match))
        return found

    def _seen(self, place: str, read: Callable[[], Iterable[Any]]) -> list[Any]:
        try:
            return list(read())
        except NoPermissionError:
            self._unseen.append(f"{place}: no permission")
        except redis.ResponseError as error:
            self._unseen.append(f"{place}: {redact(error)}")
        return []

    def _in_list(self, name: str, state: str, match: IdMatcher) -> Iterator[Waiting]:
        for begin in range(0, MAX_LOOKED_AT, PAGE):
            # Lists are served from the right.
            page = self._client.lrange(name, -(begin + PAGE), -(begin + 1))
            for raw in reversed(page):
                if (item := match(raw)) is not None:
                    yield Waiting(place=name, state=state, since=_time(item.get("pushed_at")), **_ids_of(item))
            if len(page) < PAGE:
                return
        self._unseen.append(f"{name}: the next {MAX_LOOKED_AT} entries alone were looked at")

    def _taken(self, match: IdMatcher) -> Iterator[Waiting]:
        for name in self._client.zrange(MEMBERSHIP_KEY, 0, -1):
            adapter = name.decode()
            for queue in self._requests:
                yield from self._in_list(taken_list(queue, adapter), f"was taken by adapter {adapter}", match)

    def _in_stream(self, match: IdMatcher) -> Iterator[Waiting]:
        last_delivered = None
        for entry_id, fields in self._entries(self._stream):
            event = match(fields.get(STREAM_EVENT_FIELD.encode(), b""))
            if event is None:
                continue
            if last_delivered is None:
                last_delivered = self._last_delivered()
            state = "waits to be read" if _order(entry_id) > last_delivered else self._read_entry(entry_id)
            yield Waiting(place=self._stream, state=state, since=_order(entry_id)[0] / 1000, **_ids_of(event))

    def _read_entry(self, entry_id: bytes) -> str:
        pending = self._client.xpending_range(self._stream, STREAM_GROUP, min=entry_id, max=entry_id, count=1)
        return f"was read by adapter {pending[0]['consumer'].decode()}, waits for its turn" if pending else _DISPATCHED

    def _last_delivered(self) -> tuple[int, int]:
        for group in self._client.xinfo_groups(self._stream):
            if group["name"] == STREAM_GROUP.encode():
                return _order(group["last-delivered-id"])
        return (0, 0)

    def _in_queue(self, queue: str, match: IdMatcher) -> Iterator[Waiting]:
        keys = QueueKeys(queue)
        for body, redis_id in self._bodies(keys.messages, match):
            running = self._broker.lpos(keys.ids, redis_id) is None
            yield _queued(queue, "is being run by a worker" if running else "waits for a worker", body)
        for body, _ in self._bodies(keys.delayed_messages, match):
            yield _queued(queue, f"failed {body['options'].get('retries', '?')} times, waits for its next try", body)
        for body, redis_id in self._bodies(keys.dead_messages, match):
            item = _queued(queue, f"is a dead letter, {body['options'].get('error', 'of an unknown error')}", body)
            died_ms = self._broker.zscore(keys.dead_ids, redis_id)
            yield item.model_copy(update={"since": died_ms and died_ms / 1000})

    def _bodies(self, key: str, match: IdMatcher) -> Iterator[tuple[dict[str, Any], bytes]]:
        cursor, looked_at = 0, 0
        while True:
            cursor, page = self._broker.hscan(key, cursor, count=PAGE)
            for redis_id, raw in page.items():
                if match.may_be_in(raw) and (body := decoded(raw)) and match.is_in(_subject(body)):
                    yield body, redis_id
            looked_at += len(page)
            if not cursor:
                return
            if looked_at >= MAX_LOOKED_AT:
                self._unseen.append(f"{key}: {looked_at} messages alone were looked at")
                return

    def _rejected(self, match: IdMatcher) -> Iterator[Waiting]:
        for entry_id, fields in self._entries(REJECTED_STREAM):
            if match.is_word_of(fields.get(b"message", b"")):
                at, reason = (fields.get(name, b"").decode("utf-8", "replace") for name in (b"at", b"reason"))
                state = f"was rejected from {at}: {reason}"
                yield Waiting(place=REJECTED_STREAM, state=state, since=_order(entry_id)[0] / 1000)

    def _entries(self, stream: str, since: str = "-") -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
        """The entries of a stream, newest first."""
        end, looked_at = "+", 0
        while page := self._client.xrevrange(stream, max=end, min=since, count=PAGE):
            yield from page
            looked_at += len(page)
            if len(page) < PAGE:
                return
            if looked_at >= MAX_LOOKED_AT:
                self._unseen.append(f"{stream}: the newest {looked_at} entries alone were looked at")
                return
            end = f"({page[-1][0].decode()}"


_ID_FIELDS = (*ID_FIELDS, "reply_to")


def _linked(ids: set[str], traces: list[tuple[bytes, bytes]]) -> list[TraceRecord]:
    """The records with one of these ids, and those that share a message or request with them; adds their ids."""
    wanted = set(ids)
    while True:
        match = IdMatcher(wanted)
        parsed = [record for _, raw in traces if match.may_be_in(raw) and (record := _record(raw)) is not None]
        found = [record for record in parsed if wanted & {getattr(record, name) for name in _ID_FIELDS}]
        # A task may have many messages, so it links none.
        linked = {id_ for record in found for id_ in (record.message_id, record.request_id, record.reply_to) if id_}
        if linked <= wanted:
            ids |= wanted
            return sorted(found, key=lambda record: min(record.times.values(), default=0.0))
        wanted |= linked


def _record(raw: bytes) -> TraceRecord | None:
    try:
        # Not `model_validate_json`, which refuses the lone surrogates of an id.
        return TraceRecord.model_validate(decoded(raw))
    except ValidationError:
        return None  # of a later version


_DISPATCHED = "was dispatched; it is being indexed, or its record is gone"


def _ids_of(item: dict[str, Any]) -> dict[str, str | None]:
    return {**ids_of(item), "reply_to": replied_to(item)}


def _subject(body: dict[str, Any]) -> dict[str, Any]:
    """The event or request of an actor message."""
    kwargs = body.get("kwargs")
    subject = (kwargs.get("update") or kwargs.get("request")) if isinstance(kwargs, dict) else None
    return subject if isinstance(subject, dict) and isinstance(body.get("options"), dict) else {}


def _queued(queue: str, state: str, body: dict[str, Any]) -> Waiting:
    sent_ms = body.get("message_timestamp")
    since = sent_ms / 1000 if isinstance(sent_ms, int | float) else None
    return Waiting(place=f"queue {queue}", state=state, since=since, **_ids_of(_subject(body)))


def _time(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)
