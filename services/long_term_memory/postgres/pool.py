"""The connection pool of PostgreSQL, availability checks, and the translation of its errors."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import psycopg
from keepsake_client.errors import Unavailable
from psycopg import Connection
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from services.runtime.availability import Availability
from services.runtime.errors import CannotStart
from services.runtime.settings import mask_url

#: Longer than any statement takes on a healthy server; one that hangs must not occupy its worker for ever.
STATEMENT_TIMEOUT_MS = 10_000
#: A connection whose server has not even said that by then is half-open.
ANSWER_TIMEOUT_S = 12.0
#: How long a request waits for a connection: shorter than the time limit of a search, so that an unreachable database
#: is reported as such.
CONNECTION_TIMEOUT_S = 4.0
#: The pool backs off exponentially between its attempts to reconnect until this time is over, and begins anew with the
#: next request: with a short time, a server that is back after a minute is found within a second or two.
RECONNECT_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 3
#: By which `ltm reembed` recognizes the connections of running workers, and ends them; and `ltm partition` those of
#: earlier releases, which do not know its table.
APPLICATION_NAME = "keepsake-worker"
EARLIER_APPLICATION_NAME = "keepsake"
#: The key of the advisory lock that a migrating process holds, the same in every release: "keepsake" in ASCII.
MIGRATION_LOCK = 0x6B656570_73616B65

#: `prepare` of the statements of every search and insertion: psycopg prepares others the sixth time, and until then
#: PostgreSQL plans them each time, for all partitions.
PREPARED = True

#: In the words of PostgreSQL: it is full, or stops in this moment.
_MAY_PASS = ("too many", "slots", "starting up", "shutting down", "recovery")
#: In the words of libpq.
_TLS_FAILS = ("certificate", "does not support SSL")

#: How often a wait looks for signals; psycopg's own default.
WAIT_INTERVAL_S = 0.1

T = TypeVar("T")

CONNECTION_OPTIONS: dict[str, Any] = {
    "autocommit": True,  # a search's statements are independent; BEGIN and COMMIT would double its round trips
    "application_name": APPLICATION_NAME,
    "connect_timeout": CONNECT_TIMEOUT_S,
    # For a host that disappears without closing; otherwise the kernel waits for a quarter of an hour, and without
    # keepalives for ever for an answer.
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
}


class AnsweredConnection(psycopg.Connection[TupleRow]):
    """A connection that waits for an answer for a limited time.

    Where a proxy or a load balancer has lost the server, the kernel takes the connection for a good one.
    """

    #: How long it waits for an answer; None waits for ever.
    answer_timeout_s: float | None = ANSWER_TIMEOUT_S
    #: Whether `memories` is partitioned, so that a condition on the user's hash leaves one partition. Without it a
    #: statement finds the same; with it the index of a table that is not partitioned does not answer alone.
    partitioned: bool = False
    #: Called when there was none, and the connection is closed.
    on_half_open: Callable[[], None] = staticmethod(lambda: None)

    def wait(self, gen: PQGen[T], interval: float = WAIT_INTERVAL_S, timeout: float | None = None) -> T:
        began = time.monotonic()
        try:
            return super().wait(gen, interval, self.answer_timeout_s if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.answer_timeout_s is not None and time.monotonic() - began >= self.answer_timeout_s:
                self.close()  # what it is sent late would be taken for the answer to the next statement
                self.on_half_open()
            raise


def note_layout(connection: psycopg.Connection[TupleRow]) -> None:
    """Note on a connection of the pool whether `memories` is partitioned, and have its statements planned for that.

    A generic plan leaves out partitions as it starts. PostgreSQL would not choose it, as it looks expensive with all of
    them, and plan every search anew, which takes longer than the search.
    """
    row = connection.execute("SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass('memories')").fetchone()
    answered = cast(AnsweredConnection, connection)
    answered.partitioned = row == (True,)
    if answered.partitioned:
        connection.execute("SET plan_cache_mode = force_generic_plan")


def is_partitioned(connection: psycopg.Connection[TupleRow]) -> bool:
    """Whether `memories` was partitioned when the connection was made."""
    return isinstance(connection, AnsweredConnection) and connection.partitioned


@contextmanager
def unlimited(connection: psycopg.Connection[TupleRow]) -> Iterator[None]:
    """Have a connection of the pool wait for ever within the block."""
    answered = cast(AnsweredConnection, connection)
    limit, answered.answer_timeout_s = answered.answer_timeout_s, None
    try:
        yield
    finally:
        answered.answer_timeout_s = limit


def reachable(database_url: str, timeout_s: float = 2.0) -> bool:
    """Whether the database answers `SELECT 1`."""
    try:
        with psycopg.connect(database_url, connect_timeout=max(1, round(timeout_s)), autocommit=True) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def migrating(database_url: str) -> bool:
    """Whether a process is migrating the schema right now; False where the database does not answer."""
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


@contextmanager
def migration_lock(connection: Connection[TupleRow]) -> Iterator[None]:
    """Hold the lock of a migrating process for the block, over several transactions; the others wait for it."""
    with connection.transaction():
        # The pool's connections end a statement after 10 s, and another process may migrate a million memories.
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
    try:
        yield
    finally:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_unlock(%s)", (MIGRATION_LOCK,))


def open_pool(
    database_url: str,
    size: int,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
    guard: Callable[[psycopg.Connection[TupleRow]], None] = lambda _: None,
) -> ConnectionPool:
    """An open connection pool, with its first connection made.

    Args:
        size: how many connections at most.
        answer_timeout_s: how long a connection waits for an answer.
        guard: called with each new connection, which is not used where it raises.

    Raises:
        CannotStart: PostgreSQL refuses the connection for good.
        Unavailable: no connection could be made within 5 s.
    """
    availability = Availability("postgres", up=False)

    def check(connection: psycopg.Connection[Any]) -> None:
        if quiet(connection):
            return
        try:
            ConnectionPool.check_connection(connection)
        except psycopg.Error:
            # Finds the other broken connections now, with one round trip each, instead of one request after another.
            pool.check()
            raise

    def configure(connection: AnsweredConnection) -> None:
        connection.answer_timeout_s = answer_timeout_s
        connection.on_half_open = replace_all
        guard(connection)
        note_layout(connection)
        availability.up()

    def replace_all() -> None:
        availability.down(f"no answer for {answer_timeout_s:g} s")
        pool.drain()  # the others are half-open too

    pool: ConnectionPool[AnsweredConnection] = ConnectionPool(
        database_url,
        connection_class=AnsweredConnection,
        min_size=1,
        max_size=size,
        timeout=CONNECTION_TIMEOUT_S,
        open=False,
        check=check,
        configure=configure,
        reconnect_timeout=RECONNECT_TIMEOUT_S,
        reconnect_failed=lambda _: availability.down("no connection"),
        kwargs=CONNECTION_OPTIONS,
    )
    check_connects(database_url)
    try:
        pool.open(wait=True, timeout=5)
    except PoolTimeout:
        pool.close()
        raise Unavailable("PostgreSQL does not answer") from None
    return cast(ConnectionPool, pool)


def check_connects(database_url: str) -> None:
    """Connect once: a pool repeats what no repetition changes, and does not report why it fails.

    Raises:
        CannotStart: PostgreSQL refuses the connection for good, as with a wrong password.
        Unavailable: it does not answer yet.
    """
    reason = _failure(database_url)
    if reason and _accepts(database_url):
        reason = _failure(database_url)  # it may just have become ready; what fails now is refused
        refused = reason and not any(word in reason for word in _MAY_PASS)
    else:
        refused = reason and any(word in reason for word in _TLS_FAILS)
    named = f"DATABASE_URL is {mask_url(database_url)!r}"
    if refused:
        raise CannotStart(f"{named}, and PostgreSQL refuses it: {reason}; correct user, password and database there")
    if reason:
        raise Unavailable(f"{named}, and PostgreSQL does not answer there: {reason}")


def _failure(database_url: str) -> str:
    """The first line of the error that a connection fails with; empty where it does not fail."""
    try:
        psycopg.connect(database_url, connect_timeout=CONNECT_TIMEOUT_S).close()
    except psycopg.Error as error:
        # libpq's messages contain no password, and the settings refuse one that it would parse as something else.
        return mask_url(str(error).strip().partition("\n")[0])
    return ""


def _accepts(database_url: str) -> bool:
    """Whether the server accepts connections, with any credentials; True too for a URL that libpq cannot read."""
    # An error of a connection that was refused has no SQLSTATE.
    try:
        conninfo = make_conninfo(database_url, connect_timeout=CONNECT_TIMEOUT_S)
    except psycopg.ProgrammingError:  # an option that there is not
        return True
    ping = psycopg.pq.PGconn.ping(conninfo.encode())
    return ping in {psycopg.pq.Ping.OK, psycopg.pq.Ping.NO_ATTEMPT}


def quiet(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has sent nothing since its last answer; an unsolicited message is mostly that it shuts down.

    Polling the socket finds the connections that a restarted server has left in the pool, without a round trip.
    """
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return not poll.poll(0)


@contextmanager
def database_errors() -> Iterator[None]:
    """Raise `Unavailable` for transient errors: a database that is unreachable, busy, full or read-only."""
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable("PostgreSQL does not answer") from error
    except psycopg.errors.ProgramLimitExceeded:
        # An OperationalError like the others, but not transient: the row stays too large.
        raise
    except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction) as error:
        # The former are lost and refused connections, shutdowns, locks, deadlocks, timeouts, a full disk or memory.
        raise Unavailable(f"PostgreSQL: {error.diag.message_primary or 'the connection broke'}") from error
