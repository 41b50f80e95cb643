"""The report on extraction: whether it works, what waits, and what its calls took today; imports little."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

import psycopg
from keepsake_client.fields import decode_user_id
from psycopg import Connection
from psycopg.rows import TupleRow

#: `waiting` for a provider that does not answer; `stopped` by one that refuses.
State = Literal["working", "waiting", "stopped", "over budget", "paused"]

# A budget is a day's: what was over yesterday's is not over today's.
_STATE = (
    "SELECT CASE WHEN paused THEN 'paused' WHEN state = 'stopped' OR state = 'waiting' THEN state"
    " WHEN state = 'over_budget' AND (since AT TIME ZONE 'UTC')::date = (now() AT TIME ZONE 'UTC')::date"
    " THEN 'over budget' ELSE 'working' END, since, reason FROM extraction_state"
)
_PENDING = "SELECT coalesce(sum(pending), 0)::bigint, count(*), min(first_at) FROM extraction WHERE pending > 0"
_SET_ASIDE = "SELECT count(*) FROM to_extract WHERE set_aside IS NOT NULL"
_NEWEST_SET_ASIDE = (
    "SELECT u.user_id, u.agent_id, m.id::text, extract(epoch FROM m.said_at)::float8, t.set_aside FROM to_extract t"
    " JOIN memories m ON m.number = t.memory_number JOIN users u ON u.number = t.user_number"
    " WHERE t.set_aside IS NOT NULL ORDER BY t.added_at DESC, t.memory_number DESC LIMIT %s"
)
#: The usage of all owners is that of number 0.
_USAGE = (
    "SELECT calls, prompt_tokens + completion_tokens FROM extraction_usage"
    " WHERE user_number = 0 AND day = (now() AT TIME ZONE 'UTC')::date"
)


@dataclass(frozen=True)
class ExtractionReport:
    """How extraction is.

    Args:
        since, reason: of a state other than `working`.
        messages, users: that wait to be read; a character is a user of its own.
        oldest: since when the oldest of them waits.
        set_aside: messages that no usable answer was had for.
        calls, tokens: today (UTC).
    """

    state: State
    since: datetime | None
    reason: str | None
    messages: int
    users: int
    oldest: datetime | None
    set_aside: int
    calls: int
    tokens: int


def read_report(connection: Connection[TupleRow]) -> ExtractionReport:
    """The report, by four statements."""
    state, since, reason = connection.execute(_STATE).fetchone() or ("working", None, None)
    messages, users, oldest = connection.execute(_PENDING).fetchone() or (0, 0, None)
    (set_aside,) = connection.execute(_SET_ASIDE).fetchone() or (0,)
    calls, tokens = connection.execute(_USAGE).fetchone() or (0, 0)
    if state == "working":
        since = reason = None
    return ExtractionReport(state, since, reason, messages, users, oldest, set_aside, calls, tokens)


class SetAside(NamedTuple):
    """A message that no usable answer was had for.

    Args:
        agent_id: of the character, None for what is shared.
        said_at: in seconds since 1970.
    """

    user_id: str
    agent_id: str | None
    memory_id: str
    said_at: float
    reason: str


def newest_set_aside(connection: Connection[TupleRow], limit: int) -> list[SetAside]:
    """The messages that were set aside last, newest first."""
    rows = connection.execute(_NEWEST_SET_ASIDE, (limit,)).fetchall()
    return [SetAside(decode_user_id(user), decode_user_id(agent) or None, *row) for user, agent, *row in rows]


def report_of(database_url: str, timeout_s: float) -> ExtractionReport | str:
    """The report on the extraction of a database, or why there is none, in one line."""
    milliseconds = max(1, round(timeout_s * 1000))
    try:
        with psycopg.connect(
            database_url,
            connect_timeout=max(1, round(timeout_s)),
            options=f"-c statement_timeout={milliseconds}",
            autocommit=True,
        ) as connection:
            return read_report(connection)
    except psycopg.Error as error:
        return error.diag.message_primary or "PostgreSQL does not answer"
