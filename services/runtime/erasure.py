"""Erasure: removes what Redis keeps of one user since before a time: stream, conversation, lists, queues, records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import redis
import structlog
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import (
    COUNTERS,
    MAX_MESSAGE_BYTES,
    MEMBERSHIP_KEY,
    REJECTED_STREAM,
    STREAM_ARRIVED_FIELD,
    STREAM_EVENT_FIELD,
    STREAM_GROUP,
    TRACE_FIELD,
    TRACES_STREAM,
    LTMResponse,
    MemoryUpdateMessage,
    conversation_key,
    parse_update,
)
from keepsake_client.times import parse_timestamp
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM
from pydantic import ValidationError
from redis.exceptions import NoPermissionError

from services.runtime.arrival import arrival
from services.runtime.errors import ErasureRefused
from services.runtime.extraction_figures import EXTRACTION_KEY
from services.runtime.id_matcher import decoded
from services.runtime.logging import user_id_hasher
from services.runtime.queues import QUEUES, QueueKeys, delay_queue, taken_list
from services.runtime.redis import connect
from services.runtime.settings import Settings
from services.runtime.user_matcher import UserMatcher, subject

#: Entries read by one command: they may hold a megabyte each.
PAGE = 200
#: The actor message of the request that is being done.
_FORGET = "user_forget"

log = structlog.get_logger()


@dataclass(slots=True)
class _Task:
    """The erasure of one user.

    Args:
        before: what arrived later is kept; in seconds since 1970.
        events: those that were erased.
        erased, kept: the message_ids of the stream's events that were erased, and of those that arrived later.
    """

    match: UserMatcher
    before: float
    events: list[MemoryUpdateMessage] = field(default_factory=list)
    erased: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)


class Erasure:
    """Erases what Redis keeps of users.

    Requests that wait are answered as those of a user without anything. On RabbitMQ the queues cannot be looked into;
    what is in them is refused when it is indexed.

    Args:
        client: connects to the pipeline's Redis.
        broker: connects to that of the workers' queues; None where they are on RabbitMQ.
        settings: name the lists, streams and channels.
    """

    def __init__(self, client: redis.Redis, broker: redis.Redis | None, settings: Settings) -> None:
        self._client: Any = client  # redis-py's types of replies are those of every protocol at once
        self._broker: Any = broker
        self._settings = settings
        self._hashed = user_id_hasher(settings.model_copy(update={"ltm_log_user_ids": False}))

    @classmethod
    def of(cls, settings: Settings) -> Erasure:
        """The erasure on the servers of these settings; connects lazily."""
        url, broker_url = settings.redis_url.get_secret_value(), settings.broker.get_secret_value()
        client = connect(url)
        if broker_url == url:
            return cls(client, client, settings)
        return cls(client, None if broker_url.startswith("amqp") else connect(broker_url), settings)

    def erase(self, user_id: str, before: float) -> list[MemoryUpdateMessage]:
        """Erase what arrived of the user before that time, in seconds since 1970; the events that were among it.

        Raises:
            ErasureRefused: Redis does not permit it.
            redis.RedisError: Redis does not answer, or refuses writes.
        """
        task = _Task(self._matcher(user_id), before)
        settings = self._settings
        with _permitted(settings.ltm_stream_key):
            self._erase_stream(task)
        with _permitted("memory:conversation:*"):
            self._erase_conversation(task)
        for name in (settings.user_input_queue, f"{settings.user_input_queue}:processing"):
            with _permitted(name):
                self._erase_inputs(task, name)
        with _permitted(MEMBERSHIP_KEY):
            adapters = [name.decode() for name in self._client.zrange(MEMBERSHIP_KEY, 0, -1)]
        for queue in settings.request_queues:
            for name in (queue, *(taken_list(queue, adapter) for adapter in adapters)):
                with _permitted(name):
                    self._erase_requests(task, name)
        if self._broker is not None:
            for queue in QUEUES:
                with _permitted(f"queue {queue}"):
                    self._erase_queue(task, QueueKeys(queue))
                    self._erase_queue(task, QueueKeys(delay_queue(queue)))
                    self._erase_dead_letters(task, QueueKeys(queue))
        with _permitted(EXTRACTION_KEY):
            self._client.delete(EXTRACTION_KEY)  # the extractor writes it again, without the user
        with _permitted(REJECTED_STREAM):
            self._erase_entries(REJECTED_STREAM, before, task.match.rejected)
        with _permitted(TRACES_STREAM):
            self._erase_entries(TRACES_STREAM, before, lambda fields: task.match.record(_record(fields, TRACE_FIELD)))
        with _permitted(TURNS_STREAM):
            self._erase_turns(task.match)
        return task.events

    def erase_turns(self, user_id: str) -> None:
        """Erase the turn records of a user of whom memories were deleted.

        All of them: a prompt has the words of memories and of the conversation without their ids, and a reply tells
        them in other words. Where Redis does not permit it, as by access rules of before there were such records, that
        is counted.

        Raises:
            redis.RedisError: Redis does not answer, or refuses writes.
        """
        try:
            self._erase_turns(self._matcher(user_id))
        except NoPermissionError:
            log.warning("turns_not_erased", user_id=user_id, remedy="load deploy/redis-acl.conf")
            self._client.hincrby(COUNTERS, "turns_not_erased", 1)

    def _matcher(self, user_id: str) -> UserMatcher:
        return UserMatcher(user_id, self._settings.ltm_anonymous_user, self._hashed)

    def _erase_turns(self, match: UserMatcher) -> None:
        # With their users, those of searches that are erased: another user's reply may be made of one (`also`).
        request_ids: set[tuple[str, str]] = set()

        def matches(fields: dict[bytes, bytes]) -> bool:
            record = _record(fields, TURN_FIELD)
            request = str(record.get("user")), str(record.get("request_id") or "")
            if match.record(record):
                request_ids.add(request)
                return True
            return record.get("kind") == "reply" and request[1] != "" and request in request_ids

        # Also what was written since: it may tell of memories that were there until now.
        self._erase_entries(TURNS_STREAM, math.inf, matches)

    def _erase_stream(self, task: _Task) -> None:
        key = self._settings.ltm_stream_key
        for page in self._pages(key):
            gone = []
            for entry_id, fields in page:
                raw = fields.get(STREAM_EVENT_FIELD.encode(), b"")
                if (event := task.match.event(raw)) is None:
                    continue
                if arrival(entry_id, fields.get(STREAM_ARRIVED_FIELD.encode(), b""), task.before) > task.before:
                    task.kept.add(str(event.get("message_id")))
                else:
                    task.erased.add(str(event.get("message_id")))
                    self._note(task, raw)
                    gone.append(entry_id)
            if gone:
                # Acknowledged in the same transaction: an entry that is pending and missing would count as lost.
                with self._client.pipeline(transaction=True) as transaction:
                    transaction.xack(key, STREAM_GROUP, *gone)
                    transaction.xdel(key, *gone)
                    transaction.execute()

    def _erase_conversation(self, task: _Task) -> None:
        key, gone = conversation_key(task.match.user_id), []
        if self._client.type(key) != b"list":  # none, or something of another program's
            return
        for raw in self._items(key):
            event = task.match.event(raw) or {}
            name = str(event.get("message_id"))
            if name in task.kept or (name not in task.erased and _is_after(event.get("timestamp"), task.before)):
                continue
            self._note(task, raw)
            gone.append(raw)
        for raw in gone:
            self._client.lrem(key, 0, raw)

    def _erase_inputs(self, task: _Task, name: str) -> None:
        for raw in self._items(name):
            item = task.match.event(raw)
            if item is not None and not _is_after(item.get("timestamp"), task.before):
                self._client.lrem(name, 0, raw)

    def _erase_requests(self, task: _Task, name: str) -> None:
        """Remove the requests that say that they were pushed before: the others are taken after, and served."""
        for raw in self._items(name):
            item = task.match.event(raw)
            if (
                item is None
                or item.get("type") == _FORGET
                or _is_after(item.get("pushed_at"), task.before) is not False
            ):
                continue
            if self._client.lrem(name, 1, raw):
                self._answer(item)

    def _erase_queue(self, task: _Task, keys: QueueKeys) -> None:
        for redis_id, body in self._bodies(task, keys.messages):
            with self._broker.pipeline(transaction=True) as transaction:
                transaction.lrem(keys.ids, 0, redis_id)
                transaction.hdel(keys.messages, redis_id)
                waited, _ = transaction.execute()
            if waited and "request" in body["kwargs"]:  # or a worker holds it, and answers
                self._answer(subject(body))

    def _erase_dead_letters(self, task: _Task, keys: QueueKeys) -> None:
        for redis_id, _ in self._bodies(task, keys.dead_messages):
            with self._broker.pipeline(transaction=True) as transaction:
                transaction.zrem(keys.dead_ids, redis_id)
                transaction.hdel(keys.dead_messages, redis_id)
                transaction.execute()

    def _bodies(self, task: _Task, key: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The user's actor messages of a hash that arrived before, each noted; not that of a request to forget."""
        for redis_id, raw in self._broker.hscan_iter(key, count=PAGE):
            body = task.match.actor_message(raw)
            if body is None or subject(body).get("type") == _FORGET:
                continue
            kwargs = body["kwargs"]
            if _is_after(kwargs.get("received_at", subject(body).get("arrived_at")), task.before):
                continue
            if isinstance(update := kwargs.get("update"), dict):
                with suppress(ValidationError):  # one that was put on the queue by hand
                    task.events.append(MemoryUpdateMessage.model_validate(update))
            yield redis_id, body

    def _erase_entries(self, stream: str, before: float, match: Callable[[dict[bytes, bytes]], bool]) -> None:
        for page in self._pages(stream):
            gone = [entry_id for entry_id, fields in page if _written_at(entry_id) <= before and match(fields)]
            if gone:
                self._client.xdel(stream, *gone)

    def _pages(self, stream: str) -> Iterator[list[tuple[bytes, dict[bytes, bytes]]]]:
        start: bytes | str = "-"
        while page := self._client.xrange(stream, min=start, count=PAGE):
            yield page
            start = b"(" + page[-1][0]

    def _items(self, name: str) -> list[bytes]:
        """What is in a list; it may be large, so it is read in pages."""
        items: list[bytes] = []
        while page := self._client.lrange(name, len(items), len(items) + PAGE - 1):
            items += page
        return items

    def _note(self, task: _Task, raw: bytes) -> None:
        with suppress(InvalidMessage):  # it would become no memory
            task.events.append(
                parse_update(raw, MAX_MESSAGE_BYTES, self._settings.message_defaults, arrived_at=task.before)
            )

    def _answer(self, request: dict[str, Any]) -> None:
        """Answer a request as one of a user of whom nothing is known."""
        if not isinstance(request_id := request.get("request_id"), str):
            return
        version = 0 if str(request.get("type")).startswith("profile") else None
        response = LTMResponse(
            request_id=request_id, user_id=str(request.get("user_id")), success=True, profile_version=version
        )
        self._client.publish(self._settings.ltm_responses_channel, response.to_wire())


@contextmanager
def _permitted(place: str) -> Iterator[None]:
    try:
        yield
    except NoPermissionError:
        raise ErasureRefused(place) from None


def _record(fields: dict[bytes, bytes], name: str) -> dict[str, Any]:
    """The record of a trace or turn in an entry of its stream; without fields where it is none."""
    return decoded(fields.get(name.encode(), b"")) or {}


def _written_at(entry_id: bytes) -> float:
    return int(entry_id.partition(b"-")[0]) / 1000


def _is_after(value: Any, before: float) -> bool | None:
    """Whether a time of the wire is after another one; None where it is none."""
    try:
        return parse_timestamp(value) > before
    except (ValueError, TypeError, OverflowError):
        return None
