"""Recall and time of the database part of a search at scale.

`python -m bench.latency.scale --memories N --users M --heavy K [--json PATH]`.

Fills the real table by binary COPY with random clustered unit vectors, users' rows interleaved as they would arrive,
then measures, for a normal user and for one with K memories, recall@10 of the nearest by cosine against brute force and
the time of the database part, of Keepsake's store and of Mem0's own pgvector store with the same vectors. The first of
the measured searches of a heavy user reads on one connection, the others on two.

`--very-heavy V` adds a user with V memories, the turns of whose sessions are similar, as in real sessions, and measures
what a search reads of them at `--exact-limit`, the ranking of the sample included. Past the limit, that is a sample.

`--beside N` fills another database with the same memories in N partitions, 0 for one table, and measures searches and
insertions of both in turns.
"""

from __future__ import annotations

import argparse
import os
import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from keepsake_client.protocol import SearchData
from mem0.vector_stores.pgvector import PGVector
from numpy.typing import NDArray
from psycopg_pool import ConnectionPool

from bench.harness.databases import scratch_database
from bench.harness.statistics import mean, quantile, timed
from bench.harness.tables import show, track, write_json
from services.long_term_memory.postgres.partitioning import PARTITIONS
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.rows import ANALYSIS, TRAITS, memory_rows
from services.long_term_memory.postgres.schema import migrate, table_dimensions
from services.long_term_memory.postgres.scope import Scope
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.candidates import EXACT_LIMIT, CandidateReader
from services.long_term_memory.retrieval.columns import MemoryColumns, hashed, hashed_terms
from services.long_term_memory.retrieval.weights import Weights
from tests.old_schemas import add_users_as_then

DIMENSIONS = 384
CLUSTERS = 1_000
SESSION_TURNS = 25
CONTENT = "I went to the market with Anna yesterday and we bought far too many peaches again."
PAYLOAD = '{"role": "user", "meta": {"session_id": "s"}, "source": "user", "timestamp": 1712345678.5, "created_at": "2024-04-05T19:34:38.500000+00:00", "updated_at": "2024-04-05T19:34:38.500000+00:00", "message_id": "0123456789abcdef0123456789abcdef"}'  # noqa: E501 - one payload as it is stored
SIGNATURE = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
HEAVY_USER = 0
MEM0 = "Mem0 as shipped"
REINDEXED = "heavy, after REINDEX"
#: Queries for each user.
PROBES = 100
#: Mean cosine of two turns of one session in LoCoMo, after the mean of all turns is subtracted.
SESSION_COSINE = 0.17
#: The size of a table with its partitions.
SIZE = (
    "SELECT sum({function}(oid))::bigint FROM pg_class WHERE oid = '{table}'::regclass"
    " OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = '{table}'::regclass)"
)
#: Insertions that are measured, and the memories of each, as an indexer has them.
INSERTIONS, INSERTED = 150, 20
#: Reads the candidates of one user for the vector of a query: (384,) float32.
Read = Callable[[NDArray[np.float32]], MemoryColumns]


