"""How long this release's migration of the database takes, and what searches wait for meanwhile.

`python -m bench.latency.migration [--memories N] [--json PATH]`. The database is that of the release before; it is read
all the time as that release's searches read it. After the steps of the schema, analyses are renewed, as a start does.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psycopg

from bench.harness.databases import scratch_database
from bench.harness.statistics import percentiles
from bench.harness.tables import show, write_json
from bench.latency import scale
from services.long_term_memory.postgres.analysis import renew_analyses
from services.long_term_memory.postgres.schema import migrate, read_migrations

#: The last step of the release before, 0.2.0.
STEP_BEFORE = 3
#: Memories of each user.
EACH = 1_000
#: Different vectors: making a million takes longer than storing them.
VECTORS = 20_000
SEARCH = (
    "SELECT string_agg(head, ''::bytea), max(vector <=> (SELECT %s::halfvec)) FROM (SELECT * FROM memories"
    " WHERE user_number = (SELECT number FROM users WHERE user_id = %s) ORDER BY session, said_at, number) AS turns"
)
INTERVAL_S = 0.02
BEFORE_S = 5.0


def searched(url: str, users: int, ended: Event) -> list[tuple[float, float]]:
    """Search until it ends: when each search began and ended, in seconds."""
    rng, moments = np.random.default_rng(2), []
    vector = "[" + ",".join(["0.05"] * scale.DIMENSIONS) + "]"
    with psycopg.connect(url, autocommit=True) as connection:
        while not ended.wait(INTERVAL_S):
            begun = time.perf_counter()
            connection.execute(SEARCH, (vector, f"u{rng.integers(users)}")).fetchall()
            moments.append((begun, time.perf_counter()))
    return moments


def main() -> None:
    """Fill, migrate under load, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    users, rng, steps = given.memories // EACH, np.random.default_rng(1), read_migrations()
    owners = rng.permutation(np.repeat(np.arange(users), EACH))
    points = scale.vectors(VECTORS, rng)[rng.integers(VECTORS, size=len(owners))]
    with scratch_database() as url:
        with psycopg.connect(url) as connection:
            migrate(connection, scale.DIMENSIONS, steps[:STEP_BEFORE])
        scale.fill(url, owners, points)
        ended, moments = Event(), list[tuple[float, float]]()
        searching = Thread(target=lambda: moments.extend(searched(url, users, ended)))
        searching.start()
        time.sleep(BEFORE_S)
        begun = time.perf_counter()
        with psycopg.connect(url, autocommit=True) as connection:
            migrate(connection, scale.DIMENSIONS, steps)
            seconds = time.perf_counter() - begun
            renewed = renew_analyses(connection)
        renewal_s = time.perf_counter() - begun - seconds
        ended.set()
        searching.join()
    times = {
        "before": [end - start for start, end in moments if end < begun],
        "meanwhile": [end - start for start, end in moments if end >= begun and start <= begun + seconds],
        "renewal": [end - start for start, end in moments if start > begun + seconds],
    }
    print(f"{len(owners):,} memories: migrated in {seconds:.1f} s, {renewed:,} analyses renewed in {renewal_s:.1f} s")
    figures = {
        when: {"searches": float(len(taken)), **percentiles(ms), "longest": max(ms, default=float("nan"))}
        for when, taken in times.items()
        for ms in [[1_000 * second for second in taken]]
    }
    show("milliseconds of searches", figures, digits=1)
    write_json(given.json, {"seconds": seconds, "renewal_s": renewal_s, **figures})


if __name__ == "__main__":
    main()
