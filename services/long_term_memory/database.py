"""PostgreSQL: the connection pool, whether it answers, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from services.errors import Unavailable

#: Longer than any statement of ours takes on a healthy server; a stuck one must not hold its worker for ever.
STATEMENT_TIMEOUT_MS = 30_000


def reachable(database_url: str, timeout_s: float = 2.0) -> bool:
    """Whether the database answers `SELECT 1`."""
    try:
        with psycopg.connect(database_url, connect_timeout=max(1, round(timeout_s)), autocommit=True) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def open_pool(database_url: str, size: int) -> ConnectionPool:
    """A pool of up to `size` connections, open and with its first connection made.

    Raises:
        Unavailable: no connection could be made within 5 s.
    """
    pool = ConnectionPool(
        database_url,
        min_size=1,
        max_size=size,
        timeout=5,
        open=False,
        kwargs={
            "autocommit": True,  # a search is statements that each stand alone; BEGIN and COMMIT would double its hops
            "application_name": "keepsake",
            "connect_timeout": 3,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
        },
    )
    try:
        pool.open(wait=True, timeout=5)
    except PoolTimeout:
        pool.close()
        raise Unavailable("PostgreSQL does not answer") from None
    return pool


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn a database that is away, or refuses to write, into `Unavailable`: asking again may help."""
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable("PostgreSQL does not answer") from error
    except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction) as error:
        raise Unavailable(f"PostgreSQL: {error.diag.message_primary or 'the connection broke'}") from error