def vectors(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Unit vectors around random centres, as texts have topics: (count, DIMENSIONS) float32."""
    centres = rng.standard_normal((CLUSTERS, DIMENSIONS), np.float32)
    found = centres[rng.integers(CLUSTERS, size=count)] + rng.standard_normal((count, DIMENSIONS), np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def with_sessions(points: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """The vectors, in order, as turns of sessions, each with a topic: (n, DIMENSIONS) float32, as `points`."""
    topics = rng.standard_normal((len(points) // SESSION_TURNS + 1, DIMENSIONS)).astype(np.float32)
    topics /= np.linalg.norm(topics, axis=1, keepdims=True)
    of_session = topics[np.arange(len(points)) // SESSION_TURNS]
    found: NDArray[np.float32] = np.sqrt(SESSION_COSINE) * of_session + np.sqrt(1 - SESSION_COSINE) * points
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def _field(value: bytes) -> bytes:
    return struct.pack(">i", len(value)) + value


def _halfvec(vector: NDArray[np.float32]) -> bytes:
    return struct.pack(">HH", DIMENSIONS, 0) + vector.astype(">f2").tobytes()


def _keepsake_rows(
    owners: NDArray[np.int64], points: NDArray[np.float32], hashes: list[bytes], places: dict[int, int]
) -> Iterator[bytes]:
    terms = hashed_terms(CONTENT.split()).tobytes()
    constant = [
        b"user",
        CONTENT.encode(),
        b"\1" + PAYLOAD.encode(),
        terms,
    ]
    for number, owner in enumerate(track(owners.tolist(), "Keepsake's rows")):
        place = places.get(owner, 0)
        places[owner] = place + 1
        fields = [
            os.urandom(16),
            struct.pack(">q", owner + 1),
            *([hashes[owner], struct.pack(">h", ANALYSIS)] if hashes else []),
            struct.pack(">q", hashed(f"s{place // SESSION_TURNS}")),
            struct.pack(">q", 765_000_000_000_000 + 1_000_000 * number),
            *constant,
            # `measure` identifies the memory by its fingerprint.
            np.array((False, 0, 0, len(terms) // 4, 0, number + 1), TRAITS).tobytes(),
            _halfvec(points[number]),
        ]
        yield struct.pack(">h", len(fields)) + b"".join(map(_field, fields))


def _mem0_rows(owners: NDArray[np.int64], points: NDArray[np.float32]) -> Iterator[bytes]:
    for number, owner in enumerate(track(owners.tolist(), "Mem0's rows")):
        payload = f'{{"user_id": "u{owner}", "data": "{CONTENT}", {PAYLOAD[1:]}'
        vector = struct.pack(">HH", DIMENSIONS, 0) + points[number].astype(">f4").tobytes()
        yield struct.pack(">h", 3) + b"".join(map(_field, (os.urandom(16), vector, b"\1" + payload.encode())))


def _copy(connection: psycopg.Connection[Any], into: str, rows: Iterator[bytes]) -> None:
    with connection.cursor() as cursor, cursor.copy(f"COPY {into} FROM STDIN (FORMAT binary)") as copy:
        copy.write(SIGNATURE)
        for row in rows:
            copy.write(row)
        copy.write(struct.pack(">h", -1))


def fill(url: str, owners: NDArray[np.int64], points: NDArray[np.float32], partitions: int = PARTITIONS) -> None:
    """Fill Keepsake's table, then vacuum and analyze it; of an earlier release where it was migrated so far.

    Args:
        owners: (n,) int64, the user of each memory.
        points: (n, DIMENSIONS) float32, their unit vectors.
        partitions: of a new table; 0 for none.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        if table_dimensions(connection) is None:
            migrate(connection, DIMENSIONS, partitions=partitions)
        add_users_as_then(connection, [f"u{number}" for number in range(int(owners.max()) + 1)])
        insert(connection, owners, points, {})
        connection.execute("VACUUM ANALYZE memories")


def insert(
    connection: psycopg.Connection[Any],
    owners: NDArray[np.int64],
    points: NDArray[np.float32],
    places: dict[int, int],
) -> None:
    """Insert memories of users, whom `users` has in the order of their numbers.

    Args:
        owners, points: as for `fill`.
        places: how many each user has already, which is counted on.
    """
    # Of an earlier release's users there are none.
    found = connection.execute("SELECT to_jsonb(users) ->> 'user_hash' FROM users ORDER BY number").fetchall()
    hashes = [struct.pack(">q", int(value)) for (value,) in found if value is not None]
    columns = f"id, user_number{', user_hash, analysis' if hashes else ''}, session, said_at, source, content"
    columns += ", payload, terms, traits, vector"
    _copy(connection, f"memories ({columns})", _keepsake_rows(owners, points, hashes, places))


def fill_mem0(url: str, pool: ConnectionPool, owners: NDArray[np.int64], points: NDArray[np.float32]) -> PGVector:
    """Mem0's own store, filled with the same vectors."""
    mem0 = PGVector(None, "mem0_as_shipped", DIMENSIONS, None, None, None, None, False, True, connection_pool=pool)
    with psycopg.connect(url, autocommit=True) as connection:
        # Its index is built after the rows, which favours it over one row at a time.
        connection.execute("SET maintenance_work_mem = '4GB'")
        connection.execute("SET max_parallel_maintenance_workers = 2")
        connection.execute(
            f"CREATE TABLE mem0_as_shipped (id uuid PRIMARY KEY, vector vector({DIMENSIONS}), payload jsonb)"
        )
        _copy(connection, "mem0_as_shipped (id, vector, payload)", _mem0_rows(owners, points))
        _, ms = timed(
            lambda: connection.execute("CREATE INDEX ON mem0_as_shipped USING hnsw (vector vector_cosine_ops)")
        )
        print(f"Mem0's HNSW index took {ms / 1000:.0f} s to build")
        connection.execute("VACUUM ANALYZE mem0_as_shipped")
    return mem0


def _cosines(rows: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = rows.astype(np.float64)
    cosines: NDArray[np.float64] = exact @ query.astype(np.float64) / np.linalg.norm(exact, axis=1)
    return cosines


def measure(
    reads: dict[str, Read], mem0: PGVector | None, user: int, owners: NDArray[np.int64], points: NDArray[np.float32]
) -> dict[str, dict[str, float]]:
    """Recall and time for one user, by the way of reading, and of Mem0's store.

    Args:
        reads: ways to read the user's candidates, by name.
        owners: (n,) int64, the user of each memory.
        points: (n, DIMENSIONS) float32, their unit vectors.
    """
    own = np.flatnonzero(owners == user)
    rng = np.random.default_rng(user)
    recalls: dict[str, list[float]] = {name: [] for name in (*reads, *([MEM0] if mem0 else []))}
    times: dict[str, list[float]] = {name: [] for name in recalls}
    numbers: dict[str, list[int]] = {name: [] for name in reads}
    queries = []
    for _ in range(PROBES):
        query = points[rng.choice(own)] + 0.5 * rng.standard_normal(DIMENSIONS).astype(np.float32) / np.sqrt(DIMENSIONS)
        query = (query / np.linalg.norm(query)).astype(np.float16).astype(np.float32)
        queries.append((query, set((own[np.argsort(-_cosines(points[own], query))[:10]] + 1).tolist())))
    # All brute force first: its threads and its 150 MB would slow down the next measurement.
    for query, nearest in queries:
        for name, read in reads.items():
            found, ms = timed(lambda: read(query))  # noqa: B023 - called at once
            times[name].append(ms)
            numbers[name].append(len(found))
            best = found.fingerprint[np.argsort(-found.cosine)[:10]]
            recalls[name].append(len(nearest & set(best.tolist())) / len(nearest))
        if mem0 is None:
            continue
        vector: Sequence[float] = query.tolist()
        # Mem0's search takes 60 rows of its store for ten results.
        hits, ms = timed(lambda: mem0.search("", vector, top_k=60, filters={"user_id": f"u{user}"}))  # noqa: B023
        times[MEM0].append(ms)
        similar = sorted(hits, key=lambda hit: -hit.score)[:10]
        wanted = {round(float(points[n - 1] @ query), 4) for n in nearest}
        recalls[MEM0].append(sum(round(hit.score, 4) in wanted for hit in similar) / len(nearest))
    return {
        name: {
            "memories": len(own),
            **({"read": mean(numbers[name])} if name in numbers else {}),
            "recall@10": mean(recalls[name]),
            "ms_median": quantile(times[name], 0.5),
            "ms_p95": quantile(times[name], 0.95),
        }
        for name in recalls
    }


def insertions(stores: dict[str, MemoryStore], users: int, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """The time in which memories are inserted, by the store, in turns."""
    times: dict[str, list[float]] = {name: [] for name in stores}
    for turn in range(INSERTIONS):
        points, owners = vectors(INSERTED, rng), rng.integers(1, users, INSERTED)
        payloads = [{"data": CONTENT, "user_id": f"u{owner}"} for owner in owners]
        rows = memory_rows([str(uuid.uuid4()) for _ in owners], points, payloads)  # type: ignore[arg-type]
        # The first of a turn finds colder caches.
        for name, store in list(stores.items())[:: 1 if turn % 2 else -1]:
            _, ms = timed(lambda: store.insert_rows(rows, history=True))  # noqa: B023 - called at once
            times[name].append(ms)
    return {
        name: {"memories": INSERTED, "ms_median": quantile(found, 0.5), "ms_p95": quantile(found, 0.95)}
        for name, found in times.items()
    }


def sizes(url: str, rows: int, tables: dict[str, str]) -> dict[str, dict[str, float]]:
    """Bytes a memory of tables and of their indexes, by name of the table."""
    with psycopg.connect(url) as connection:
        return {
            name: {
                f"{part} bytes a memory": _one(connection, SIZE.format(function=function, table=table)) / rows
                for part, function in (("table", "pg_table_size"), ("index", "pg_indexes_size"))
            }
            for name, table in tables.items()
        }


def _one(connection: psycopg.Connection[Any], query: str) -> int:
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def _read_of(store: MemoryStore, user: int, exact_limit: int) -> Read:
    reader = CandidateReader(store.columns, Weights(), exact_limit)
    search = SearchData(query="What did we buy at the market?")
    return lambda query: reader.read(Scope((f"u{user}",)), query, search, 0.0)


def main() -> None:
    """Fill, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--heavy", type=int, default=5_000, help="memories of one heavy user, of all")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--very-heavy", type=int, default=0, help="memories of one very heavy user, of all")
    parser.add_argument(
        "--exact-limit", type=int, default=EXACT_LIMIT, help="above it, a sample of that user's memories is read"
    )
    parser.add_argument(
        "--without-mem0", action="store_true", help="Keepsake's store alone: Mem0's index takes minutes"
    )
    parser.add_argument("--beside", type=int, help="partitions of another database, measured in turns; 0 for none")
    given = parser.parse_args()
    rng = np.random.default_rng(7)
    points = vectors(given.memories, rng)
    places = np.arange(given.memories)
    owners = np.where(places < given.heavy, HEAVY_USER, rng.integers(1, given.users, given.memories))
    owners[places >= given.memories - given.very_heavy] = very_heavy_user = given.users
    rng.shuffle(owners)
    points[owners == very_heavy_user] = with_sessions(points[owners == very_heavy_user], rng)
    # Both stores get values that half precision holds exactly, so that brute force ranks the same numbers.
    points = points.astype(np.float16).astype(np.float32)
    with ExitStack() as opened:
        url = opened.enter_context(scratch_database())
        fill(url, owners, points)
        pool = opened.enter_context(open_pool(url, 2))
        store = MemoryStore(pool)
        stores = {"Keepsake": store}
        if given.beside is not None:
            other = opened.enter_context(scratch_database())
            fill(other, owners, points, given.beside)
            stores[f"Keepsake, {given.beside or 'no'} partitions"] = MemoryStore(
                opened.enter_context(open_pool(other, 2))
            )
        mem0 = None if given.without_mem0 else fill_mem0(url, pool, owners, points)
        tables = {"Keepsake": "memories", **({MEM0: "mem0_as_shipped"} if mem0 else {})}
        kinds = {"normal": 1, "heavy": HEAVY_USER}
        if given.very_heavy:
            kinds["very heavy"] = very_heavy_user
        figures: dict[str, Any] = {}
        for kind, user in kinds.items():
            reads = {name: _read_of(each, user, given.memories) for name, each in stores.items()}
            if kind == "very heavy":
                reads["Keepsake, a sample"] = _read_of(store, user, given.exact_limit)
            figures[kind] = measure(reads, mem0, user, owners, points)
        figures["insertions"] = insertions(stores, given.users, rng)
        figures["sizes"] = sizes(url, given.memories, tables)
        # Rows inserted one by one leave the index's pages half full; docs/deployment.md says when to reindex.
        with pool.connection() as connection:
            connection.execute("REINDEX INDEX memories_of_user")
        keepsake = {"Keepsake": _read_of(store, HEAVY_USER, given.memories)}
        figures[REINDEXED] = measure(keepsake, None, HEAVY_USER, owners, points)
    title = f"{given.memories} memories of {given.users} users"
    for kind in (*kinds, REINDEXED):
        show(f"{title}: {kind}", figures[kind], 2)
    show(f"{title}: insertions", figures["insertions"], 2)
    show(title, figures["sizes"], 0)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
