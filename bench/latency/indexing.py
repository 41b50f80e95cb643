"""Indexing throughput, and the delay until a message can be found.

`python -m bench.latency.indexing [--messages N] [--rate R --seconds S] [--json PATH]`.

Messages are published on the wire all at once, and counted as their rows appear. Then --rate messages a second are
published, and each is timed from just before its PUBLISH until its row is visible, which is when any search finds it.
The database is polled for rows every 5 ms, by primary key order: a search on the wire for a word of every message would
keep the embedder busy with the measurement. So a delay is up to 5 ms too long.

The embedder's own rate is measured before and after with texts of the same kind, one at a time, one thread a process,
in as many processes as index.
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

from bench.harness.load import Load, poisson
from bench.harness.memory_usage import embedding_processes
from bench.harness.stack import Stack, stack_at
from bench.harness.statistics import mean, percentiles
from bench.harness.tables import progress_bar, show, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import backlog, message_event, run_with_progress
from bench.latency.embedders import embedders_rate
from services.stack.processes import INDEXER

POLL_EVERY_S = 0.005
COUNT_EVERY_S = 0.1
#: Without a new row for so long, the rest counts as lost.
IDLE_S = 30.0


class RowWatcher(threading.Thread):
    """A thread that records when each new memory first becomes visible, by its message_id.

    It polls for the rows after the last one seen and for `OVERLAP` rows before it: transactions may commit in another
    order than that of their row numbers.
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
            while not self.done.wait(POLL_EVERY_S):
                rows = self._connection.execute(query, (last - self.OVERLAP,), prepare=True).fetchall()
                moment = time.time()
                for number, message_id in rows:
                    self.seen.setdefault(message_id, moment)
                    last = max(last, number)


def throughput(stack: Stack, messages: int, users: int, texts: TextGenerator) -> dict[str, float]:
    """Messages a second, from the first PUBLISH to the last row."""
    bodies = backlog(messages, users, texts)
    with psycopg.connect(stack.database_url, autocommit=True) as connection, progress_bar() as progress:
        before = _one(connection, "SELECT count(*) FROM memories")
        task = progress.add_task("indexing", total=messages)
        begun = last = time.monotonic()
        with redis.Redis.from_url(stack.redis_url) as client, client.pipeline(transaction=False) as pipeline:
            for body in bodies:
                pipeline.publish(stack.wire.updates, body)
            pipeline.execute()
        published, kept = time.monotonic(), 0
        while kept < messages and time.monotonic() - last < IDLE_S:
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
    stack: Stack, rate: float, seconds: float, users: int, rng: random.Random, texts: TextGenerator
) -> dict[str, float]:
    """Milliseconds from PUBLISH until a message is searchable."""
    moments = poisson(rate, seconds, rng)
    events = [message_event(due, n % users, n, texts.statement(n % users)) for n, due in enumerate(moments)]
    watcher = RowWatcher(stack.database_url)
    watcher.start()
    published = run_with_progress(Load(stack.wire, events), f"{rate:g} messages a second").published
    until = time.monotonic() + IDLE_S
    while not published.keys() <= watcher.seen.keys() and time.monotonic() < until:
        time.sleep(0.1)
    watcher.done.set()
    watcher.join()
    took = [(watcher.seen[one] - moment) * 1000 for one, moment in published.items() if one in watcher.seen]
    return {
        "messages": len(published),
        "never seen": len(published) - len(took),
        **percentiles(took),
        "max": max(took, default=float("nan")),
    }


def measure(stack: Stack, given: argparse.Namespace) -> dict[str, Any]:
    """All figures, in the order of the report."""
    texts, rng = TextGenerator(given.seed), random.Random(given.seed)
    stack.wait_until_indexed()
    processes = given.processes or embedding_processes(stack, INDEXER)
    embedder = [embedders_rate(stack.settings, processes, given.embedder_seconds)]
    waited = delay(stack, given.rate, given.seconds, given.users, rng, texts)
    kept = throughput(stack, given.messages, given.users, texts)
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
    parser.add_argument(
        "--redis-url", help="of a running stack, with DATABASE_URL; the memories of bench-user-* stay there"
    )
    parser.add_argument("--messages", type=int, default=3_000, help="published at once")
    parser.add_argument("--rate", type=float, default=5.0, help="messages a second for the delay")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the delay is measured")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--processes", type=int, help="how many processes index; counted by default")
    parser.add_argument("--embedder-seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    with stack_at(given.redis_url) as stack:
        figures = measure(stack, given)
    show(f"the embedder in {figures['processes']} processes", {"": figures["embedder"]}, 1)
    show("published at once", {"": figures["indexing"]}, 1)
    show(f"publish -> searchable at {given.rate:g}/s, ms", {"": figures["delay"]}, 1)
    ratio, median = figures["ratio"], figures["delay"]["p50"]
    lines = [
        f"{'yes' if ratio >= 0.85 else 'NO ':<4} indexing, of the embedder's own rate: {ratio:.2f} (target: >= 0.85)",
        f"{'yes' if median <= 60 else 'NO ':<4} publish -> searchable, p50: {median:.0f} ms (target: <= 60 ms)",
    ]
    Console(soft_wrap=True).print("\nTargets", *lines, sep="\n", markup=False, highlight=False)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
