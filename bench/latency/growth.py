"""The database as it grows: what a search, the indexes, vacuum, a reindex, a backup and a restore take.

`python -m bench.latency.growth --memories 10000000 --users 100000 [--steps 10] [--json PATH]`

Fills the real table by COPY in steps, the users' rows interleaved as they would arrive, so that no more than one step
is in memory. After each step, the database part of a search is timed for `--probes` random users, the first time each
(with what PostgreSQL and the system have in memory by then) and once more. After the last one, one user in a hundred is
deleted, and what follows is timed: VACUUM, REINDEX CONCURRENTLY of the index that searches read, and, with
`--backup DIRECTORY`, a backup and its restore into another database of the same server, before which the first is
emptied. The sizes stand beside those that services/stack/capacity.py computes. Each figure is also printed when it is
known, since ten million take an hour or more.

PostgreSQL is an embedded one without fsync (`--database-url` takes an empty database of your own instead), whose
shared_buffers are 128 MB: a larger one that is tuned is faster past that.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psycopg
from keepsake_client.protocol import SearchData
from psycopg_pool import ConnectionPool

from bench.harness.databases import scratch_database
from bench.harness.statistics import quantile, timed
from bench.harness.tables import show, write_json
from bench.latency.scale import DIMENSIONS, insert, vectors
from services.backup.backup import back_up
from services.backup.restore import Restore
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.scope import Scope
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.candidates import EXACT_LIMIT, CandidateReader
from services.long_term_memory.retrieval.weights import Weights
from services.runtime.settings import load_settings
from services.stack.capacity import memory_bytes

SEARCH = SearchData(query="What did we buy at the market?")
#: One user in so many is deleted before the maintenance.
DELETED = 100


def measure(url: str, given: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """All figures."""
    rng, places = np.random.default_rng(given.seed), dict[int, int]()
    steps: dict[str, dict[str, float]] = {}
    with psycopg.connect(url, autocommit=True) as connection:
        migrate(connection, DIMENSIONS)
        connection.execute(
            "INSERT INTO users (user_id, agent_id) SELECT 'u' || n, '' FROM generate_series(0, %s) n ORDER BY n",
            (given.users - 1,),
        )
        size = given.memories // given.steps
        for number in range(1, given.steps + 1):
            owners = rng.integers(given.users, size=size)
            _, ms = timed(lambda: insert(connection, owners, vectors(size, rng), places))  # noqa: B023 - called at once
            steps[f"{size * number:,}"] = {
                "inserted a second": size / ms * 1000,
                **searches(url, given, rng),
                **sizes(connection),
            }
            print(number, steps[f"{size * number:,}"], flush=True)
        total, after = size * given.steps, maintenance(connection, given)
        after |= searches(url, given, rng)
        after |= {f"{name}, after": value for name, value in sizes(connection).items()}
        if given.backup:
            after |= backup(connection, url, given.backup)
    steps[f"{total:,}"]["bytes a memory by the model"] = memory_bytes(DIMENSIONS)
    return {"steps": steps, "after": {"": after}}


def searches(url: str, given: argparse.Namespace, rng: np.random.Generator) -> dict[str, float]:
    """Milliseconds of the database part of a search of random users: the first of each, and one more."""
    times: dict[str, list[float]] = {"first": [], "again": []}
    with ConnectionPool(url, min_size=1, max_size=2) as pool:
        reader = CandidateReader(MemoryStore(pool).columns, Weights(), EXACT_LIMIT)
        users, queries = rng.integers(given.users, size=given.probes), vectors(given.probes, rng)
        reader.read(Scope(("nobody",)), queries[0], SEARCH, 0.0)  # prepares the statements
        for took in times.values():
            for user, query in zip(users, queries, strict=True):
                took.append(timed(lambda: reader.read(Scope((f"u{user}",)), query, SEARCH, 0.0))[1])  # noqa: B023
    return {
        f"{name}, ms, {label}": quantile(took, share)
        for name, took in times.items()
        for label, share in (("p50", 0.5), ("p95", 0.95))
    }


def sizes(connection: psycopg.Connection[Any]) -> dict[str, float]:
    """Bytes a memory of the table and its indexes, partitions included, and what autovacuum has done."""
    row = connection.execute(
        "SELECT sum(pg_table_size(c.oid)), sum(pg_indexes_size(c.oid)), sum(s.autovacuum_count)"
        " FROM pg_class c LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid WHERE c.oid = 'memories'::regclass"
        " OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'memories'::regclass)"  # its partitions
    ).fetchone()
    count = connection.execute("SELECT count(*) FROM memories").fetchone()
    assert row is not None
    assert count is not None
    table, indexes, vacuums = (float(value or 0) for value in row)
    return {
        "table, bytes": table / count[0],
        "indexes, bytes": indexes / count[0],
        "both, GB": (table + indexes) / 1e9,
        "autovacuums": vacuums,
    }


def maintenance(connection: psycopg.Connection[Any], given: argparse.Namespace) -> dict[str, float]:
    """Seconds of each piece of maintenance, after the memories of some users were deleted."""
    took: dict[str, float] = {}
    with seconds(took, f"delete one user in {DELETED}"):
        connection.execute(f"DELETE FROM memories WHERE user_number % {DELETED} = 0")
    with seconds(took, "VACUUM"):
        connection.execute("VACUUM memories")
    with seconds(took, "ANALYZE"):
        connection.execute("ANALYZE memories")
    with seconds(took, "REINDEX CONCURRENTLY memories_of_user"):
        connection.execute("REINDEX INDEX CONCURRENTLY memories_of_user")
    return took


def backup(connection: psycopg.Connection[Any], url: str, directory: Path) -> dict[str, float]:
    """Seconds of a backup and its restore, and the size of the file; the memories are removed between them."""
    took: dict[str, float] = {}
    file, restored = directory / f"growth-{time.time():.0f}", "growth_restored"
    with seconds(took, "backup"):
        back_up(load_settings(database_url=url), file, lambda *_: None, database_only=True)
    took["backup, GB"] = file.stat().st_size / 1e9
    connection.execute("TRUNCATE memories CASCADE")  # so that the disk need not hold them twice
    try:
        connection.execute(f"CREATE DATABASE {restored}")
        target = load_settings(database_url=urlsplit(url)._replace(path=f"/{restored}").geturl())
        with seconds(took, "restore"):
            Restore(file, database_only=True).run(target, lambda *_: None)
    finally:
        file.unlink()
        connection.execute(f"DROP DATABASE IF EXISTS {restored} WITH (FORCE)")
    return took


@contextmanager
def seconds(into: dict[str, float], name: str) -> Iterator[None]:
    """Write how long the block took `into`."""
    begun = time.monotonic()
    yield
    into[f"{name}, s"] = time.monotonic() - begun
    print(f"{name}, s: {into[f'{name}, s']:.1f}", flush=True)


def main() -> None:
    """Fill, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--database-url", help="an empty database, which is filled and left so")
    parser.add_argument("--backup", type=Path, metavar="DIRECTORY", help="also back up to it, and restore")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    if given.database_url:
        figures = measure(given.database_url, given)
    else:
        with scratch_database() as url:
            figures = measure(url, given)
    names = dict.fromkeys(name for step in figures["steps"].values() for name in step)
    show("steps", {n: {k: of[n] for k, of in figures["steps"].items() if n in of} for n in names}, 2)
    show("after", {name: {"": value} for name, value in figures["after"][""].items()}, 2)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
