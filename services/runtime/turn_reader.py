"""TurnReader: follows one turn, from the user's message to the reply and its memory.

A turn is put together from the records of traces and of turns that share an id. Everything is read, nothing written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM, TurnRecord
from pydantic import ValidationError
from redis.exceptions import NoPermissionError

from services.runtime.id_matcher import IdMatcher, decoded
from services.runtime.logging import redact
from services.runtime.redis import connect
from services.runtime.settings import Settings
from services.runtime.trace_reader import TraceReader
from services.runtime.turn import Turn, turn_of

#: Turn records read by one command: they may hold 64 kB each.
PAGE = 100
#: Turn records looked at for one turn, the newest first.
MAX_LOOKED_AT = 5_000


class TurnReader:
    """Reads turns. It is synchronous: an asyncio program calls it in a thread.

    Args:
        client: connects to the pipeline's Redis.
        broker: connects to that of the workers' queues; None where they are elsewhere.
        settings: name the lists and the streams, and say what is recorded.
        elsewhere: where the workers' queues are, if not on a Redis that can be read.
    """

    def __init__(
        self, client: redis.Redis, broker: redis.Redis | None, settings: Settings, elsewhere: str | None = None
    ) -> None:
        self._client: Any = client  # redis-py's types of replies are those of every protocol at once
        self._traces = TraceReader(client, broker, settings)
        self._settings = settings
        self._elsewhere = elsewhere
        self._unseen: list[str] = []

    def follow(self, identifier: str) -> Turn:
        """The turn that an id belongs to.

        Args:
            identifier: a message_id, of the user's message or of the reply's event, a request_id or a task_id.

        Raises:
            redis.ConnectionError, redis.TimeoutError: Redis does not answer.
        """
        self._unseen = []
        records, oldest = self._of_ids({identifier})
        linked = _linked(records)
        trace = self._traces.follow(identifier, linked)
        ids = {identifier, *linked, *(id_ for one in trace.records for id_ in (one.message_id, one.request_id) if id_)}
        if ids - {identifier}:
            records, oldest = self._of_ids(ids)
        if self._elsewhere:
            trace.unseen.append(f"the workers' queues, which are on {self._elsewhere}")
        trace.unseen.extend(dict.fromkeys(self._unseen))
        kept_since = time.time() - self._settings.ltm_turns_hours * 3_600 if oldest is None else oldest
        return turn_of(trace, records, kept_since=kept_since, recorded=self._settings.ltm_turns)

    def _of_ids(self, ids: set[str]) -> tuple[list[TurnRecord], float | None]:
        """The turn records with one of these ids, the oldest first; and when the oldest of all was written."""
        match, found, oldest_ms = IdMatcher(ids), [], None
        for written_ms, raw in self._newest():
            oldest_ms = written_ms
            if match.may_be_in(raw) and (record := _parsed(raw)) and not ids.isdisjoint(_ids(record)):
                found.append(record)
        return found[::-1], oldest_ms and oldest_ms / 1000

    def _newest(self) -> Iterator[tuple[int, bytes]]:
        """The newest turn records, each as JSON with the time when it was written, in milliseconds since 1970."""
        end, looked_at = "+", 0
        try:
            while page := self._client.xrevrange(TURNS_STREAM, max=end, count=PAGE):
                if looked_at >= MAX_LOOKED_AT:
                    self._unseen.append(f"{TURNS_STREAM}: the newest {looked_at} records alone were looked at")
                    return
                for entry_id, fields in page:
                    yield int(entry_id.partition(b"-")[0]), fields.get(TURN_FIELD.encode(), b"")
                looked_at += len(page)
                end = f"({page[-1][0].decode()}"
        except NoPermissionError:
            self._unseen.append(f"{TURNS_STREAM}: no permission")
        except redis.ResponseError as error:
            self._unseen.append(f"{TURNS_STREAM}: {redact(error)}")


@contextmanager
def turn_reader(settings: Settings) -> Iterator[TurnReader]:
    """A reader on connections of its own, to the servers of these settings."""
    url, broker_url = settings.redis_url.get_secret_value(), settings.broker.get_secret_value()
    on_redis = broker_url.startswith(("redis", "unix"))
    with connect(url) as client, connect(broker_url if on_redis else url) as broker:
        yield TurnReader(client, broker if on_redis else None, settings, None if on_redis else "another broker")


def _parsed(raw: bytes) -> TurnRecord | None:
    try:
        return TurnRecord.model_validate(decoded(raw))
    except ValidationError:
        return None  # of a later version


def _ids(record: TurnRecord) -> list[str | None]:
    return [record.message_id, record.request_id, record.task_id, record.reply_message_id]


def _linked(records: Sequence[TurnRecord]) -> set[str]:
    """The ids of what belongs to one turn; a task may have several."""
    return {id_ for one in records for id_ in (one.message_id, one.request_id, one.reply_message_id) if id_}
