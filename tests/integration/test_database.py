"""A PostgreSQL that restarts, refuses or runs full: the errors that callers get, and the log events."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import LiteralString

import psycopg
import pytest
from keepsake_client.errors import Unavailable
from psycopg_pool import ConnectionPool
from structlog.testing import capture_logs

from services.long_term_memory.postgres.pool import CONNECTION_TIMEOUT_S, database_errors, open_pool, quiet
from tests.integration.postgres_server import PostgresServer, postgres_server
from tests.support import wait_until


@pytest.fixture(scope="module")
def running() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def server(running: PostgresServer) -> Iterator[PostgresServer]:
    """A server that runs again after the test."""
    yield running
    if running._process is None:
        running.start()


@pytest.fixture
def pool(server: PostgresServer) -> Iterator[ConnectionPool]:
    with open_pool(server.url, 3) as pool:
        yield pool


def ask(pool: ConnectionPool) -> int:
    """What the database answers to `SELECT 1`."""
    with database_errors(), pool.connection() as connection:
        row = connection.execute("SELECT 1").fetchone()
    assert row is not None
    return int(row[0])


def fill(pool: ConnectionPool) -> None:
    """Open all connections that the pool may have."""
    all_held = threading.Barrier(pool.max_size)

    def hold() -> None:
        with pool.connection() as connection:
            connection.execute("SELECT 1")
            all_held.wait(60)

    with ThreadPoolExecutor(pool.max_size) as threads:
        for each in [threads.submit(hold) for _ in range(pool.max_size)]:
            each.result()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_restart_fails_no_request(server: PostgresServer, pool: ConnectionPool, number: signal.Signals) -> None:
    """Given a pool full of connections to a server that was restarted, I expect every request after that answered."""
    fill(pool)
    server.stop(number)
    server.start()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: ask(pool), range(12))) == [1] * 12


def test_a_connection_without_input_is_taken_without_a_round_trip(pool: ConnectionPool) -> None:
    """Given a live connection, I expect it taken without a statement that checks it."""
    with pool.connection() as connection:
        assert quiet(connection)


def test_a_connection_that_the_server_has_closed_is_detected(pool: ConnectionPool) -> None:
    """Given a connection that the server has ended, I expect a poll of its socket to detect it."""
    with pool.connection() as connection, pool.connection() as another:
        row = another.execute("SELECT pg_terminate_backend(%s, 20000)", (connection.info.backend_pid,)).fetchone()
        assert row == (True,)

        assert not quiet(connection)


def test_an_unreachable_server_is_reported_in_time(server: PostgresServer, pool: ConnectionPool) -> None:
    """Given no server, I expect `Unavailable`, sooner than a search is interrupted."""
    server.stop()

    with pytest.raises(Unavailable):
        ask(pool)
    assert CONNECTION_TIMEOUT_S < 5


def test_a_server_that_was_down_for_long_is_found_soon(server: PostgresServer, pool: ConnectionPool) -> None:
    """Given a server that was down until the pool gave up reconnecting, I expect the next requests to find it again."""
    given_up = threading.Event()
    reconnect_failed = pool._reconnect_failed
    assert reconnect_failed is not None
    pool._reconnect_failed = lambda pool: (reconnect_failed(pool), given_up.set())  # type: ignore[assignment, func-returns-value]
    server.stop()
    with pytest.raises(Unavailable):
        ask(pool)
    assert given_up.wait(60)
    server.start()

    wait_until(lambda: answers(pool), description="an answer")


def answers(pool: ConnectionPool) -> bool:
    try:
        return ask(pool) == 1
    except Unavailable:
        return False


def test_an_outage_is_one_event_at_its_start_and_one_at_its_end(server: PostgresServer, pool: ConnectionPool) -> None:
    """Given a server that is down for several attempts, I expect one event when it went down and one when it is up."""
    with capture_logs() as lines:
        server.stop()
        for _ in range(2):
            with pytest.raises(Unavailable):
                ask(pool)
        server.start()
        wait_until(lambda: answers(pool), description="an answer")

    assert [(line["event"], line["dependency"]) for line in lines] == [
        ("dependency_down", "postgres"),
        ("dependency_up", "postgres"),
    ]


def test_the_pool_itself_warns_at_every_attempt(server: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    """Given the pool's own logger, I expect only warnings that repeat Keepsake's two events: the workers drop them."""
    with caplog.at_level(logging.INFO, "psycopg.pool"), open_pool(server.url, 2) as pool:
        server.stop()
        with pytest.raises(Unavailable):
            ask(pool)

    assert {record.levelname for record in caplog.records if record.name == "psycopg.pool"} == {"INFO", "WARNING"}


def raise_in_a_block(error: Exception) -> None:
    with database_errors():
        raise error


HEALS = [
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.DiskFull,
    psycopg.errors.OutOfMemory,
    psycopg.errors.TooManyConnections,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.QueryCanceled,
    psycopg.errors.CannotConnectNow,
    psycopg.errors.AdminShutdown,
    psycopg.errors.CrashShutdown,
    psycopg.errors.IoError,
    psycopg.OperationalError,
]
STAYS = [
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.UniqueViolation,
    psycopg.errors.NumericValueOutOfRange,
    psycopg.errors.UndefinedTable,
    psycopg.errors.InsufficientPrivilege,
    psycopg.DataError,
]


@pytest.mark.parametrize("error", HEALS)
def test_a_transient_error_becomes_unavailable(error: type[Exception]) -> None:
    """Given an error that a later try may not meet, I expect the one that is retried."""
    with pytest.raises(Unavailable):
        raise_in_a_block(error("no"))


@pytest.mark.parametrize("error", STAYS)
def test_a_permanent_error_is_unchanged(error: type[Exception]) -> None:
    """Given an error that every later try would meet, I expect it as it is: it is not retried."""
    with pytest.raises(error):
        raise_in_a_block(error("no"))


def run(pool: ConnectionPool, *statements: LiteralString) -> None:
    with database_errors(), pool.connection() as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_read_only_database_is_unavailable(pool: ConnectionPool) -> None:
    """Given a session that may not write, as after a failover, I expect `Unavailable` in PostgreSQL's words."""
    with pytest.raises(Unavailable, match="read-only transaction"):
        run(pool, "SET default_transaction_read_only = on", "CREATE TABLE t ()")


def test_a_statement_that_takes_too_long_is_unavailable(pool: ConnectionPool) -> None:
    """Given a statement past its time, I expect `Unavailable`: it may have waited for a busy moment."""
    with pytest.raises(Unavailable, match="statement timeout"):
        run(pool, "SET statement_timeout = 10", "SELECT pg_sleep(20)")
