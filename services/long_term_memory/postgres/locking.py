"""Locks of whole tables, waited for briefly and asked for again, so that what waits behind them is not kept waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from psycopg import Connection, errors, sql
from psycopg.rows import TupleRow

#: How long a transaction waits for each lock. PostgreSQL queues them: a search that needs a table waits behind a change
#: of it that waits itself, as for a backup. For two locks it is less in all than the second after which PostgreSQL ends
#: one of two transactions that wait for each other, which may be a worker's.
LOCK_TIMEOUT_MS: Final = 300
#: The pause before they are asked for again.
PAUSE_S: Final = 2.0

T = TypeVar("T")


def pause_for_locks() -> None:
    """Wait until locks are asked for again."""
    time.sleep(PAUSE_S)


@contextmanager
def brief_locks(connection: Connection[TupleRow]) -> Iterator[None]:
    """A transaction that waits briefly for each lock.

    Raises:
        LockNotAvailable, DeadlockDetected: of psycopg: one is not to be had now, and nothing is done.
    """
    with connection.transaction():
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT_MS)))
        yield


def until_locked(
    work: Callable[[], T], waiting: Callable[[], None] = lambda: None, pause: Callable[[], None] = pause_for_locks
) -> T:
    """Do work that needs `brief_locks`, again after a pause as long as one is not to be had.

    Args:
        waiting: called once, before the first pause.
    """
    told = False
    while True:
        try:
            return work()
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            if not told:
                waiting()
                told = True
            pause()
