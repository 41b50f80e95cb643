"""Facts on a real PostgreSQL: stored once, with their evidence, apart from the messages, until others replace them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from keepsake_client.protocol import (
    Memory,
    MemoryListData,
    MemoryListFilters,
    MemoryUpdateData,
    MemoryUpdateMessage,
    SearchData,
)
from psycopg_pool import ConnectionPool

from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_management import MemoryManagement
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.facts import NewFact, insert_facts
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.postgres.store import MemoryStore
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


def save(pool: ConnectionPool, *facts: NewFact, user: str = "u1") -> None:
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
    save(pool, fact("The user lives in Oslo.", said[:1]))

    owned = select(pool, "SELECT kind, content FROM memories JOIN users ON users.number = user_number ORDER BY 1, 2")
    assert owned == [("fact", "The user lives in Oslo."), ("message", OSLO), ("message", LISBON)]


def test_a_fact_that_is_stored_again_is_the_same(pool: ConnectionPool, said: list[int]) -> None:
    """Given the same batch twice, I expect one fact, one history, and each evidence once."""
    for _ in range(2):
        save(pool, fact("The user lives in Oslo.", said))

    assert select(pool, "SELECT count(*) FROM memories") == [(3,)]
    assert select(pool, "SELECT memory_number FROM fact_evidence ORDER BY 1") == [(number,) for number in said]
    of_fact = (
        "SELECT event FROM memory_history JOIN memories m ON m.id::text = memory_id WHERE content LIKE 'The user%'"
    )
    assert select(pool, of_fact) == [("ADD",)]


def test_what_is_replaced_is_superseded(pool: ConnectionPool, said: list[int]) -> None:
    """Given a fact that replaces another, I expect the other among the superseded, with its history and by which."""
    save(pool, fact("The user lives in Oslo.", said[:1]))
    oslo = number_of(pool, "The user lives in Oslo.")

    save(pool, fact("The user lives in Lisbon.", said[1:], replaces=[oslo]))

    lisbon = number_of(pool, "The user lives in Lisbon.")
    kinds = "SELECT kind FROM users JOIN memories m ON user_number = users.number WHERE m.number = "
    assert select(pool, f"{kinds}{oslo}") == [("superseded",)]
    assert select(pool, f"{kinds}{lisbon}") == [("fact",)]
    assert select(pool, "SELECT fact_number, superseded_by FROM superseded_facts") == [(oslo, lisbon)]
    assert select(pool, "SELECT old_memory FROM memory_history WHERE event = 'SUPERSEDE'") == [
        ("The user lives in Oslo.",)
    ]


def test_what_was_said_later_is_not_superseded(pool: ConnectionPool, said: list[int]) -> None:
    """Given an older message that is read last, as in a rebuild after an import, I expect what was said later to
    replace what it says."""
    save(pool, fact("The user lives in Lisbon.", said[1:]))
    older = replace(
        fact("The user lives in Oslo.", said[:1], replaces=[number_of(pool, "The user lives in Lisbon.")]),
        said_at=1_700_000_000.0,
    )

    save(pool, older)

    assert select(
        pool, "SELECT content, kind FROM memories JOIN users u ON u.number = user_number WHERE kind <> 'message'"
    ) == [("The user lives in Lisbon.", "fact"), ("The user lives in Oslo.", "superseded")]
    assert select(
        pool,
        "SELECT o.content, n.content FROM superseded_facts JOIN memories o ON o.number = fact_number"
        " JOIN memories n ON n.number = superseded_by",
    ) == [("The user lives in Oslo.", "The user lives in Lisbon.")]


def test_nothing_of_another_user_is_superseded(pool: ConnectionPool, said: list[int]) -> None:
    """Given a fact that claims to replace another user's, and a message, I expect both as they were."""
    save(pool, fact("The user lives in Oslo.", said[:1]))
    oslo = number_of(pool, "The user lives in Oslo.")

    save(pool, fact("They live in Rome.", said[1:], replaces=[oslo, said[0]]), user="u2")

    assert select(pool, "SELECT count(*) FROM superseded_facts") == [(0,)]


def test_a_search_returns_messages_while_there_are_facts(
    pool: ConnectionPool, said: list[int], memories: MemoryService
) -> None:
    """Given facts beside the messages, I expect the user's messages found as without them."""
    before = memories.search("u1", SearchData(query="Oslo", limit=5, min_score=0))
    save(pool, fact("The user lives in Oslo.", said[:1]))

    after = memories.search("u1", SearchData(query="Oslo", limit=5, min_score=0))

    assert {memory.id for memory in before} <= {memory.id for memory in after}


