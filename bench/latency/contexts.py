"""Latency of contexts beside searches: `python -m bench.latency.contexts [--rounds N] [--json PATH]`.

Starts a stack (or takes `--redis-url`, with DATABASE_URL), and asks it for a search and a context by turns, over the
public wire and in this process, of users with messages and a profile, without facts and with some. Every query is a new
text, so that no cache answers. What the machine does besides falls on both of a pair, whose order is random.
"""

from __future__ import annotations

import argparse
import random
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg
from keepsake_client import Client
from keepsake_client.protocol import ContextData, MemoryUpdateMessage, SearchData
from psycopg.rows import TupleRow

from bench.harness.stack import stack_at
from bench.harness.statistics import percentiles, timed
from bench.harness.tables import show, track, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import past_messages, user_id
from services.long_term_memory.factory import LongTermMemory, open_long_term_memory
from services.long_term_memory.postgres.facts import NewFact, insert_facts
from services.long_term_memory.postgres.scope import Owner

#: Users of even numbers have no facts, those of odd numbers have some.
FACTS_IN = 5
PROFILE = {"name": "Anna", "language": "English", "pets": ["Miso", "Tofu"], "home": "Lisbon", "style": "short, kind"}
WARM_UP = 10
DEADLINE_MS = 10_000


def fill(ltm: LongTermMemory, database_url: str, users: int, memories_per_user: int, texts: TextGenerator) -> None:
    """Store messages and profiles of all users, and facts of every other one, one in `FACTS_IN` messages."""
    updates = past_messages(users, memories_per_user, texts)
    for begin in track(range(0, len(updates), 50), "filling"):
        ltm.memories.index_many(updates[begin : begin + 50])
    for user in range(users):
        ltm.profiles.update(user_id(user), PROFILE)
    with_facts = {user_id(user) for user in range(1, users, 2)}
    with psycopg.connect(database_url, autocommit=True) as connection:
        for update in track(updates[::FACTS_IN], "writing facts"):
            if update.user_id in with_facts:
                insert_facts(connection, Owner(update.user_id), [_fact(update, connection)])
        connection.execute("VACUUM ANALYZE")


def _fact(update: MemoryUpdateMessage, connection: psycopg.Connection[TupleRow]) -> NewFact:
    row = connection.execute(
        "SELECT number, vector::real[] FROM memories WHERE payload ->> 'message_id' = %s", (update.message_id,)
    ).fetchone()
    assert row
    return NewFact(
        id=str(uuid.uuid4()),
        content=f"The user says: {update.content}",
        vector=row[1],
        kind="event",
        about="user",
        when=None,
        said_at=update.timestamp,
        source="user",
        session_id=update.session_id,
        speaker=None,
        evidence=[row[0]],
    )


def by_turns(
    calls: dict[str, Callable[[str, str], object]], users: list[int], rounds: int, texts: TextGenerator, label: str
) -> dict[str, list[float]]:
    """Milliseconds of each call with new queries of these users, one after the other."""
    rng = random.Random(1)
    took: dict[str, list[float]] = {name: [] for name in calls}
    for place in track(range(WARM_UP + rounds), label):
        user = users[place % len(users)]
        for name in rng.sample(list(calls), len(calls)):
            query = texts.query(user)
            _, ms = timed(lambda: calls[name](user_id(user), query))  # noqa: B023 - called at once
            if place >= WARM_UP:
                took[name].append(ms)
    return took


def _compared(took: dict[str, list[float]]) -> dict[str, float]:
    """The percentiles of both, and of the differences of the pairs."""
    search, context = percentiles(took["search"]), percentiles(took["context"])
    figures = {f"search {name}": ms for name, ms in search.items() if name != "p95"}
    figures |= {f"context {name}": ms for name, ms in context.items() if name != "p95"}
    figures |= {f"{name} difference": context[name] - search[name] for name in ("p50", "p99")}
    return {**figures, "p50 ratio": context["p50"] / search["p50"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-url", help="of a running stack, with DATABASE_URL; bench-user-* stay there")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--memories-per-user", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=300, help="pairs of each row")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    texts = TextGenerator(1)
    table = {}
    with stack_at(given.redis_url) as stack:
        ltm = open_long_term_memory(stack.settings, 1)
        try:
            fill(ltm, stack.database_url, given.users, given.memories_per_user, texts)
            with Client(stack.redis_url) as client:
                ways: dict[str, dict[str, Callable[[str, str], object]]] = {
                    "over the wire": {
                        "search": lambda user, query: client.search(user, query, deadline_ms=DEADLINE_MS),
                        "context": lambda user, query: client.context(user, query, deadline_ms=DEADLINE_MS),
                    },
                    "in process": {
                        "search": lambda user, query: ltm.memories.search(user, SearchData(query=query)),
                        "context": lambda user, query: ltm.contexts.context(user, ContextData(query=query)),
                    },
                }
                for way, calls in ways.items():
                    for kind, first in (("without facts", 0), ("with facts", 1)):
                        users = list(range(first, given.users, 2))
                        took = by_turns(calls, users, given.rounds, texts, f"{way}, {kind}")
                        table[f"{way}, {kind}"] = _compared(took)
        finally:
            ltm.close()
    show(f"milliseconds of {given.rounds} searches and as many contexts, by turns", table, 2)
    write_json(given.json, table)


if __name__ == "__main__":
    main()
