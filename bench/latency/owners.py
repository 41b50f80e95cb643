"""Time of reading and ranking several owners at once: `python -m bench.latency.owners [--rounds N] [--json PATH]`.

One user with 5,000 memories against five users with 1,000 each (`also`), and against one with 5,000 of whom a character
has 1,000; by turns, so that what else the machine does falls on all. `read` is the database's part of a search, and
`search` all of it but the embedding and the loading of contents.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psycopg
from keepsake_client.protocol import SearchData

from bench.harness.databases import scratch_database
from bench.harness.statistics import quantile
from bench.harness.tables import show, track, write_json
from bench.latency import scale
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.scope import Scope
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.candidates import CandidateReader
from services.long_term_memory.retrieval.features import match
from services.long_term_memory.retrieval.query import query_features
from services.long_term_memory.retrieval.ranking import rank
from services.long_term_memory.retrieval.weights import Weights

SMALL, OWNERS, OTHERS = 1_000, 5, 15
WARM_UP = 5
QUERY = SearchData(query="What did we buy at the market with Anna?")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="searches of each scope")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    # u0 has 5,000; u1 to u20 1,000 each; u21 4,000, and a character of u21's has 1,000.
    sizes = [OWNERS * SMALL, *[SMALL] * (OWNERS + OTHERS), (OWNERS - 1) * SMALL, SMALL]
    rng = np.random.default_rng(1)
    owners = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    points = scale.with_sessions(scale.vectors(len(owners), rng), rng)
    user, character = f"u{len(sizes) - 2}", f"u{len(sizes) - 1}"
    scopes = {
        "one owner of 5,000": Scope(("u0",)),
        "5 users of 1,000": Scope(tuple(f"u{number}" for number in range(1, OWNERS + 1))),
        "4,000 shared, 1,000 of a character": Scope((user,), "luna"),
    }
    seconds: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in scopes}
    with scratch_database() as url:
        with psycopg.connect(url) as connection:
            migrate(connection, scale.DIMENSIONS)
        scale.fill(url, owners, points)
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE users SET user_id = %s, agent_id = 'luna' WHERE user_id = %s", (user, character))
        with open_pool(url, 3) as pool:
            candidates = CandidateReader(MemoryStore(pool).columns, Weights())
            for place in track(range(WARM_UP + given.rounds), "searching"):
                for name, scope in scopes.items():
                    begun = time.perf_counter()
                    columns = candidates.read(scope, points[place], QUERY, 0.0)
                    read = time.perf_counter()
                    query = query_features(QUERY.query)
                    rank(columns, query, match(columns, query, QUERY, 0.0), limit=QUERY.limit)
                    if place >= WARM_UP:
                        seconds[name]["read"].append(read - begun)
                        seconds[name]["search"].append(time.perf_counter() - begun)
                    assert len(columns) == OWNERS * SMALL, (name, len(columns))
    table = {
        name: {
            f"{part} p{percent}": 1000 * quantile(of[part], percent / 100)
            for part in ("read", "search")
            for percent in (50, 95)
        }
        for name, of in seconds.items()
    }
    show(f"milliseconds of {given.rounds} searches each", table, 2)
    write_json(given.json, table)


if __name__ == "__main__":
    main()