def search(memories: MemoryService, query: str, **more: Any) -> list[Memory]:
    return memories.search("u1", SearchData(query=query, **{"min_score": 0, "limit": 10, **more}))


def test_a_fact_and_its_message_are_one_result(pool: ConnectionPool, said: list[int], memories: MemoryService) -> None:
    """Given a fact that is worded like the query, I expect it in place of its message, which is its evidence."""
    save(pool, fact("Their home is Oslo.", said[:1]))
    ids = {memory.content: memory.id for memory in search(memories, "cats", filters={"source": "user"})}

    first, *others = search(memories, "Their home is Oslo")

    assert (first.kind, first.content, first.about) == ("fact", "Their home is Oslo.", "user")
    assert (first.metadata["fact_kind"], first.metadata["evidence"]) == ("state", [ids[OSLO]])
    assert [memory.content for memory in others] == [LISBON]


def test_a_message_that_is_better_has_its_facts_with_it(
    pool: ConnectionPool, said: list[int], memories: MemoryService
) -> None:
    """Given a message that says more of what is asked than its facts, I expect these with it, and one result."""
    save(pool, fact("Has two cats.", said[:1]), fact("Lives in Oslo.", said[:1]))

    results = search(memories, "live in Oslo with two cats", limit=1)

    assert [memory.content for memory in results] == [OSLO]
    assert {one["content"] for one in results[0].metadata["facts"]} == {"Has two cats.", "Lives in Oslo."}


def test_two_facts_that_are_better_than_their_message_are_two_results(
    pool: ConnectionPool, said: list[int], memories: MemoryService
) -> None:
    """Given two facts of a message that both answer better, I expect both, and the message in neither's place."""
    save(pool, fact("Weekend hobby chess.", said[:1]), fact("Weekend hobby judo.", said[:1]))

    kinds = [(memory.kind, memory.content) for memory in search(memories, "weekend hobby", limit=2)]

    assert sorted(kinds) == [("fact", "Weekend hobby chess."), ("fact", "Weekend hobby judo.")]


def test_what_is_superseded_comes_back_where_it_is_asked_for(
    pool: ConnectionPool, said: list[int], memories: MemoryService
) -> None:
    """Given a replaced fact, I expect it out and, where it is asked for, behind the new one, with its id and a time."""
    save(pool, fact("Their home is Oslo.", said[:1]))
    oslo = number_of(pool, "Their home is Oslo.")
    save(pool, fact("Their home is Lisbon.", said[1:], replaces=[oslo]))

    without = [memory.content for memory in search(memories, "home")]
    found = {memory.content: memory for memory in search(memories, "home", include_superseded=True)}

    assert "Their home is Oslo." not in without
    new, old = found["Their home is Lisbon."], found["Their home is Oslo."]
    assert old.metadata["superseded_by"] == new.id
    assert old.metadata["superseded_at"] > 1_700_000_000
    assert "superseded_by" not in new.metadata


def test_what_replaces_a_fact_comes_before_its_words(
    pool: ConnectionPool, said: list[int], memories: MemoryService
) -> None:
    """Given an old fact worded like the question, and a new one that is not, I expect the new one first."""
    save(pool, fact("I live in Oslo with two cats.", said[:1], name="old"))
    oslo = number_of(pool, "I live in Oslo with two cats.")
    before = search(memories, "where do I live")[0].content
    save(pool, fact("A flat by the river.", said[1:], replaces=[oslo]))

    results = [memory.content for memory in search(memories, "where do I live")]

    assert before.startswith(OSLO)
    assert results == ["A flat by the river.", OSLO]


@pytest.mark.parametrize(
    "options",
    [
        {"exclude_session": "s1"},
        {"filters": {"session_id": "s2"}},
        {"filters": {"source": "ai"}},
        {"filters": {"since": 1_712_345_679}},
        {"filters": {"speaker": "Anna"}},
    ],
)
def test_a_fact_of_messages_that_are_filtered_out_is_out(
    pool: ConnectionPool, memories: MemoryService, options: dict[str, Any]
) -> None:
    """Given a fact of a message that the search leaves out, I expect the fact left out too."""
    said = MemoryUpdateMessage(
        user_id="u1", content=OSLO, source="user", timestamp=1_712_345_678, meta={"session_id": "s1"}
    )
    memories.index(said)
    save(pool, fact("Their home is Oslo.", [number_of(pool, OSLO)]))

    assert [memory.kind for memory in search(memories, "home Oslo")] == ["fact"]
    assert search(memories, "home Oslo", **options) == []


