"""What the round trip is measured against, each in this process: bare Redis, our search, and Mem0's own."""

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

from bench.harness.common import timed, track
from bench.harness.stack import Remembering, user_id
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
    """Mem0's `Memory` on its own pgvector store, as its defaults make it: an HNSW index, a pool of its own."""
    dimensions = len(embedder.embed(DIMENSIONS_PROBE, "search"))
    with ConnectionPool(database_url, min_size=1, max_size=5) as pool:
        store = PGVector(None, TABLE, dimensions, None, None, None, None, False, True, connection_pool=pool)
        yield Mem0Memory(embedder, store, SQLiteManager(":memory:"), None)


@contextmanager
def scratch_table(database_url: str) -> Iterator[None]:
    """Mem0's table, gone afterwards; a leftover goes first."""
    drop = f"DROP TABLE IF EXISTS {TABLE}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(drop)
        try:
            yield
        finally:
            connection.execute(drop)


def fill(ltm: LongTermMemory, database_url: str, updates: Sequence[MemoryUpdateMessage]) -> None:
    """Keep the same memories in our table and in Mem0's, and let PostgreSQL tidy up as it would by itself in time."""
    embedder = Remembering(ltm.embedder)
    store = MemoryStore(ltm.pool)
    ours = MemoryService(Mem0Memory(embedder, store, PostgresHistory(ltm.pool), None), store)
    for begin in track(range(0, len(updates), 50), "filling our table"):
        ours.index_many(updates[begin : begin + 50])
    with mem0_as_shipped(database_url, embedder) as mem0:
        for update in track(updates, "filling Mem0's table"):
            add(mem0, update)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE memories")
        connection.execute(f"VACUUM ANALYZE {TABLE}")


def add(mem0: Mem0Memory, update: MemoryUpdateMessage) -> None:
    """Keep a message with Mem0 as it was said."""
    role = "assistant" if update.source == "ai" else "user"
    mem0.add(
        [{"role": role, "content": update.content}],
        user_id=update.user_id,
        metadata={"timestamp": update.timestamp, "source": update.source},
        infer=False,
    )


def bare_redis(redis_url: str, times: int) -> list[float]:
    """Milliseconds of LPUSH -> BRPOP -> PUBLISH in one process, at ten a second or less."""
    names = [f"bench:{uuid.uuid4()}" for _ in range(2)]
    requests, responses = names
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


def our_search(ltm: LongTermMemory, asked: Sequence[tuple[int, str]]) -> list[float]:
    """Milliseconds of `MemoryService.search` called in this process, for (user, query) each."""
    return _each(asked, lambda user, query: ltm.memories.search(user, SearchData(query=query)))


def mem0_search(mem0: Mem0Memory, asked: Sequence[tuple[int, str]]) -> list[float]:
    """Milliseconds of Mem0's own `Memory.search`."""
    return _each(asked, lambda user, query: mem0.search(query, filters={"user_id": user}, top_k=5))


def _each(asked: Sequence[tuple[int, str]], search: Callable[[str, str], object]) -> list[float]:
    return [timed(lambda: search(user_id(user), query))[1] for user, query in asked]  # noqa: B023 - called at once
