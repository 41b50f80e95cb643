"""PostgreSQL: the connection pool, whether it answers, and its errors as ours."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from keepsake_client.errors import Unavailable
from psycopg_pool import ConnectionPool, PoolTimeout

from services.runtime.availability import Availability
from services.runtime.settings import mask_url

#: Longer than any statement of ours takes on a healthy server; a stuck one must not hold its worker for ever.
STATEMENT_TIMEOUT_MS = 30_000
#: Shorter than a search may run, so that a database that is away is told as such.
CONNECTION_WITHIN_S = 4.0
#: The pool doubles its pauses between tries until it gives up, and then tries anew as soon as it is asked: given up on
#: early, a server that is back after a minute is found within a second or two.
GIVE_UP_AFTER_S = 2.0
#: The advisory lock of whoever brings the schema up to date. Any number will do as long as every Keepsake takes the
#: same one: "keepsake" in ASCII.
MIGRATION_LOCK = 0x6B656570_73616B65


def reachable(database_url: str, timeout_s: float = 2.0) -> bool:
    """Whether the database answers `SELECT 1`."""
    try:
        with psycopg.connect(database_url, connect_timeout=max(1, round(timeout_s)), autocommit=True) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def migrating(database_url: str) -> bool:
    """Whether somebody brings the schema up to date just now; False of a database that does not answer."""
    held = (
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
        " AND (classid::bigint << 32 | objid::bigint) = %s"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
    )
    try:
        with psycopg.connect(database_url, connect_timeout=2, autocommit=True) as connection:
            row = connection.execute(held, (MIGRATION_LOCK,)).fetchone()
    except psycopg.Error:
        return False
    return bool(row and row[0])


def open_pool(database_url: str, size: int) -> ConnectionPool:
    """A pool of up to `size` connections, open and with its first connection made.

    Raises:
        Unavailable: no connection could be made within 5 s.
    """
    availability = Availability("postgres", up=False)

    def check(connection: psycopg.Connection[Any]) -> None:
        if _quiet(connection):
            return
        try:
            ConnectionPool.check_connection(connection)
        except psycopg.Error:
            # Those that died with it are found now, one round trip each, and not by one request after another.
            pool.check()
            raise

    pool = ConnectionPool(
        database_url,
        min_size=1,
        max_size=size,
        timeout=CONNECTION_WITHIN_S,
        open=False,
        check=check,
        configure=lambda _: availability.up(),
        reconnect_timeout=GIVE_UP_AFTER_S,
        reconnect_failed=lambda _: availability.down("no connection"),
        kwargs={
            "autocommit": True,  # a search is statements that each stand alone; BEGIN and COMMIT would double its hops
            "application_name": "keepsake",
            "connect_timeout": 3,
            # A host that is gone without a word; otherwise the kernel waits for a quarter of an hour.
            "tcp_user_timeout": 10_000,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
        },
    )
    try:
        pool.open(wait=True, timeout=5)
    except PoolTimeout:
        pool.close()
        raise Unavailable(f"PostgreSQL does not answer{_why_not(database_url)}") from None
    return pool


def _why_not(database_url: str) -> str:
    """What a connection fails with, in one line: the pool knows, and keeps it to itself."""
    try:
        psycopg.connect(database_url, connect_timeout=2).close()
    except psycopg.Error as error:
        # libpq never tells a password, and the settings let none pass that it would take for something else.
        return f": {mask_url(str(error).strip().partition(chr(10))[0])}"
    return ""


def _quiet(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has said nothing since the last answer; what it says unasked is mostly that it goes.

    A look at the socket finds the connections that a restarted server has left in the pool, and costs no round trip.
    """
    look = select.poll()
    look.register(connection, select.POLLIN)
    return not look.poll(0)


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn a database that is away, busy, full, or refuses to write, into `Unavailable`: asking again may help."""
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable("PostgreSQL does not answer") from error
    except psycopg.errors.ProgramLimitExceeded:
        # An OperationalError like the others, but this row will be too large tomorrow too.
        raise
    except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction) as error:
        # The first is lost and refused connections, shutdowns, locks, deadlocks, time-outs, a full disk or memory.
        raise Unavailable(f"PostgreSQL: {error.diag.message_primary or 'the connection broke'}") from error
