"""Turn: what is known of one turn, put together from the records that belong to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from keepsake_client.protocol import TraceRecord
from keepsake_client.turns import PromptMessage, TurnRecord
from pydantic import BaseModel, Field

from services.runtime.trace_reader import Trace

_SEARCHES: Final = ("search", "context")


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
        state: whether it was indexed, is on its way, never will be, or nothing is known of it.
        why: of the state: its `meta.remember` is false; it failed; it was not stored, or the record of that is gone.
        detail: the code of the error, or where it waits.
        message_id: of the reply's own event, where it is known.
    """

    state: Literal["remembered", "waiting", "not_remembered", "unknown"]
    why: Literal["indexed", "waits", "not_to_be_remembered", "failed", "no_reply", "gone"]
    detail: str = ""
    message_id: str | None = None


class Missing(BaseModel):
    """Something that a turn does not show; as a text, a line for people.

    Args:
        what: the times or candidates of a search; prompt and reply; all contents; or the end of long texts.
        why: LTM_TURNS is off, or `ids`; the record is gone; none was written; the search failed; the workers were
            behind; no reply is known; or a record has no room for them.
        request_id: of the search.
        detail: the code of the error.
    """

    what: Literal["times", "candidates", "prompt and reply", "contents", "the end of long texts"]
    why: Literal["off", "ids", "gone", "not_written", "failed", "no_reply", "too_long", "busy"]
    request_id: str | None = None
    detail: str = ""

    def __str__(self) -> str:
        of = f" of {self.request_id}" if self.request_id else ""
        return f"{self.what}{of}: {_REASONS[self.why]}{self.detail}"


_REASONS: Final = {
    "off": "LTM_TURNS is off",
    "ids": "they were left out, with LTM_TURNS=ids",
    "gone": "the record is gone",
    "not_written": "there is none: memories of the user were deleted since, or none was written, as with LTM_TURNS=off,"
    " beyond ten searches a second of one process, by an earlier release, or without the right to ltm:turns",
    "failed": "the search ended with ",
    "no_reply": "no reply of the chat service or of the proxy is known",
    "busy": "the workers were behind: a search that waits for one is not explained",
    "too_long": "a record has room for the beginning",
}


class TurnParts(BaseModel):
    """The parts of one turn: what the user said, the searches that it caused, and the reply.

    Args:
        user: the user id or its hash; empty where no record is left.
        at: when it began, in seconds since 1970.
        message: of the user, once it was indexed or has failed.
        text: what the user said; of a search without a reply, its query; None where that is not recorded.
        searches: the oldest first.
        reply_trace: when the reply was made, by the chat service.
        reply_record: what it was made of.
        reply_memory: whether the reply was remembered.
        missing: what is not shown, each with the reason.
    """

    user: str = ""
    at: float | None = None
    message: TraceRecord | None = None
    text: str | None = None
    searches: list[Search] = Field(default_factory=list)
    reply_trace: TraceRecord | None = None
    reply_record: TurnRecord | None = None
    reply_memory: ReplyMemory
    missing: list[Missing] = Field(default_factory=list)


class Turn(TurnParts):
    """One turn, with every trace record of it and what waits.

    Args:
        id: what was asked for.
    """

    id: str
    trace: Trace

    @property
    def is_known(self) -> bool:
        """Whether anything of the id is left."""
        return bool(self.trace.records or self.trace.waiting or self.searches or self.reply_record)

    @property
    def users(self) -> set[str]:
        """Whose records it has, by the user id or its hash."""
        records = [*self.trace.records, *(one.record for one in self.searches), self.reply_record]
        return {record.user for record in records if record is not None and record.user}

    @property
    def prompt(self) -> list[PromptMessage] | None:
        """What the model got, where it is recorded."""
        return None if self.reply_record is None else self.reply_record.prompt

    @property
    def reply(self) -> str | None:
        """What was replied, where it is recorded."""
        return None if self.reply_record is None else self.reply_record.reply


