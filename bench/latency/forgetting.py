"""Forgetting a user under load: `python -m bench.latency.forgetting [--memories 50000]`.

Starts a durable stack, gives one user `--memories` memories, each with a message_id and a history, and 20 others 500
each, and forgets the first while the others search at `--rate` a second. It prints how long the forget took, what the
searches that were due meanwhile took, and those of before.
"""

from __future__ import annotations

import argparse
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from keepsake_client.protocol import MemoryUpdateMessage

from bench.harness.load import Load, poisson
from bench.harness.outcomes import faults, summary
from bench.harness.stack import Stack, running_stack
from bench.harness.tables import show, track, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import search_event, user_id
from bench.latency.scale import vectors
from services.long_term_memory.postgres.rows import insert_memories
from services.long_term_memory.storing import embedded, of_update
from services.stack.probe import client_of

OTHERS, OTHERS_MEMORIES = 20, 500
#: The user who is forgotten, among the made-up ones.
HEAVY = OTHERS
BUDGET_MS = 600
CALM_S = 10.0
MONTH_S = 30 * 86_400
FILLED_AT_ONCE = 500


def messages(memories: int, texts: TextGenerator) -> Iterator[MemoryUpdateMessage]:
    """The messages of the last month, of the heavy user and the others by turns."""
    pool = [texts.statement(0) for _ in range(1_000)]
    users = [HEAVY] * memories + [number % OTHERS for number in range(OTHERS * OTHERS_MEMORIES)]
    random.Random(7).shuffle(users)
    begin = time.time() - MONTH_S
    for number, user in enumerate(users):
        yield MemoryUpdateMessage(
            user_id=user_id(user),
            content=f"{pool[number % len(pool)]} {number}",
            source="ai" if number % 2 else "user",
            timestamp=begin + number * MONTH_S / len(users),
            meta={"session_id": f"s{number // 500}"},
            message_id=uuid.uuid4().hex,
        )


def fill(database_url: str, memories: int, texts: TextGenerator) -> None:
    """Store the memories with made-up vectors, then vacuum as autovacuum would in time."""
    updates = list(messages(memories, texts))
    points = vectors(len(updates), np.random.default_rng(7))
    with psycopg.connect(database_url, autocommit=True) as connection:
        for begin in track(range(0, len(updates), FILLED_AT_ONCE), "filling the table"):
            chunk = zip(updates[begin : begin + FILLED_AT_ONCE], points[begin : begin + FILLED_AT_ONCE], strict=True)
            rows = [embedded(of_update(update, update.timestamp), point).row for update, point in chunk]
            insert_memories(connection, rows, history=True)
        connection.execute("VACUUM ANALYZE memories")
        connection.execute("CHECKPOINT")


def measure(stack: Stack, given: argparse.Namespace, texts: TextGenerator) -> dict[str, Any]:
    """Forget the heavy user while the others search; the figures."""
    moments = poisson(given.rate, CALM_S + given.seconds, random.Random(7))
    searches = [
        search_event(due, number % OTHERS, texts.query(number % OTHERS), BUDGET_MS)
        for number, due in enumerate(moments)
    ]
    with client_of(stack.settings) as client:
        load = Load(stack.wire, searches)
        time.sleep(CALM_S)
        begun = time.time()
        response = client.user_forget(user_id(HEAVY), deadline_ms=600_000)
        ended = time.time()
        result = load.result()
    begin = begun - result.begun_at
    runs = {
        "searches before": result.due_between(0, begin),
        "searches meanwhile": result.due_between(begin, ended - result.begun_at),
    }
    figures = {name: summary(outcomes, BUDGET_MS) for name, outcomes in runs.items()}
    return {"memories": response.count, "forget_s": ended - begun, "searches": figures}


def main() -> None:
    """Fill, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", type=int, default=50_000, help="of the user who is forgotten")
    parser.add_argument("--rate", type=float, default=10.0, help="searches of the others a second")
    parser.add_argument("--seconds", type=float, default=40.0, help="for how long the others search, once it began")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    texts = TextGenerator(7)
    with running_stack(durable=True) as stack:
        fill(stack.database_url, given.memories, texts)
        figures = measure(stack, given, texts)
    print(f"{figures['memories']} memories of one user forgotten in {figures['forget_s']:.1f} s")
    show("searches of the others", figures["searches"], digits=1)
    found = faults(figures["searches"]["searches meanwhile"])
    print(f"of those meanwhile over {BUDGET_MS} ms, partial or failed: {found or 'none'}")
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
