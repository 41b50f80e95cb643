"""A finder of facts that does what a test says, and helpers for the tests of extraction."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from keepsake_client.protocol import MemoryUpdateMessage
from psycopg_pool import ConnectionPool

from services.long_term_memory.extraction.batch import Batch, Extraction, FoundFact, Usage
from services.long_term_memory.extraction.service import ExtractionService, Outcome

#: What a scripted call costs.
USAGE = Usage(100, 20)
COST = USAGE.prompt_tokens + USAGE.completion_tokens
#: Longer than a lease holds.
LEASE_S = 1_000

#: All that is noted of the time, by table.
_TIMES = {
    "extraction": ("first_at", "last_at", "due_at", "not_before", "lease_until"),
    "to_extract": ("added_at",),
    "extraction_state": ("since", "waits_until"),
}


class ScriptedFinder:
    """A finder: calls what the test says, and remembers the batches that it was asked for.

    Args:
        answer: to a batch; the default finds a fact in each message of the user, in other words at each try.
    """

    def __init__(self, answer: Callable[[Batch], Extraction] | None = None) -> None:
        self.batches: list[Batch] = []
        self.answer = answer or self.facts_of_all
        self._tries = itertools.count(1)

    def estimate_tokens(self, batch: Batch) -> int:
        return COST

    def find(self, batch: Batch) -> Extraction:
        self.batches.append(batch)
        return self.answer(batch)

    @property
    def sizes(self) -> list[int]:
        """Of the batches."""
        return [len(batch.messages) for batch in self.batches]

    def facts_of_all(self, batch: Batch) -> Extraction:
        """A fact for each message of the user, worded differently at each try."""
        attempt = next(self._tries)
        facts = [
            found(f"The user said, by attempt {attempt}: {message.content}", message.number)
            for message in batch.messages
            if message.source == "user"
        ]
        return extraction(*facts)


def found(text: str, *evidence: int, **more: Any) -> FoundFact:
    fields: dict[str, Any] = {"about": "user", "when": None, "kind": "state", **more}
    return FoundFact(text=text, evidence=evidence, **fields)


def extraction(*facts: FoundFact, **more: Any) -> Extraction:
    fields: dict[str, Any] = {"confirmations": (), "slots": (), "usage": USAGE, **more}
    return Extraction(facts=facts, **fields)


def said(content: str, user_id: str = "u1", source: str = "user", **more: Any) -> MemoryUpdateMessage:
    return MemoryUpdateMessage.model_validate(
        {"user_id": user_id, "content": content, "source": source, "timestamp": 1_712_345_678, **more}
    )


def select(pool: ConnectionPool, statement: str) -> list[Any]:
    with pool.connection() as connection:
        return connection.execute(statement).fetchall()


def pass_time(pool: ConnectionPool, seconds: int) -> None:
    """Let time pass, by putting all that is noted of it so much earlier."""
    with pool.connection() as connection:
        for table, names in _TIMES.items():
            changes = ", ".join(f"{name} = {name} - interval '{seconds} s'" for name in names)
            connection.execute(f"UPDATE {table} SET {changes}")


def run_due(service: ExtractionService) -> list[Outcome]:
    """Extract from all owners who are due now, one batch each."""
    return [service.extract(*lease) for lease in service.tick()]


def run_all(service: ExtractionService, pool: ConnectionPool, rounds: int = 100) -> list[Outcome]:
    """Extract until nothing is pending, while time passes."""
    outcomes: list[Outcome] = []
    for _ in range(rounds):
        if not select(pool, "SELECT FROM extraction WHERE due_at IS NOT NULL"):
            return outcomes
        pass_time(pool, LEASE_S * 4)
        outcomes += run_due(service)
    raise AssertionError(f"something is pending after {rounds} rounds")


def facts_of(pool: ConnectionPool) -> list[str]:
    """What is known now, oldest first."""
    rows = select(
        pool,
        "SELECT content FROM memories m JOIN users u ON u.number = user_number WHERE kind = 'fact' ORDER BY m.number",
    )
    return [content for (content,) in rows]