def turn_of(trace: Trace, records: Sequence[TurnRecord], *, kept_since: float, recorded: str) -> Turn:
    """The turn that these records are of.

    Args:
        records: of turns, oldest first.
        kept_since: when the oldest turn record that may be left was written, in seconds since 1970.
        recorded: the setting LTM_TURNS.
    """
    reply = next((record for record in reversed(records) if record.kind == "reply"), None)
    reply_id = reply and reply.reply_message_id
    messages = [one for one in trace.records if one.kind == "message" and not one.reply_to]
    message = next((one for one in messages if one.message_id != reply_id), None)
    reply_trace = next((one for one in reversed(trace.records) if one.kind == "reply"), None)
    searches = _searches(trace, records)
    queries = [one.record.query for one in searches if one.record]
    times = [min(one.times.values()) for one in trace.records if one.times] or [one.at for one in records]
    turn = Turn(
        id=trace.id,
        at=min(times, default=None),
        message=message,
        text=reply.text if reply else next(iter(queries), None),
        searches=searches,
        reply_trace=reply_trace,
        reply_record=reply,
        reply_memory=_reply_memory(trace, reply),
        trace=trace,
    )
    users = [one.user for one in (message, reply_trace, reply) if one and one.user] or sorted(turn.users)
    missing = list(_missing(turn, kept_since, recorded))
    return turn.model_copy(update={"user": users[0] if users else "", "missing": missing})


def _searches(trace: Trace, records: Sequence[TurnRecord]) -> list[Search]:
    """The searches of a turn, the oldest first."""
    found = {
        one.request_id: Search(request_id=one.request_id, trace=one)
        for one in trace.records
        if one.kind == "request" and one.type in _SEARCHES and one.request_id
    }
    for record in records:
        if record.kind == "search" and record.request_id:
            known = found.get(record.request_id) or Search(request_id=record.request_id)
            found[record.request_id] = known.model_copy(update={"record": record})
    return list(found.values())


def _reply_memory(trace: Trace, reply: TurnRecord | None) -> ReplyMemory:
    """Whether the reply became a memory, by the record of its event, or by where that waits."""
    chosen = reply and reply.reply_message_id
    for one in reversed(trace.records):
        if one.kind == "message" and (one.reply_to or (chosen and one.message_id == chosen)):
            return _ended(one)
    if reply is not None and not reply.remember:
        return ReplyMemory(state="not_remembered", why="not_to_be_remembered", message_id=chosen)
    for item in trace.waiting:
        if item.reply_to or (chosen and item.message_id == chosen):
            detail = f"{item.place}: {item.state}"
            return ReplyMemory(state="waiting", why="waits", detail=detail, message_id=item.message_id)
    known = reply is not None or any(one.kind == "reply" for one in trace.records)
    return ReplyMemory(state="unknown", why="gone" if known else "no_reply", message_id=chosen)


def _ended(event: TraceRecord) -> ReplyMemory:
    if event.outcome != "ok":
        detail = event.outcome
        return ReplyMemory(state="not_remembered", why="failed", detail=detail, message_id=event.message_id)
    if event.memories == 0:
        return ReplyMemory(state="not_remembered", why="not_to_be_remembered", message_id=event.message_id)
    return ReplyMemory(state="remembered", why="indexed", message_id=event.message_id)


def _missing(turn: Turn, kept_since: float, recorded: str) -> Iterator[Missing]:
    """What a turn does not show."""
    if not turn.is_known:
        return
    for search in turn.searches:
        trace, request_id = search.trace, search.request_id
        if trace is None:
            yield Missing(what="times", why="gone", request_id=request_id)
        elif search.record is None and trace.outcome != "ok":
            yield Missing(what="candidates", why="failed", request_id=request_id, detail=trace.outcome)
        elif search.record is not None and search.record.cut is None:
            yield Missing(what="candidates", why="busy", request_id=request_id)
        elif search.record is None:
            why = _not_recorded(trace.times.get("answered"), kept_since, recorded)
            yield Missing(what="candidates", why=why, request_id=request_id)
    if turn.reply_record is None:
        replied = turn.reply_trace.times.get("replied") if turn.reply_trace else None
        known = replied is not None or recorded == "off"
        yield Missing(
            what="prompt and reply", why=_not_recorded(replied, kept_since, recorded) if known else "no_reply"
        )
    written = [record for record in (turn.reply_record, *(one.record for one in turn.searches)) if record]
    if any(record.text is None and record.query is None for record in written):
        yield Missing(what="contents", why="ids")
    if any(record.shortened for record in written):
        yield Missing(what="the end of long texts", why="too_long")


def _not_recorded(ended: float | None, kept_since: float, recorded: str) -> Literal["off", "gone", "not_written"]:
    """Why what ended at that time, in seconds since 1970, has no turn record."""
    if recorded == "off":
        return "off"
    return "gone" if ended is not None and ended < kept_since else "not_written"
