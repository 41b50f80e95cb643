"""Expiry: deletes memories whose time is over, in small batches, in one process at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from keepsake_client.errors import Unavailable
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from services.long_term_memory.deleting import remove_old_deletions
from services.long_term_memory.postgres.noted_writes import NoteWrites, no_notes
from services.long_term_memory.postgres.pool import database_errors
from services.long_term_memory.postgres.scope import encode_agent_id
from services.long_term_memory.removal import remove
from services.runtime.periodic import PeriodicThread
from services.runtime.retention import RetentionRule, days_kept

#: Between two passes: one look at an index where nothing has expired.
INTERVAL_S = 60.0
#: Between two passes over all owners, for LTM_RETENTION_DAYS.
RETENTION_INTERVAL_S = 3_600.0
#: Memories deleted by one transaction; the next begins after a pause as long as this one took.
BATCH = 200
#: Owners whose memories are looked through by one statement, which has ten seconds: each may have very many.
OWNERS = 50
#: The key of the advisory lock of the process that does it: "expiry" in ASCII.
EXPIRY_LOCK = 0x6578_70697279
_EXPIRED = "SELECT number FROM memories WHERE expires_at <= now() ORDER BY expires_at LIMIT %s"
_USERS = (
    "SELECT DISTINCT user_id FROM users"
    " WHERE number = ANY(ARRAY(SELECT user_number FROM memories WHERE number = ANY(%s)))"
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Limit:
    """Memories that are kept for the same time.

    Args:
        agents: encoded ids; of these characters, or with `others` of all but these, and the shared ones.
        source: None for both.
    """

    agents: list[str]
    others: bool
    source: str | None
    days: float


class Expiry:
    """Deletes memories that have expired, by their own `expires_at` and by the rules of retention.

    Deleted memories leave tombstones, as all do: a backfill does not bring them back.

    Args:
        rules: of retention; none keep everything.
        retention_interval_s: between two passes over all owners.
        pause: between two batches, in seconds.
        note: of the writes of users.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        rules: Sequence[RetentionRule] = (),
        *,
        retention_interval_s: float = RETENTION_INTERVAL_S,
        pause: Callable[[float], object] = time.sleep,
        note: NoteWrites = no_notes,
    ) -> None:
        self._note = note
        self._pool = pool
        self._limits = _limits(rules)
        self._retention_interval_s = retention_interval_s
        self._retention_at = 0.0
        self._pause = pause

    def run_once(self) -> int:
        """Delete what has expired, unless another process is doing that; how many memories.

        Raises:
            Unavailable: the database does not answer.
        """
        with database_errors(), self._pool.connection() as connection:
            held = connection.execute("SELECT pg_try_advisory_lock(%s)", (EXPIRY_LOCK,)).fetchone()
            if not held or not held[0]:
                return 0
            try:
                return self._delete(connection)
            finally:
                connection.execute("SELECT pg_advisory_unlock(%s)", (EXPIRY_LOCK,))

    def _delete(self, connection: Connection[TupleRow]) -> int:
        remove_old_deletions(connection)
        deleted = self._drain(connection, lambda: connection.execute(_EXPIRED, (BATCH,)).fetchall())
        if self._limits and time.monotonic() >= self._retention_at:
            for limit in self._limits:
                for owners in _owners(connection, limit):
                    deleted += self._drain(connection, lambda: _outlived(connection, limit, owners))  # noqa: B023 - run at once
            self._retention_at = time.monotonic() + self._retention_interval_s
        if deleted:
            log.info("memories_expired", memories=deleted)
        return deleted

    def _drain(self, connection: Connection[TupleRow], next_batch: Callable[[], list[TupleRow]]) -> int:
        deleted = 0
        while rows := next_batch():
            begun = time.monotonic()
            numbers = [number for (number,) in rows]
            users = [] if self._note is no_notes else connection.execute(_USERS, (numbers,)).fetchall()
            deleted += remove(connection, numbers)
            with suppress(Unavailable):  # no request waits for it, and the batch is gone
                self._note([user for (user,) in users])
            self._pause(time.monotonic() - begun)
        return deleted


class ExpiryThread(PeriodicThread):
    """Runs an `Expiry` until it is stopped; a batch that is being deleted then is committed or not.

    Args:
        count: called with the number of memories that were deleted.
        count_failure: called where a pass failed, other than by a database that does not answer.
        interval_s: between two passes.
    """

    def __init__(
        self,
        expiry: Expiry,
        count: Callable[[int], None],
        count_failure: Callable[[], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        super().__init__("expiry", self._expire, "expiry_failed", count_failure, interval_s)
        self._expiry = expiry
        self._count = count

    def _expire(self) -> None:
        if deleted := self._expiry.run_once():
            self._count(deleted)


def _limits(rules: Sequence[RetentionRule]) -> list[_Limit]:
    named = sorted({rule.agent for rule in rules if rule.agent is not None})
    groups = [([encode_agent_id(agent)], False, agent) for agent in named]
    limits = []
    for agents, others, agent in [*groups, ([encode_agent_id(agent) for agent in named], True, None)]:
        user, ai = (days_kept(rules, agent, source) for source in ("user", "ai"))
        if user == ai:
            limits += [] if user is None else [_Limit(agents, others, None, user)]
        else:
            by_source = (("user", user), ("ai", ai))
            limits += [_Limit(agents, others, source, days) for source, days in by_source if days is not None]
    return limits


def _owners(connection: Connection[TupleRow], limit: _Limit) -> Iterator[list[int]]:
    """The numbers of the owners that a limit is about, in pages; facts go with the messages that they were found in."""
    after = -1
    of_agent = "agent_id <> ALL(%s)" if limit.others else "agent_id = ANY(%s)"
    while page := connection.execute(
        f"SELECT number FROM users WHERE number > %s AND kind = 'message' AND {of_agent} ORDER BY number LIMIT %s",  # noqa: S608 - constants
        (after, limit.agents, OWNERS),
    ).fetchall():
        yield [number for (number,) in page]
        after = page[-1][0]


def _outlived(connection: Connection[TupleRow], limit: _Limit, owners: list[int]) -> list[TupleRow]:
    return connection.execute(
        "SELECT number FROM memories WHERE user_number = ANY(%s) AND said_at < now() - %s * interval '1 day'"
        " AND (%s::text IS NULL OR source = %s) LIMIT %s",
        (owners, limit.days, limit.source, limit.source, BATCH),
    ).fetchall()