def test_what_was_just_said_does_not_come_back_as_a_fact(pool: ConnectionPool, memories: MemoryService) -> None:
    """Given a message of just now that is the query, and a fact of it, I expect neither."""
    memories.index(MemoryUpdateMessage(user_id="u1", content=OSLO, source="user", timestamp=1_712_345_678))
    save(pool, fact("Their home is Oslo.", [number_of(pool, OSLO)]))
    asked = SearchData(query=OSLO, min_score=0)

    assert memories.search("u1", asked, now=1_712_345_679) == []
    assert len(memories.search("u1", asked, now=1_712_999_999)) == 1


def test_facts_are_found_without_an_embedding_and_explained(
    pool: ConnectionPool, said: list[int], memories: MemoryService
) -> None:
    """Given a search past its time to embed, I expect the fact by its words, and its parts explained."""
    save(pool, fact("Weekend hobby chess.", said[:1]))
    memories._latency_after_embedding.record(1_000.0)
    asked = SearchData(query="weekend hobby", explain=True)

    found = memories.search("u1", asked, deadline=memories._clock() + 60)

    assert (found.partial, [memory.content for memory in found]) == (True, ["Weekend hobby chess."])
    assert set(found[0].metadata["score_parts"]) == {"meaning", "words", "session", "utterance"}


def test_facts_of_several_users_are_ranked_as_one(
    pool: ConnectionPool, said: list[int], memories: MemoryService
) -> None:
    """Given a fact of another user, I expect it in a search of both, and in none of the first alone."""
    memories.index(MemoryUpdateMessage(user_id="u2", content="Hi from Rome", source="user", timestamp=1_712_345_678))
    save(pool, fact("Weekend hobby chess.", [number_of(pool, "Hi from Rome")]), user="u2")

    alone, both = (search(memories, "weekend hobby", also=also) for also in ((), ("u2",)))

    assert "fact" not in [memory.kind for memory in alone]
    assert (both[0].kind, both[0].user_id, both[0].content) == ("fact", "u2", "Weekend hobby chess.")


def test_facts_of_a_user_with_very_many_messages_are_read(
    pool: ConnectionPool, mem0: Mem0Memory, store: MemoryStore
) -> None:
    """Given a user of whose messages a sample is read, I expect the facts all the same."""
    service = MemoryService(mem0, store, exact_limit=30)
    turns = [
        MemoryUpdateMessage(user_id="u1", content=f"We talked of tea {n}", source="user", timestamp=1_700_000_000 + n)
        for n in range(100)
    ]
    service.index_many(turns)
    save(pool, fact("Weekend hobby chess.", [number_of(pool, "We talked of tea 3")]))

    for _ in range(2):  # the first search learns that there are many
        assert search(service, "weekend hobby")[0].content == "Weekend hobby chess."


def test_lists_are_of_one_kind_and_a_fact_can_be_shown(
    pool: ConnectionPool, said: list[int], memories: MemoryService
) -> None:
    """Given messages, a fact and a replaced one, I expect each kind in its list, and a fact with its history."""
    save(pool, fact("Their home is Oslo.", said[:1]))
    oslo = number_of(pool, "Their home is Oslo.")
    save(pool, fact("Their home is Lisbon.", said[1:], replaces=[oslo]))
    management = MemoryManagement(pool, memories.writer)

    def listed(kind: str) -> list[str]:
        query = MemoryListData(filters=MemoryListFilters.model_validate({"kind": kind}))
        return [memory.content for memory in management.page("u1", query).memories]

    shown, history = management.get("u1", fact("Their home is Oslo.", []).id)

    assert [listed(kind) for kind in ("message", "fact", "superseded")] == [
        [LISBON, OSLO],
        ["Their home is Lisbon."],
        ["Their home is Oslo."],
    ]
    assert [change.event for change in history] == ["ADD", "SUPERSEDE"]
    assert (shown.kind, len(shown.metadata["evidence"])) == ("fact", 1)
    assert "superseded_by" in shown.metadata


def test_what_is_said_of_a_fact_cannot_be_written_as_metadata(
    pool: ConnectionPool, said: list[int], memories: MemoryService
) -> None:
    """Given metadata that claims that a fact was replaced, I expect the rest of it, and the fact's own."""
    save(pool, fact("Their home is Oslo.", said[:1]))
    claims = {"superseded_by": "x", "superseded_at": 1, "fact_kind": "plan", "evidence": [], "checked": True}
    update = MemoryUpdateData(id=fact("Their home is Oslo.", []).id, metadata=claims)

    updated = MemoryManagement(pool, memories.writer).update("u1", update, 1_712_400_000.0)

    assert updated.metadata.keys() & claims.keys() == {"fact_kind", "evidence", "checked"}
    assert (updated.metadata["fact_kind"], len(updated.metadata["evidence"])) == ("state", 1)
