"""Lower bounds and baselines of the round trip, measured in this process: bare Redis, Keepsake's search, Mem0's search.

`bench.latency.roundtrip` runs them; this module has no command of its own.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psycopg
import redis
from keepsake_client.protocol import MemoryUpdateMessage, SearchData
from mem0.embeddings.base import EmbeddingBase
from mem0.memory.storage import SQLiteManager
from mem0.vector_stores.pgvector import PGVector
from psycopg_pool import ConnectionPool

from bench.harness.statistics import timed
from bench.harness.tables import track
from bench.harness.workload import user_id
from bench.latency.embedders import CachingEmbedder
from services.long_term_memory.factory import LongTermMemory
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.store import MemoryStore

#: Mem0's own table, in the same database.
TABLE = "bench_mem0_as_shipped"
DIMENSIONS_PROBE = "How long is a vector?"


@contextmanager
def mem0_as_shipped(database_url: str, embedder: EmbeddingBase) -> Iterator[Mem0Memory]:
    """Mem0's `Memory` on its own pgvector store with its defaults: an HNSW index, a connection pool of its own."""
    dimensions = len(embedder.embed(DIMENSIONS_PROBE, "search"))
    with ConnectionPool(database_url, min_size=1, max_size=5) as pool:
        store = PGVector(None, TABLE, dimensions, None, None, None, None, False, True, connection_pool=pool)
        yield Mem0Memory(embedder, store, SQLiteManager(":memory:"), None)


@contextmanager
def scratch_table(database_url: str) -> Iterator[None]:
    """Context manager for Mem0's table: dropped before the block, where an earlier run left one, and after it."""
    drop = f"DROP TABLE IF EXISTS {TABLE}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(drop)
        try:
            yield
        finally:
            connection.execute(drop)


def fill(ltm: LongTermMemory, database_url: str, updates: Sequence[MemoryUpdateMessage]) -> None:
    """Store the same memories in Keepsake's table and in Mem0's, then vacuum as autovacuum would in time."""
    embedder = CachingEmbedder(ltm.embedder)
    store = MemoryStore(ltm.pool)
    memories = MemoryService(Mem0Memory(embedder, store, PostgresHistory(ltm.pool), None), store)
    for begin in track(range(0, len(updates), 50), "filling Keepsake's table"):
        memories.index_many(updates[begin : begin + 50])
    with mem0_as_shipped(database_url, embedder) as mem0:
        for update in track(updates, "filling Mem0's table"):
            add(mem0, update)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE memories")
        connection.execute(f"VACUUM ANALYZE {TABLE}")


def add(mem0: Mem0Memory, update: MemoryUpdateMessage) -> None:
    """Store a message with Mem0, word for word."""
    role = "assistant" if update.source == "ai" else "user"
    mem0.add(
        [{"role": role, "content": update.content}],
        user_id=update.user_id,
        metadata={"timestamp": update.timestamp, "source": update.source},
        infer=False,
    )


def bare_redis(redis_url: str, times: int) -> list[float]:
    """Milliseconds of LPUSH -> BRPOP -> PUBLISH in one process, one at a time with pauses of 20 ms."""
    requests, responses = (f"bench:{uuid.uuid4()}" for _ in range(2))
    done = threading.Event()

    def serve() -> None:
        with redis.Redis.from_url(redis_url) as client:
            while not done.is_set():
                if taken := client.brpop([requests], timeout=1):
                    client.publish(responses, json.dumps({"request_id": json.loads(taken[1])["request_id"]}))

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    took = []
    with redis.Redis.from_url(redis_url) as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(responses)
        pubsub.get_message(timeout=1)
        for number in track(range(times), "bare Redis"):
            begun = time.perf_counter()
            client.lpush(requests, json.dumps({"request_id": number}))
            while pubsub.get_message(timeout=1) is None:
                pass
            took.append((time.perf_counter() - begun) * 1000)
            time.sleep(0.02)
    done.set()
    server.join()
    return took[1:]  # the first one also connects


def keepsake_search(ltm: LongTermMemory, queries: Sequence[tuple[int, str]]) -> list[float]:
    """Milliseconds of `MemoryService.search` called in this process, for each (user, query)."""
    return _each(queries, lambda user, query: ltm.memories.search(user, SearchData(query=query)))


def mem0_search(mem0: Mem0Memory, queries: Sequence[tuple[int, str]]) -> list[float]:
    """Milliseconds of Mem0's own `Memory.search`."""
    return _each(queries, lambda user, query: mem0.search(query, filters={"user_id": user}, top_k=5))


def _each(queries: Sequence[tuple[int, str]], search: Callable[[str, str], object]) -> list[float]:
    return [timed(lambda: search(user_id(user), query))[1] for user, query in queries]  # noqa: B023 - called at once
