"""`ltm trace`: what happened to one message, request or task, across all processes, and the turn that it belongs to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import redis
import typer
from keepsake_client.protocol import TraceRecord

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, found_stack, redis_failure
from services.cli.output import Output, printable
from services.cli.turn import show_turn
from services.runtime.errors import StackError
from services.runtime.process_record import other_broker
from services.runtime.redis import connect
from services.runtime.settings import mask_url
from services.runtime.trace_reader import Trace, Waiting
from services.runtime.turn import Turn
from services.runtime.turn_reader import TurnReader
from services.stack.locate import FoundStack
from services.stack.processes import SERVICES

TIMEOUT_S = 5.0

#: What each stage of a record is called, with the program that does it.
_STAGES = {
    "said": "said, by its own timestamp",
    "logged": "published, logged in the stream",
    "dispatched": "dispatched to the queue index",
    "indexed": "indexed",
    "pushed": "pushed by its asker",
    "taken": "taken by an adapter",
    "queued": "queued for a worker",
    "answered": "answered",
    "asked": "asked the long-term memory",
    "searched": "had the answer, or gave up waiting",
    "replied": "replied",
}
_DURATIONS = {"embed_ms": "embedded", "database_ms": "read", "rank_ms": "ranked", "context_ms": "completed"}


def trace(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="A message_id, request_id or task_id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Show what happened to a message, request or task, or where it waits, and its turn; exit 1 if it is not known."""
    stack = found_stack(data_dir)
    turn, output = _follow(stack, identifier), Output()
    if as_json:
        parts = turn.model_dump(exclude={"id", "trace"}, exclude_none=True)
        output.json({**turn.trace.model_dump(exclude_none=True), **({"turn": parts} if turn.is_known else {})})
    else:
        _show(turn.trace, output)
        if turn.is_known:
            show_turn(turn, output, stack.settings.timezone)
    raise typer.Exit(0 if turn.is_known else 1)


def _follow(stack: FoundStack, identifier: str) -> Turn:
    client, settings = connect(stack.redis_url, TIMEOUT_S), stack.settings
    url = settings.broker.get_secret_value()
    try:
        elsewhere = other_broker(client, settings, SERVICES)
        if elsewhere is None and not url.startswith(("redis", "unix")):
            elsewhere = mask_url(url)
        broker = None if elsewhere else connect(url, TIMEOUT_S)
        return TurnReader(client, broker, settings, elsewhere).follow(identifier)
    except (redis.RedisError, OSError) as error:
        raise StackError(f"{mask_url(stack.redis_url)} {redis_failure(error)}") from None


def _show(found: Trace, output: Output) -> None:
    for record in found.records:
        _show_record(record, output)
    for item in found.waiting:
        _show_waiting(item, output)
    if not found.records and not found.waiting:
        output.line(f"nothing is known of {printable(found.id)}: it did not arrive here, or its record is gone", "bold")
    for reason in found.unseen:
        output.line(f"not looked into: {reason}", "yellow")


def _show_record(record: TraceRecord, output: Output) -> None:
    kind = f"{record.kind} {record.type or ''}".strip()
    output.line(printable(f"{kind}: {', '.join([*_ids(record), f'user {record.user}'])}"), "bold")
    stages = sorted(record.times.items(), key=lambda stage: (stage[0] != "said", stage[1]))
    began = next((moment for stage, moment in stages if stage != "said"), 0.0)
    for stage, moment in stages:
        after = "" if stage == "said" else f"+{(moment - began) * 1000:.0f} ms"
        where = {"logged": "Redis", "pushed": "the asker"}.get(stage, _place(record, stage))
        line = f"  {_clock(moment)}  {after:>10}  {_STAGES.get(stage, stage)}{_detail(record, stage)}"
        output.line(printable(f"{line}  {where}".rstrip()))


def _place(record: TraceRecord, stage: str) -> str:
    # Adapters dispatch, take and queue; they do not write these records.
    other = stage in ("said", "dispatched", "taken", "queued")
    return "" if other else f"{record.process} @ {record.host}"


def _detail(record: TraceRecord, stage: str) -> str:
    last = max(record.times, key=lambda name: record.times[name])
    parts: list[str] = []
    if stage in ("answered", "failed", "searched") and record.outcome != "ok":
        parts.append(record.outcome)
    if stage == "answered":
        parts += [f"{word} in {record.ms[name]:.1f} ms" for name, word in _DURATIONS.items() if name in record.ms]
        parts += ["by words alone"] if record.partial else []
        if record.deadline_ms is not None:
            late = record.late_ms
            parts.append(f"in time for {record.deadline_ms} ms" if late is None else f"LATE by {late:.0f} ms")
    if stage == last:
        parts += [f"{record.memories} memories"] if record.memories is not None else []
        parts += [f"{record.tries} failed tries"] if record.tries else []
    return f": {', '.join(parts)}" if parts else ""


def _show_waiting(item: Waiting, output: Output) -> None:
    since = f" since {_clock(item.since)}" if item.since else ""
    about = f" ({', '.join(ids)})" if (ids := _ids(item)) else ""
    output.line(printable(f"{item.place}: {item.state}{since}{about}"), "bold yellow")


def _ids(item: TraceRecord | Waiting) -> list[str]:
    return [f"{name} {value}" for name in ("message_id", "request_id", "task_id") if (value := getattr(item, name))]


def _clock(moment: float) -> str:
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    except (ValueError, OverflowError, OSError):
        return f"{moment:.3f}"
