"""TurnReader: follows one turn, from the user's message to the reply and its memory, and lists the latest records."""

from __future__ import annotations

from typing import Any, Literal

import redis
from keepsake_client.protocol import TRACE_FIELD, TRACES_STREAM, TraceRecord
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM, PromptMessage, TurnRecord
from pydantic import BaseModel, Field, ValidationError
from redis.exceptions import NoPermissionError

from services.runtime.id_matcher import decoded
from services.runtime.logging import redact
from services.runtime.settings import Settings
from services.runtime.trace_reader import PAGE, Trace, TraceReader

#: Turn records that are looked at for one turn, the newest first.
MAX_TURNS_READ = 20_000


class Search(BaseModel):
    """A search or context.

    Args:
        request_id: its id.
        trace: when and how it was answered; None where no trace record of it is left.
        record: its query, candidates and cut; None where no turn record of it is left.
    """

    request_id: str
    trace: TraceRecord | None = None
    record: TurnRecord | None = None


class ReplyMemory(BaseModel):
    """Whether the reply of a turn became a memory.

    Args:
        state: indexed; on its way; not to be remembered, or failed; or not known.
        detail: the same in words.
        message_id: of the reply's own event, where it is known.
    """

    state: Literal["remembered", "waiting", "not_remembered", "unknown"] = "unknown"
    detail: str = ""
    message_id: str | None = None


class Turn(BaseModel):
    """One turn: what the user said, the searches that it caused, and the reply.

    Args:
        id: what was asked for.
        user: the user id or its hash; empty where no record is left.
        at: when it began, in seconds since 1970.
        message: of the user, once it was indexed or has failed.
        text: what the user said; of a search without a message, its query; None where that is not recorded.
        searches: the oldest first.
        reply_trace: when the reply was made, by the chat service.
        reply_record: what it was made of: `prompt`, `reply`, `model`.
        reply_memory: whether the reply was remembered.
        missing: what is not shown, each with the reason, in words.
        trace: every trace record, and what waits.
    """

    id: str
    user: str = ""
    at: float | None = None
    message: TraceRecord | None = None
    text: str | None = None
    searches: list[Search] = Field(default_factory=list)
    reply_trace: TraceRecord | None = None
    reply_record: TurnRecord | None = None
    reply_memory: ReplyMemory = Field(default_factory=ReplyMemory)
    missing: list[str] = Field(default_factory=list)
    trace: Trace

    @property
    def is_known(self) -> bool:
        """Whether anything of the id is left."""
        return bool(self.trace.records or self.trace.waiting or self.searches or self.reply_record)

    @property
    def prompt(self) -> list[PromptMessage] | None:
        """What the model got, where it is recorded."""
        return None if self.reply_record is None else self.reply_record.prompt

    @property
    def reply(self) -> str | None:
        """What was replied, where it is recorded."""
        return None if self.reply_record is None else self.reply_record.reply


class LiveItem(BaseModel):
    """What came to an end, for a live list.

    Args:
        entry_id: its place in the stream of traces, as `<milliseconds>-<number>`.
        trace: its record.
        record: what belongs to it in the stream of turns: of a search its query, of a reply its text.
    """

    entry_id: str
    trace: TraceRecord
    record: TurnRecord | None = None


class TurnReader:
    """Reads turns. It is synchronous: an asyncio program calls it in a thread.

    Args:
        client: connects to the pipeline's Redis.
        broker: connects to that of the workers' queues; None where they are elsewhere.
        settings: name the lists and the streams.
    """

    def __init__(self, client: redis.Redis, broker: redis.Redis | None, settings: Settings) -> None:
        self._client: Any = client  # redis-py's types of replies are those of every protocol at once
        self._traces = TraceReader(client, broker, settings)
        self._settings = settings

    def follow(self, identifier: str) -> Turn:
        """The turn that an id belongs to.

        Args:
            identifier: a message_id, of the user's message or of the reply's, a request_id or a task_id.

        Raises:
            redis.ConnectionError, redis.TimeoutError: Redis does not answer.
        """
        trace = self._traces.follow(identifier)
        ids = {identifier} | {i for r in trace.records for i in (r.message_id, r.request_id) if i}
        records, refused = self._of_ids(ids)
        return _turn(trace, records, [refused] if refused else [])

    def latest(self, limit: int = 100, after: str = "") -> list[LiveItem]:
        """The latest records, the newest first.

        Args:
            limit: how many at most.
            after: an `entry_id`: only newer ones.

        Raises:
            redis.RedisError: Redis does not answer, or does not permit reading the traces.
        """
        newest = self._client.xrevrange(TRACES_STREAM, max="+", min=f"({after}" if after else "-", count=limit)
        items = []
        for entry_id, fields in newest:
            try:
                record = TraceRecord.model_validate(decoded(fields.get(TRACE_FIELD.encode(), b"")))
            except ValidationError:
                continue  # of a later version
            items.append(LiveItem(entry_id=entry_id.decode(), trace=record))
        return items

    def _of_ids(self, ids: set[str]) -> tuple[list[TurnRecord], str]:
        """The turn records with one of these ids, oldest first; and why there are none, where they cannot be read."""
        found: list[TurnRecord] = []
        end, looked_at = "+", 0
        try:
            while page := self._client.xrevrange(TURNS_STREAM, max=end, min="-", count=PAGE):
                for _, fields in page:
                    if record := _parsed(fields.get(TURN_FIELD.encode(), b""), ids):
                        found.append(record)
                looked_at += len(page)
                if len(page) < PAGE or looked_at >= MAX_TURNS_READ:
                    break
                end = f"({page[-1][0].decode()}"
        except NoPermissionError:
            return found[::-1], f"{TURNS_STREAM}: no permission"
        except redis.ResponseError as error:
            return found[::-1], f"{TURNS_STREAM}: {redact(error)}"
        return found[::-1], ""


def _parsed(raw: bytes, ids: set[str]) -> TurnRecord | None:
    try:
        record = TurnRecord.model_validate(decoded(raw))
    except ValidationError:
        return None  # of a later version
    return record if ids & {record.message_id, record.request_id, record.task_id, record.reply_message_id} else None


def _turn(trace: Trace, records: list[TurnRecord], missing: list[str]) -> Turn:
    """The turn that these records are of."""
    replies = [record for record in trace.records if record.kind == "reply"]
    messages = [record for record in trace.records if record.kind == "message"]
    searches = {
        record.request_id: Search(request_id=record.request_id, trace=record)
        for record in trace.records
        if record.kind == "request" and record.type in ("search", "context") and record.request_id
    }
    for record in records:
        if record.kind == "search" and record.request_id:
            known = searches.get(record.request_id, Search(request_id=record.request_id))
            searches[record.request_id] = known.model_copy(update={"record": record})
    reply = next((record for record in reversed(records) if record.kind == "reply"), None)
    users = [user for user in (*(r.user for r in trace.records), *(r.user for r in records)) if user]
    return Turn(
        id=trace.id,
        user=users[0] if users else "",
        at=min((min(record.times.values()) for record in trace.records if record.times), default=None),
        message=messages[0] if messages else None,
        text=reply.text if reply else None,
        searches=list(searches.values()),
        reply_trace=replies[-1] if replies else None,
        reply_record=reply,
        missing=missing,
        trace=trace,
    )
