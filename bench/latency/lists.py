"""Time of lists, single memories and deletions beside a large number of memories.

`python -m bench.latency.lists [--memories N] [--users M] [--json PATH]`.

Fills the table with N memories of one user, and as many of others, and measures pages of 50 of the one user: the first
and those in the middle, with filters, of all characters, and for the worst filter, a text that nothing contains. Then
deletes all N by a filter, while another user's memories are searched on another connection: how long the deletion and
its longest statement took, and the searches before and during it. `--stack` measures pages over the wire instead, of a
stack that it starts. `--users M` measures pages of users instead: M with one memory each, beside the one with N.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from keepsake_client import Client
from keepsake_client.protocol import MemoryDeleteData, MemoryListData, SearchData, UserListData
from numpy.typing import NDArray
from psycopg import Connection
from psycopg_pool import ConnectionPool

from bench.harness.databases import scratch_database
from bench.harness.stack import running_stack
from bench.harness.statistics import percentiles, timed
from bench.harness.tables import show, write_json
from bench.latency.scale import DIMENSIONS, HEAVY_USER, fill, vectors
from services.long_term_memory.memory_management import MemoryManagement
from services.long_term_memory.postgres.scope import Scope
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.candidates import CandidateReader
from services.long_term_memory.retrieval.weights import Weights

USER, OTHER = f"u{HEAVY_USER}", "u1"
OTHERS = 50
REPETITIONS = 200
HISTORY = (
    "INSERT INTO memory_history (id, memory_id, new_memory, event, is_deleted)"
    " SELECT gen_random_uuid(), id::text, content, 'ADD', false FROM memories"
)
#: The text of all memories has it.
EVERY, NONE = "PEACHES", "zzz apples"


class TimedConnection(Connection[Any]):
    """A connection that notes how long its statements took."""

    longest_ms = 0.0

    def execute(self, *arguments: Any, **options: Any) -> Any:
        result, ms = timed(lambda: super(TimedConnection, self).execute(*arguments, **options))
        TimedConnection.longest_ms = max(TimedConnection.longest_ms, ms)
        return result


def middle(management: MemoryManagement, pages: int) -> str | None:
    """The cursor behind so many pages of 100."""
    cursor = None
    for _ in range(pages):
        cursor = management.page(USER, MemoryListData(limit=100, cursor=cursor)).next_cursor
    return cursor


def repeated(call: Callable[[], object], times: int = REPETITIONS) -> dict[str, float]:
    """Quantiles of the time that a call takes, in milliseconds."""
    return percentiles([timed(call)[1] for _ in range(times)])


def measure_lists(management: MemoryManagement, memories: int) -> dict[str, dict[str, float]]:
    """Quantiles of pages of 50, by what is asked for."""
    cursor = middle(management, memories // 200)
    filters: dict[str, dict[str, Any]] = {
        "first page": {},
        "a page in the middle": {"cursor": cursor},
        "oldest first": {"order": "oldest"},
        "all characters": {"all_agents": True},
        "of one session": {"filters": {"session_id": "s3"}},
        "contains a frequent text": {"filters": {"contains": EVERY}},
    }
    figures = {
        name: repeated(lambda: management.page(USER, MemoryListData.model_validate(data)))  # noqa: B023 - called at once
        for name, data in filters.items()
    }
    rare = MemoryListData.model_validate({"filters": {"contains": NONE}})
    figures["contains a text that none has"] = repeated(lambda: management.page(USER, rare), 10)
    memory_id = management.page(USER, MemoryListData(cursor=cursor)).memories[0].id
    figures["one memory"] = repeated(lambda: management.get(USER, memory_id))
    return figures


def measure_users(management: MemoryManagement) -> dict[str, dict[str, float]]:
    """Quantiles of pages of users, by what is asked for; the one with many memories is first of all."""
    asked: dict[str, dict[str, Any]] = {
        "first page": {},
        "first page of 100": {"limit": 100},
        "a page in the middle": {"cursor": "u5"},
        "of a prefix": {"prefix": "u77"},
        "of a prefix that none has": {"prefix": "v"},
        "the user with many memories": {"limit": 1},
    }
    return {
        name: repeated(lambda: management.users(UserListData.model_validate(data)))  # noqa: B023 - called at once
        for name, data in asked.items()
    }


def measure_deletion(management: MemoryManagement, pool: ConnectionPool) -> dict[str, dict[str, float]]:
    """Quantiles of another user's searches before and during a deletion, and what it took."""
    reader = CandidateReader(MemoryStore(pool).columns, Weights())
    query = vectors(1, np.random.default_rng(1))[0]
    search = SearchData(query="What did we buy at the market?")

    def read() -> object:
        return reader.read(Scope((OTHER,)), query, search, 0.0)

    before = repeated(read)
    ended, during = threading.Event(), list[float]()

    def read_until_the_end() -> None:
        while not ended.is_set():
            during.append(timed(read)[1])
            time.sleep(0.01)

    reading = threading.Thread(target=read_until_the_end)
    reading.start()
    TimedConnection.longest_ms = 0.0
    deletion = MemoryDeleteData.model_validate({"filters": {"contains": EVERY}})
    count, ms = timed(lambda: management.delete(USER, deletion, time.time()))
    longest = TimedConnection.longest_ms
    ended.set()
    reading.join()
    return {
        "searches before, ms": before,
        "searches during it, ms": percentiles(during),
        "deletion": {"memories": count, "seconds": ms / 1000, "longest statement, ms": longest},
    }


def measure_wire(owners: NDArray[np.int64], points: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Quantiles of pages of 50 that a client asks a running stack for."""
    with running_stack() as stack:
        fill(stack.database_url, owners, points)
        with Client(stack.redis_url, write_timeout_ms=10_000) as client:
            client.memory_list(USER)  # subscribes
            cursor = client.memory_list(USER, limit=100).next_cursor
            return {
                "first page, over the wire": repeated(lambda: client.memory_list(USER)),
                "the next page": repeated(lambda: client.memory_list(USER, cursor=cursor)),
            }


def main() -> None:
    """Fill, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", type=int, default=50_000)
    parser.add_argument("--users", type=int, metavar="M", help="measure pages of M users")
    parser.add_argument("--stack", action="store_true", help="measure over the wire")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    rng = np.random.default_rng(7)
    if given.users:
        owners = rng.permutation(np.append(np.arange(1, given.users), np.full(given.memories, HEAVY_USER)))
    else:
        owners = np.where(rng.random(2 * given.memories) < 0.5, HEAVY_USER, rng.integers(1, OTHERS, 2 * given.memories))
    points = vectors(len(owners), rng)
    if given.stack:
        show(f"{given.memories} memories", measure_wire(owners, points), 1)
        return
    with scratch_database() as url, ConnectionPool(url, min_size=1, max_size=3) as pool:
        fill(url, owners, points)
        with pool.connection() as connection:
            connection.execute(HISTORY)
            connection.execute("ANALYZE memory_history")
        with ConnectionPool(
            url, min_size=1, max_size=1, connection_class=TimedConnection, kwargs={"autocommit": True}
        ) as own:
            management = MemoryManagement(own, None)  # type: ignore[arg-type]  # nothing is embedded
            if given.users:
                figures = measure_users(management)
            else:
                figures = measure_lists(management, given.memories) | measure_deletion(management, pool)
    show(
        f"{DIMENSIONS} dimensions, {int((owners == HEAVY_USER).sum())} memories of the user, of {len(owners)}",
        figures,
        1,
    )
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
