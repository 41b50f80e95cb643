"""A PostgreSQL on a full disk: writes raise Unavailable, stored memories stay, and free space is enough to recover."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import MemoryUpdateMessage, SearchData
from psycopg_pool import ConnectionPool

from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.store import MemoryStore
from tests.integration.conftest import DIMENSIONS, WordEmbedder
from tests.integration.postgres_server import postgres_server
from tests.support import wait_until

#: A new cluster takes some 60 MB of it.
DISK = "120m"
MEGABYTE = 2**20


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small file system of this test's own."""
    with tempfile.TemporaryDirectory(prefix="ltm-disk-") as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0755", "tmpfs", name]
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


@pytest.fixture
def pool(disk: Path) -> Iterator[ConnectionPool]:
    """Connections to a migrated database on that disk."""
    with postgres_server(disk) as server, open_pool(server.url, 2) as pool:
        with pool.connection() as connection:
            migrate(connection, DIMENSIONS)
        yield pool


def said(number: int) -> MemoryUpdateMessage:
    return MemoryUpdateMessage(
        user_id="u1", content=f"I like tea {number}", source="user", timestamp=1.0, message_id=f"m{number}"
    )


def index_until_refused(memories: MemoryService) -> tuple[int, str]:
    """Index one message after the other: the number of the first that is refused, and why."""
    number = 0
    while True:
        number += 1
        try:
            memories.index(said(number))
        except Unavailable as error:
            return number, str(error)


def test_a_full_disk_is_unavailable_and_loses_nothing(disk: Path, pool: ConnectionPool) -> None:
    """Given a disk without room, I expect `Unavailable`, stored memories found, and the rest stored later."""
    store = MemoryStore(pool)
    memories = MemoryService(Mem0Memory(WordEmbedder(), store, PostgresHistory(pool), None), store)
    memories.index(said(0))
    ballast, free = disk / "ballast", os.statvfs(disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - MEGABYTE))

    refused, reason = index_until_refused(memories)

    assert "No space left on device" in reason
    assert len(memories.search("u1", SearchData(query="tea", limit=5, min_score=0.0))) == 5

    def takes_it() -> bool:
        try:
            return bool(memories.index(said(refused)))
        except Unavailable:
            return False

    ballast.unlink()
    wait_until(takes_it, description="room to be used")
    with pool.connection() as connection:
        (row,) = connection.execute("SELECT count(*), count(DISTINCT content) FROM memories").fetchall()
    assert row == (refused + 1, refused + 1)
