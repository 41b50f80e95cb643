"""How long `ltm partition` takes, and what searches and insertions wait for meanwhile.

`python -m bench.latency.repartitioning [--memories N] [--users M] [--json PATH]`. Fills one table, and has `ltm
partition --yes` convert it into 16, with 50 searches and 5 insertions a second by the store's own methods, before and
meanwhile. At the end, every memory that was there or was inserted must be in the partitions, with the same contents.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psycopg

from bench.harness.databases import scratch_database
from bench.harness.load import ROOT
from bench.harness.statistics import percentiles
from bench.harness.tables import show, write_json
from bench.latency.growth import SEARCH
from bench.latency.scale import CONTENT, fill, vectors
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.rows import memory_rows
from services.long_term_memory.postgres.scope import Scope
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.candidates import EXACT_LIMIT, CandidateReader
from services.long_term_memory.retrieval.weights import Weights

PARTITIONS = 16
#: Different vectors: making a million takes longer than storing them.
VECTORS = 20_000
BEFORE_S = 10.0
SEARCH_EVERY_S, INSERT_EVERY_S = 0.02, 0.2
CHECKSUM = "SELECT count(*), sum(hashtextextended(id::text || content || vector::text, 0)) FROM memories"
#: Those that were there before; what is inserted has no time, or the present one.
FILLED = "WHERE said_at < '2026-01-01'"
#: When each began and ended, in seconds.
Moments = list[tuple[float, float]]


def repeated(call: Callable[[], object], interval_s: float, ended: Event, moments: Moments) -> None:
    """Call it until it ends."""
    while not ended.wait(interval_s):
        begun = time.perf_counter()
        call()
        moments.append((begun, time.perf_counter()))


def convert(url: str, store: MemoryStore, users: int) -> dict[str, dict[str, float]]:
    """Convert the table under load; what each kind of call took before and meanwhile, in milliseconds."""
    reading, inserting, ended = np.random.default_rng(2), np.random.default_rng(3), Event()
    reader = CandidateReader(store.columns, Weights(), EXACT_LIMIT)
    query = vectors(1, reading)[0]
    points = vectors(VECTORS // 10, inserting)

    def search() -> None:
        reader.read(Scope((f"u{reading.integers(users)}",)), query, SEARCH, 0.0)

    def insert() -> None:
        payload = {"data": CONTENT, "user_id": f"u{inserting.integers(users)}"}
        point = points[inserting.integers(len(points))]
        store.insert_rows(memory_rows([str(uuid.uuid4())], point[np.newaxis], [payload]), history=True)

    kinds: dict[str, Moments] = {"search": [], "insertion": []}
    threads = [
        Thread(target=repeated, args=(call, every_s, ended, moments))
        for call, every_s, moments in zip(
            (search, insert), (SEARCH_EVERY_S, INSERT_EVERY_S), kinds.values(), strict=True
        )
    ]
    for thread in threads:
        thread.start()
    time.sleep(BEFORE_S)
    converting = time.perf_counter()
    command = [sys.executable, "-c", "from services.cli import main; main()", "partition", "--yes"]
    subprocess.run(
        [*command, "--partitions", str(PARTITIONS)], cwd=ROOT, env=os.environ | {"DATABASE_URL": url}, check=True
    )
    took = time.perf_counter() - converting
    ended.set()
    for thread in threads:
        thread.join()
    found = {"ltm partition": {"s": took}}
    for kind, moments in kinds.items():
        for when, meanwhile in (("before", False), ("meanwhile", True)):
            ms = [(end - begin) * 1000 for begin, end in moments if (end >= converting) == meanwhile]
            found[f"{kind}, {when}"] = {"calls": len(ms), **percentiles(ms), "longest": max(ms)}
    return found


def main() -> None:
    """Fill, convert under load, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    rng = np.random.default_rng(1)
    owners = rng.integers(given.users, size=given.memories)
    points = vectors(VECTORS, rng)[rng.integers(VECTORS, size=given.memories)]
    with scratch_database() as url:
        fill(url, owners, points, partitions=0)
        with psycopg.connect(url) as connection:
            before = connection.execute(f"{CHECKSUM} {FILLED}").fetchone()
        with open_pool(url, 3) as pool:
            figures = convert(url, MemoryStore(pool), given.users)
        with psycopg.connect(url) as connection:
            after = connection.execute(f"{CHECKSUM} {FILLED}").fetchone()
            (count,) = connection.execute("SELECT count(*) FROM memories").fetchone() or (0,)
    inserted = figures["insertion, before"]["calls"] + figures["insertion, meanwhile"]["calls"]
    figures["memories"] = {"calls": count, "s": count - given.memories - inserted}
    show(f"{given.memories:,} memories of {given.users:,} users", figures, 1)
    print("the same contents" if before == after else f"DIFFERENT: {before} before, {after} after")
    write_json(given.json, figures)
    if before != after or count != given.memories + inserted:
        sys.exit(1)


if __name__ == "__main__":
    main()
