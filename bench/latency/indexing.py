"""How fast what is said can be found.

`python -m bench.latency.indexing [--messages N] [--rate R --seconds S] [--json PATH]`.

Messages are published on the wire all at once, and counted as their rows appear; then --rate of them a second, and each
is timed from just before its PUBLISH to when its row can be seen, which is when any search finds it. Rows are looked
for in the database every 5 ms, by the table's own order: searching on the wire for every message's own word would keep
the embedder busy with the measuring. So a delay is up to 5 ms too long.

The embedder's own rate is of the same kind of texts, one at a time, one thread a process, in as many processes as
index, before and after.
"""

from __future__ import annotations

import argparse
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import redis
from rich.console import Console

from bench.harness.common import mean, show, write_json
from bench.harness.load import Load, poisson, quantile
from bench.harness.stack import Stack, backlog, bar, embedders_rate, embedding_processes, stack_at, tell, watched
from bench.harness.texts import Speech
from services.stack.processes import INDEXER

LOOK_EVERY_S = 0.005
COUNT_EVERY_S = 0.1
#: Nothing more is expected after so long without a new row.
SILENT_S = 30.0


class Watch(threading.Thread):
    """Notes when each new memory can first be seen.

    It reads behind the last row it saw, and some before it, for two transactions may not end in the order of their
    numbers.
    """

    OVERLAP = 100

    def __init__(self, database_url: str) -> None:
        super().__init__(daemon=True)
        self._connection = psycopg.connect(database_url, autocommit=True)
        self.seen: dict[str, float] = {}
        self.done = threading.Event()

    def run(self) -> None:
        query = "SELECT number, payload ->> 'message_id' FROM memories WHERE number > %s"
        last = _one(self._connection, "SELECT coalesce(max(number), 0) FROM memories")
        with self._connection:
            while not self.done.wait(LOOK_EVERY_S):
                rows = self._connection.execute(query, (last - self.OVERLAP,), prepare=True).fetchall()
                moment = time.time()
                for number, message_id in rows:
                    self.seen.setdefault(message_id, moment)
                    last = max(last, number)


def throughput(stack: Stack, messages: int, users: int, speech: Speech) -> dict[str, float]:
    """Messages a second, from the first PUBLISH to the last row."""
    bodies = backlog(messages, users, speech)
    with psycopg.connect(stack.database_url, autocommit=True) as connection, bar() as progress:
        before = _one(connection, "SELECT count(*) FROM memories")
        task = progress.add_task("indexing", total=messages)
        begun = last = time.monotonic()
        with redis.Redis.from_url(stack.redis_url) as client, client.pipeline(transaction=False) as pipeline:
            for body in bodies:
                pipeline.publish(stack.wire.updates, body)
            pipeline.execute()
        published, kept = time.monotonic(), 0
        while kept < messages and time.monotonic() - last < SILENT_S:
            time.sleep(COUNT_EVERY_S)
            if (now := _one(connection, "SELECT count(*) FROM memories") - before) > kept:
                kept, last = now, time.monotonic()
                progress.update(task, completed=kept)
    return {
        "messages": messages,
        "lost": messages - kept,
        "publishing s": published - begun,
        "seconds": last - begun,
        "a second": kept / (last - begun),
    }


def delay(
    stack: Stack, rate: float, seconds: float, users: int, rng: random.Random, speech: Speech
) -> dict[str, float]:
    """Milliseconds from PUBLISH to searchable."""
    moments = poisson(rate, seconds, rng)
    spoken = [tell(due, n % users, n, speech.statement(n % users)) for n, due in enumerate(moments)]
    watch = Watch(stack.database_url)
    watch.start()
    told = watched(Load(stack.wire, spoken), f"{rate:g} messages a second").told
    until = time.monotonic() + SILENT_S
    while not told.keys() <= watch.seen.keys() and time.monotonic() < until:
        time.sleep(0.1)
    watch.done.set()
    watch.join()
    took = [(watch.seen[one] - moment) * 1000 for one, moment in told.items() if one in watch.seen]
    return {
        "messages": len(told),
        "never seen": len(told) - len(took),
        **{f"p{share * 100:g}": quantile(took, share) for share in (0.5, 0.95, 0.99)},
        "max": max(took, default=float("nan")),
    }


def measure(stack: Stack, given: argparse.Namespace) -> dict[str, Any]:
    """Everything, in the order of the report."""
    speech, rng = Speech(given.seed), random.Random(given.seed)
    stack.drained()
    processes = given.processes or embedding_processes(stack, INDEXER)
    embedder = [embedders_rate(stack.settings, processes, given.embedder_seconds)]
    waited = delay(stack, given.rate, given.seconds, given.users, rng, speech)
    kept = throughput(stack, given.messages, given.users, speech)
    embedder.append(embedders_rate(stack.settings, processes, given.embedder_seconds))
    return {
        "processes": processes,
        "cores": os.cpu_count(),
        "embedder": {"before, a second": embedder[0], "after, a second": embedder[1]},
        "indexing": kept,
        "ratio": kept["a second"] / mean(embedder),
        "delay": waited,
    }


def _one(connection: psycopg.Connection[Any], query: str) -> int:
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-url", help="a running stack's, with DATABASE_URL; what bench-user-* said stays there")
    parser.add_argument("--messages", type=int, default=3_000, help="published at once")
    parser.add_argument("--rate", type=float, default=5.0, help="messages a second for the delay")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the delay's load")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--processes", type=int, help="that index; otherwise they are counted")
    parser.add_argument("--embedder-seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    with stack_at(given.redis_url) as stack:
        figures = measure(stack, given)
    show(f"the embedder, {figures['processes']} of them", {"": figures["embedder"]}, 1)
    show("published at once", {"": figures["indexing"]}, 1)
    show(f"publish -> searchable at {given.rate:g}/s, ms", {"": figures["delay"]}, 1)
    ratio, median = figures["ratio"], figures["delay"]["p50"]
    lines = [
        f"{'yes' if ratio >= 0.85 else 'NO ':<4} indexing, of the embedder's own rate: {ratio:.2f} (wanted: >= 0.85)",
        f"{'yes' if median <= 60 else 'NO ':<4} publish -> searchable, p50: {median:.0f} ms (wanted: <= 60 ms)",
    ]
    Console(soft_wrap=True).print("\nTo reach", *lines, sep="\n", markup=False, highlight=False)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
