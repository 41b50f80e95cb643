"""The outbox of extraction on a real PostgreSQL: what an insertion puts there, and when it is due."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from keepsake_client.protocol import AddData
from psycopg import Connection
from psycopg_pool import ConnectionPool

from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres import rows as postgres_rows
from services.long_term_memory.postgres.pending import BATCH_MESSAGES, BATCH_TOKENS
from services.long_term_memory.postgres.rows import insert_memories, memory_row
from services.long_term_memory.postgres.store import MemoryStore
from tests.integration.scripted_finder import pass_time, said, select

DUE_IN = "SELECT round(extract(epoch FROM due_at - now())) FROM extraction"


def due_in(pool: ConnectionPool) -> float | None:
    ((seconds,),) = select(pool, DUE_IN)
    return None if seconds is None else float(seconds)


@pytest.fixture
def extracted(mem0: Mem0Memory, store: MemoryStore) -> MemoryService:
    """The service where an LLM is configured."""
    return MemoryService(mem0, store, extract=True)


def test_a_message_that_is_indexed_waits_in_the_outbox(extracted: MemoryService, pool: ConnectionPool) -> None:
    """Given two messages of the user and one of the AI, I expect each in the outbox, and counted of their owner."""
    for message in (said("I live in Oslo"), said("Nice.", source="ai"), said("With two cats")):
        extracted.index(message)

    waiting = select(
        pool,
        "SELECT content, from_user, tokens FROM to_extract JOIN memories m ON m.number = memory_number"
        " AND m.user_number = to_extract.user_number ORDER BY memory_number",
    )
    assert waiting == [("I live in Oslo", True, 4), ("Nice.", False, 2), ("With two cats", True, 4)]
    assert select(pool, "SELECT pending, pending_tokens, from_user FROM extraction") == [(3, 10, 2)]


def test_only_new_messages_that_are_indexed_wait(extracted: MemoryService, pool: ConnectionPool) -> None:
    """Given a message that comes again, an addition by request and a batch of a benchmark, I expect only the first."""
    for _ in range(2):
        extracted.index(said("I live in Oslo", message_id="m1"))
    extracted.add("u1", AddData(content="I like tea"), "r1", 1.0)
    extracted.index_many([said("I moved to Lisbon")])

    assert select(pool, "SELECT pending FROM extraction") == [(1,)]
    assert select(pool, "SELECT count(*) FROM to_extract") == [(1,)]


def test_a_message_under_the_id_of_another_waits_too(extracted: MemoryService, pool: ConnectionPool) -> None:
    """Given two messages with one message_id, I expect both: the second is a memory of its own."""
    extracted.index(said("I live in Oslo", message_id="m1"))
    extracted.index(said("I live in Lisbon", message_id="m1"))

    assert select(pool, "SELECT pending FROM extraction") == [(2,)]


def test_each_character_has_an_outbox(extracted: MemoryService, pool: ConnectionPool) -> None:
    """Given messages of a user to two characters, I expect two owners with a message each."""
    for agent in ("luna", "sol"):
        extracted.index(said("Hello", agent_id=agent))

    assert select(pool, "SELECT pending FROM extraction") == [(1,), (1,)]


def test_without_an_llm_nothing_waits(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given no LLM, I expect an indexed message to leave the outbox empty."""
    memories.index(said("I live in Oslo"))

    assert select(pool, "SELECT (SELECT count(*) FROM to_extract), (SELECT count(*) FROM extraction)") == [(0, 0)]


@pytest.mark.parametrize("extract", [False, True])
def test_an_insertion_is_two_statements(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch, extract: bool) -> None:
    """Given an insertion, I expect two statements with the outbox as without, where they are those of before."""
    executed: list[Any] = []
    execute = Connection.execute

    def noted(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        executed.append(query)
        return execute(self, query, *args, **kwargs)

    row = memory_row("11111111-0000-8000-8000-000000000000", [0.1] * 384, {"data": "Hello", "user_id": "u1"})
    with pool.connection() as connection:
        monkeypatch.setattr(Connection, "execute", noted)
        insert_memories(connection, [row], history=True, extract=extract)
        monkeypatch.undo()

    expected = postgres_rows._INSERT_TO_EXTRACT if extract else postgres_rows._INSERT_WITH_HISTORY
    assert executed == [postgres_rows._ADD_OWNERS, expected]
    assert ("extract" in expected) == extract


def test_concurrent_insertions_do_not_deadlock(extracted: MemoryService, pool: ConnectionPool) -> None:
    """Given eight threads that index messages of the same users in different orders, I expect all to be counted."""
    users = [f"u{number}" for number in range(6)]

    def insert(thread: int) -> None:
        random = Random(thread)
        for turn in range(10):
            rows = [
                memory_row(
                    f"{thread:08d}-{turn:04d}-8000-8000-{place:012d}", [0.1] * 384, {"data": "Hi", "user_id": user}
                )
                for place, user in enumerate(random.sample(users, len(users)))
            ]
            with pool.connection() as connection:
                insert_memories(connection, rows, history=True, extract=True)

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(insert, thread) for thread in range(8)]:
            done.result(60)

    assert select(pool, "SELECT pending FROM extraction") == [(80,)] * len(users)


# When they are due


def test_few_messages_are_due_after_silence(extracted: MemoryService, pool: ConnectionPool) -> None:
    """Given a message, I expect it to be due after 600 s, and 600 s after a second one once that is said."""
    extracted.index(said("I live in Oslo"))
    assert due_in(pool) == 600

    pass_time(pool, 300)
    extracted.index(said("With two cats"))
    assert due_in(pool) == 600


def test_messages_are_due_at_an_age_whatever_is_said(extracted: MemoryService, pool: ConnectionPool) -> None:
    """Given messages without silence, I expect them to be due 1,800 s after the first."""
    for content in ("one", "two", "three", "four"):
        extracted.index(said(content))
        pass_time(pool, 500)

    assert due_in(pool) == 1_800 - 4 * 500


def test_a_full_batch_is_due_at_once(extracted: MemoryService, pool: ConnectionPool) -> None:
    """Given as many messages as a batch has, I expect them to be due; the time at which they were stays theirs."""
    for number in range(BATCH_MESSAGES):
        extracted.index(said(f"message {number}"))
    assert due_in(pool) == 0

    pass_time(pool, 100)
    extracted.index(said("one more"))
    assert due_in(pool) == -100


def test_a_long_message_is_due_at_once(extracted: MemoryService, pool: ConnectionPool) -> None:
    """Given a message of as many tokens as a batch has, I expect it to be due."""
    extracted.index(said("word " * BATCH_TOKENS))

    assert due_in(pool) == 0


def test_messages_of_the_ai_alone_are_not_due(extracted: MemoryService, pool: ConnectionPool) -> None:
    """Given many messages of the AI, I expect them not to be due until the user says a word."""
    for number in range(BATCH_MESSAGES):
        extracted.index(said(f"message {number}", source="ai"))
    assert due_in(pool) is None

    extracted.index(said("Hello"))
    assert due_in(pool) == 0
