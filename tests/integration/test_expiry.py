"""Expiry: what is over goes, in small batches, by one process at a time, and a backfill does not bring it back."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import AddData, MemoryUpdateMessage
from psycopg_pool import ConnectionPool

from services.long_term_memory.expiry import BATCH, EXPIRY_LOCK, Expiry, ExpiryThread
from services.long_term_memory.memory_service import MemoryService
from services.runtime.retention import parse_retention
from tests.support import wait_until

DAY_S = 86_400


def said(content: str, days_ago: float, **fields: Any) -> MemoryUpdateMessage:
    event = {"user_id": "u", "source": "user", "timestamp": time.time() - days_ago * DAY_S}
    return MemoryUpdateMessage.model_validate({**event, "content": content, **fields})


def contents(pool: ConnectionPool) -> list[str]:
    with pool.connection() as connection:
        return [row[0] for row in connection.execute("SELECT content FROM memories ORDER BY content").fetchall()]


def test_what_has_its_own_time_goes_when_that_is_over(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given memories with ttl_days, of events and of an `add`, I expect those to be deleted whose time is over, with
    their history, and the same events to stay deleted."""
    over = said("over", 3, ttl_days=2, message_id="m1")
    memories.index_many([over, said("not over", 3, ttl_days=4), said("for ever", 300), said("b", 3, user_id="ben")])
    memories.add("u", AddData(content="added", ttl_days=1), "r1", time.time() - 2 * DAY_S)

    assert Expiry(pool).run_once() == 2
    assert Expiry(pool).run_once() == 0

    assert contents(pool) == ["b", "for ever", "not over"]
    with pool.connection() as connection:
        assert connection.execute("SELECT count(*) FROM memory_history").fetchone() == (3,)
    assert memories.index(over, time.time()).deleted
    assert memories.add("u", AddData(content="added", ttl_days=1), "r1", time.time() - 2 * DAY_S) == []


def test_retention_by_source_and_character(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given rules, I expect memories of each source and character to be kept for as long as their rule says."""
    events = []
    for agent in (None, "luna", "no va"):
        for source in ("user", "ai"):
            for days in (5, 50, 500):
                name = f"{agent or 'shared'} {source} {days}"
                events.append(said(name, days, source=source, agent_id=agent, user_id=f"user of {name}"))
    memories.index_many(events)

    rules = parse_retention("365, ai=30, @luna=never, @luna/ai=2, @no%20va=10")
    assert Expiry(pool, rules).run_once() == 1 + 2 + 0 + 3 + 2 + 2

    assert contents(pool) == [
        "luna user 5",
        "luna user 50",
        "luna user 500",
        "no va ai 5",
        "no va user 5",
        "shared ai 5",
        "shared user 5",
        "shared user 50",
    ]


def test_nothing_fades_by_itself(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given no rules, I expect memories of any age to stay."""
    memories.index_many([said("old", 9_000)])

    assert Expiry(pool).run_once() == 0
    assert contents(pool) == ["old"]


def test_it_is_done_in_batches_with_pauses(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given more than fits one batch, I expect several, with a pause as long as each took."""
    memories.index_many([said(f"n{n}", 3, ttl_days=1) for n in range(2 * BATCH + 1)])
    pauses: list[float] = []

    assert Expiry(pool, pause=pauses.append).run_once() == 2 * BATCH + 1
    assert len(pauses) == 3
    assert min(pauses) > 0


def test_one_process_at_a_time(memories: MemoryService, pool: ConnectionPool, database: str) -> None:
    """Given another process that does it, I expect this one to leave it to it; and to do it once the other is done."""
    memories.index_many([said("over", 3, ttl_days=1)])
    with psycopg.connect(database) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (EXPIRY_LOCK,))
        assert Expiry(pool).run_once() == 0
        assert contents(pool) == ["over"]
        other.execute("SELECT pg_advisory_unlock(%s)", (EXPIRY_LOCK,))  # the server ends a connection when it likes
    assert Expiry(pool).run_once() == 1


def test_retention_is_looked_at_now_and_then(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given a pass, I expect the next ones not to look through all owners again before its interval is over."""
    expiry = Expiry(pool, parse_retention("10"))
    expiry.run_once()
    memories.index_many([said("old", 20), said("over", 3, ttl_days=1)])

    assert expiry.run_once() == 1
    assert contents(pool) == ["old"]
    assert Expiry(pool, parse_retention("10"), retention_interval_s=0).run_once() == 1


def test_old_deletions_are_purged(pool: ConnectionPool) -> None:
    """Given deletions, I expect those of more than 8 days ago to go, and that of a forgotten user to stay."""
    with pool.connection() as connection:
        connection.execute(
            "INSERT INTO deletions (user_digest, contains, everything, deleted_at) VALUES"
            " ('a', '{x,y,old}', false, now() - interval '8 days 1 minute'),"
            " ('a', NULL, false, now() - interval '8 days 1 minute'),"
            " ('b', '{x,y,young}', false, now() - interval '7 days 23 hours'),"
            " ('c', NULL, true, now() - interval '900 days')"
        )
        Expiry(pool).run_once()
        left = connection.execute("SELECT convert_from(user_digest, 'UTF8') FROM deletions ORDER BY 1").fetchall()
    assert left == [("b",), ("c",)]


class Faltering:
    """An `Expiry` that fails in two ways, then deletes something."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = [Unavailable("down"), KeyError("x"), 0, 7]
        self.done = threading.Event()

    def run_once(self) -> int:
        if not self.outcomes:
            self.done.set()
            return 0
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return int(outcome)


def test_the_thread_outlives_failures_and_counts() -> None:
    """Given passes that fail, I expect the thread to go on, to count what the others delete, and to end when told."""
    expiry, counts, failures = Faltering(), list[int](), list[bool]()
    thread = ExpiryThread(
        expiry,  # type: ignore[arg-type]  # duck-typed
        counts.append,
        lambda: failures.append(True),
        interval_s=0.001,
    )
    thread.start()
    wait_until(expiry.done.is_set, description="all passes")
    thread.stop()
    thread.join(60)

    assert not thread.is_alive()
    assert thread not in threading.enumerate()  # it has ended as threads do: nothing of theirs is overridden
    assert counts == [7]
    assert failures == [True]  # not of the database that was down


@pytest.mark.parametrize("rules", ["", "1"])
def test_a_pass_without_anything_to_do(pool: ConnectionPool, rules: str) -> None:
    """Given an empty database, I expect a pass to end."""
    assert Expiry(pool, parse_retention(rules)).run_once() == 0
