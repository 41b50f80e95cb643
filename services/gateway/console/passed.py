"""Passed: a row of the live list, made of a trace record: what came to an end, when, and what took how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from keepsake_client.protocol import TraceRecord

Kind = Literal["reply", "search", "message", "change"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
#: In time with all that it should have; without the query's meaning; after its deadline; given up at the deadline; a
#: reply without memories, as none came in time; or failed.
Outcome = Literal["ok", "partial", "late", "expired", "unanswered", "failed"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
#: Requests that read memories by a query.
SEARCHES: Final = ("search", "context")
#: Requests that erase what was recorded of turns, as far as it was done in time or at all.
ERASING: Final = ("user_forget", "memory_delete")


@dataclass(slots=True)
class Passed:
    """One row.

    Args:
        entry_id: of its trace record, as `<milliseconds>-<number>`.
        at: when the record was written, in seconds since 1970.
        type: of a request.
        code: the outcome that the record has.
        total_ms: from the first to the last stage; None where these are not known.
        stages: names and milliseconds, in order.
        late_ms: after the deadline.
        words: the beginning of what the user said or asked, or of a reply's own message what was replied, where known.
        reply: the beginning of what was replied.
        by_ai: whether a message is known to be the AI's.
    """

    entry_id: str
    at: float
    kind: Kind
    type: str
    user: str
    message_id: str | None
    request_id: str | None
    task_id: str | None
    outcome: Outcome
    code: str
    total_ms: float | None
    stages: tuple[tuple[str, float], ...]
    deadline_ms: int | None
    late_ms: float | None
    memories: int | None
    words: str | None = None
    reply: str | None = None
    by_ai: bool = False

    @classmethod
    def of(cls, entry_id: str, record: TraceRecord) -> Passed:
        """The row of a record."""
        stages = stages_of(record)
        return cls(
            entry_id=entry_id,
            at=int(entry_id.partition("-")[0]) / 1000,
            kind=kind_of(record),
            type=record.type or "",
            user=record.user,
            message_id=record.message_id,
            request_id=record.request_id,
            task_id=record.task_id,
            outcome=outcome_of(record),
            code=record.outcome,
            total_ms=sum(ms for _, ms in stages) if stages else None,
            stages=stages,
            deadline_ms=record.deadline_ms,
            late_ms=record.late_ms,
            memories=record.memories,
            by_ai=record.reply_to is not None,
        )

    def show_search(self, search: Passed | None) -> None:
        """Have the row of a reply show times and outcome of its search, which has the budget, where that is known."""
        if search is None or not search.stages:
            return
        self.stages = (*search.stages, *(stage for stage in self.stages if stage[0] == "reply"))
        self.total_ms, self.deadline_ms, self.late_ms = search.total_ms, search.deadline_ms, search.late_ms
        if self.outcome == "ok":
            self.outcome = search.outcome

    @property
    def turn_id(self) -> str:
        """The id that leads to its turn; "" without one."""
        return self.message_id or self.request_id or self.task_id or ""


def kind_of(record: TraceRecord) -> Kind:
    """The kind of row that a record is."""
    if record.kind == "request":
        return "search" if record.type in SEARCHES else "change"
    return record.kind


def outcome_of(record: TraceRecord) -> Outcome:
    """What became of it."""
    if record.outcome != "ok":
        if record.kind == "reply":
            return "unanswered"
        return "expired" if record.outcome == "expired" else "failed"
    if record.late_ms is not None:
        return "late"
    return "partial" if record.partial else "ok"


def stages_of(record: TraceRecord) -> tuple[tuple[str, float], ...]:
    """The stages of a record with their milliseconds, in order; none where its first or last time is missing."""
    times = record.times
    if record.kind == "request":
        return _of_request(record)
    if record.kind == "reply":
        return _between(times, (("search", "asked", "searched"), ("reply", "searched", "replied")))
    end = "indexed" if "indexed" in times else "failed"
    return _between(
        times, (("wait", "logged", "dispatched"), ("queue", "dispatched", "started"), ("index", "started", end))
    )


def _of_request(record: TraceRecord) -> tuple[tuple[str, float], ...]:
    times, ms = record.times, record.ms
    begin = times.get("pushed", times.get("taken"))
    started, answered = times.get("started"), times.get("answered")
    if begin is None or answered is None:
        return ()
    if started is None:  # it never came to a worker's turn
        return (("queue", _ms(begin, answered)),)
    work = [(name, ms[f"{name}_ms"]) for name in ("embed", "database", "rank") if f"{name}_ms" in ms]
    rest = max(0.0, _ms(started, answered) - sum(took for _, took in work))
    return (("queue", _ms(begin, started)), *work, ("publish", rest))


def _between(times: dict[str, float], stages: Sequence[tuple[str, str, str]]) -> tuple[tuple[str, float], ...]:
    """The stages between the first and the last of these times; a time that is missing belongs to the next stage."""
    if stages[0][1] not in times or stages[-1][2] not in times:
        return ()
    found, begin = [], times[stages[0][1]]
    for name, _, end in stages:
        if end in times:
            found.append((name, _ms(begin, times[end])))
            begin = times[end]
    return tuple(found)


def _ms(begin: float, end: float) -> float:
    return max(0.0, (end - begin) * 1000)
