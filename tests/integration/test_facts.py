"""Facts on a real PostgreSQL: stored once, with their evidence, apart from the messages, until others replace them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from keepsake_client.protocol import MemoryUpdateMessage, SearchData
from psycopg_pool import ConnectionPool

from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.facts import NewFact, insert_facts
from services.long_term_memory.postgres.scope import Owner
from tests.integration.conftest import WordEmbedder

OSLO, LISBON = "I live in Oslo with two cats", "I moved to Lisbon last week"


def fact(content: str, evidence: Sequence[int], *, replaces: Sequence[int] = (), name: str | None = None) -> NewFact:
    """A fact that the user said of themselves."""
    return NewFact(
        id=str(uuid.uuid5(uuid.NAMESPACE_OID, name or content)),
        content=content,
        vector=WordEmbedder().embed(content),
        kind="state",
        about="user",
        when=None,
        said_at=1_712_345_678.0,
        source="user",
        session_id=None,
        speaker=None,
        evidence=evidence,
        replaces=replaces,
    )


def store(pool: ConnectionPool, *facts: NewFact, user: str = "u1") -> None:
    with pool.connection() as connection:
        insert_facts(connection, Owner(user), facts)


def select(pool: ConnectionPool, statement: str) -> list[Any]:
    with pool.connection() as connection:
        return connection.execute(statement).fetchall()


def number_of(pool: ConnectionPool, content: str) -> int:
    with pool.connection() as connection:
        row = connection.execute("SELECT number FROM memories WHERE content = %s", (content,)).fetchone()
    assert row
    return int(row[0])


@pytest.fixture
def said(memories: MemoryService, pool: ConnectionPool) -> list[int]:
    """The numbers of two messages of u1."""
    events = [
        MemoryUpdateMessage(user_id="u1", content=content, source="user", timestamp=1_712_345_678 + place)
        for place, content in enumerate((OSLO, LISBON))
    ]
    memories.index_many(events)
    return [number_of(pool, OSLO), number_of(pool, LISBON)]


def test_facts_stand_apart_from_the_messages(pool: ConnectionPool, said: list[int], memories: MemoryService) -> None:
    """Given a fact of a message, I expect it to be of an owner of its own, and not among the messages."""
    store(pool, fact("The user lives in Oslo.", said[:1]))

    owned = select(pool, "SELECT kind, content FROM memories JOIN users ON users.number = user_number ORDER BY 1, 2")
    assert owned == [("fact", "The user lives in Oslo."), ("message", OSLO), ("message", LISBON)]


def test_a_fact_that_is_stored_again_is_the_same(pool: ConnectionPool, said: list[int]) -> None:
    """Given the same batch twice, I expect one fact, one history, and each evidence once."""
    for _ in range(2):
        store(pool, fact("The user lives in Oslo.", said))

    assert select(pool, "SELECT count(*) FROM memories") == [(3,)]
    assert select(pool, "SELECT memory_number FROM fact_evidence ORDER BY 1") == [(number,) for number in said]
    of_fact = (
        "SELECT event FROM memory_history JOIN memories m ON m.id::text = memory_id WHERE content LIKE 'The user%'"
    )
    assert select(pool, of_fact) == [("ADD",)]


def test_what_is_replaced_is_superseded(pool: ConnectionPool, said: list[int]) -> None:
    """Given a fact that replaces another, I expect the other among the superseded, with its history and by which."""
    store(pool, fact("The user lives in Oslo.", said[:1]))
    oslo = number_of(pool, "The user lives in Oslo.")

    store(pool, fact("The user lives in Lisbon.", said[1:], replaces=[oslo]))

    lisbon = number_of(pool, "The user lives in Lisbon.")
    kinds = "SELECT kind FROM users JOIN memories m ON user_number = users.number WHERE m.number = "
    assert select(pool, f"{kinds}{oslo}") == [("superseded",)]
    assert select(pool, f"{kinds}{lisbon}") == [("fact",)]
    assert select(pool, "SELECT fact_number, superseded_by FROM superseded_facts") == [(oslo, lisbon)]
    assert select(pool, "SELECT old_memory FROM memory_history WHERE event = 'SUPERSEDE'") == [
        ("The user lives in Oslo.",)
    ]


def test_nothing_of_another_user_is_superseded(pool: ConnectionPool, said: list[int]) -> None:
    """Given a fact that claims to replace another user's, and a message, I expect both as they were."""
    store(pool, fact("The user lives in Oslo.", said[:1]))
    oslo = number_of(pool, "The user lives in Oslo.")

    store(pool, fact("They live in Rome.", said[1:], replaces=[oslo, said[0]]), user="u2")

    assert select(pool, "SELECT count(*) FROM superseded_facts") == [(0,)]


def test_a_search_returns_messages_while_there_are_facts(
    pool: ConnectionPool, said: list[int], memories: MemoryService
) -> None:
    """Given facts beside the messages, I expect the user's messages found as without them."""
    before = memories.search("u1", SearchData(query="Oslo", limit=5, min_score=0))
    store(pool, fact("The user lives in Oslo.", said[:1]))

    after = memories.search("u1", SearchData(query="Oslo", limit=5, min_score=0))

    assert {memory.id for memory in before} <= {memory.id for memory in after}
