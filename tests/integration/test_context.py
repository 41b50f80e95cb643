"""The context of a reply, on a real PostgreSQL: profile, matching memories, and a recap of the last sessions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from keepsake_client.context import render
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import ContextData, MemoryUpdateMessage, SearchData
from psycopg_pool import ConnectionPool

from services.long_term_memory.context_service import ContextResult, ContextService
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.background import BackgroundReader
from services.long_term_memory.postgres.facts import NewFact, insert_facts
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.profile_service import ProfileService
from services.runtime.errors import Expired
from tests.integration.conftest import WordEmbedder

#: 2024-04-05, 19:34 in UTC.
NOW = 1_712_345_678.0
DAY = 86_400.0


@pytest.fixture
def contexts(memories: MemoryService, pool: ConnectionPool) -> ContextService:
    return ContextService(memories, BackgroundReader(pool))


def say(memories: MemoryService, session: str | None, at: float, *contents: str, **fields: Any) -> None:
    """Messages of u1, by turns the user's and the AI's, ten seconds apart."""
    memories.index_many(
        [
            MemoryUpdateMessage.model_validate(
                {
                    "user_id": "u1",
                    "content": content,
                    "source": "ai" if place % 2 else "user",
                    "timestamp": at + 10 * place,
                    "meta": {} if session is None else {"session_id": session},
                    **fields,
                }
            )
            for place, content in enumerate(contents)
        ]
    )


def note(pool: ConnectionPool, content: str, session: str, at: float, agent: str = "", **fields: Any) -> None:
    """A fact of u1, found in any message."""
    with pool.connection() as connection:
        row = connection.execute("SELECT number, md5(%s)::uuid::text FROM memories LIMIT 1", (content,)).fetchone()
        assert row
        fact = {"kind": "state", "about": "user", "when": None, "source": "user", "speaker": None, **fields}
        insert_facts(
            connection,
            Owner("u1", agent),
            [
                NewFact(
                    id=row[1],
                    content=content,
                    vector=WordEmbedder().embed(content),
                    said_at=at,
                    session_id=session,
                    evidence=[row[0]],
                    **fact,
                )
            ],
        )


def ask(contexts: ContextService, query: str = "tea", **fields: Any) -> ContextResult:
    return contexts.context("u1", ContextData(query=query, **fields), now=NOW)


def recapped(recap: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """How many sessions ago each line was said, and the line."""
    return [(line["sessions_ago"], line.get("fact") or line["quote"]) for line in recap]


def test_of_an_unknown_user_there_is_no_context(contexts: ContextService) -> None:
    """Given a user of whom nothing is known, I expect an empty text, empty parts, and nothing missing."""
    result = ask(contexts)

    assert (result.text, result.memories, result.partial) == ("", [], False)
    assert result.parts.model_dump() == {"profile": {}, "memories": [], "recap": []}


def test_a_context_has_profile_memories_and_recap(
    contexts: ContextService, memories: MemoryService, pool: ConnectionPool
) -> None:
    """Given a profile and a session of before, I expect both, and what answers, with dates and who said it."""
    ProfileService(pool).update("u1", {"name": "Anna"})
    say(memories, "s1", NOW - DAY, "hello there", "hi Anna", "I drink green tea", "noted", "bye now", "see you")

    result = ask(contexts, "which tea", session_id="s2", limit=1)

    assert result.parts.profile == {"name": "Anna"}
    assert result.parts.memories == [{"date": "2024-04-04 19:34 UTC", "said_by": "user", "quote": "I drink green tea"}]
    assert [memory.content for memory in result.memories] == ["I drink green tea"]
    assert recapped(result.parts.recap) == [(1, "hello there"), (1, "hi Anna"), (1, "bye now"), (1, "see you")]
    assert result.text == render(result.parts, 4_000).text


def test_the_memories_are_those_of_a_search(contexts: ContextService, memories: MemoryService) -> None:
    """Given the fields of a search, I expect its memories, with their scores."""
    say(memories, "s1", NOW - DAY, "I drink green tea", "tea is fine", "black tea too", "tea tea tea")
    fields = {"query": "green tea", "limit": 2, "min_score": 0, "filters": {"source": "user"}}

    found = contexts.context("u1", ContextData.model_validate(fields), now=NOW)

    assert found.memories
    assert found.memories == list(memories.search("u1", SearchData.model_validate(fields), now=NOW))


def test_the_recap_tells_the_facts_of_the_last_sessions(
    contexts: ContextService, memories: MemoryService, pool: ConnectionPool
) -> None:
    """Given facts of four sessions, I expect those of the last three, the last one first, and none of the present."""
    say(memories, "s4", NOW - 3_600, "how are you", "fine")
    for place, session in enumerate(["s1", "s2", "s3", "s4", "present"]):
        say(memories, session, NOW - (5 - place) * DAY, f"line of {session}")
        note(pool, f"Fact of {session}.", session, NOW - (5 - place) * DAY, when="2024-04", about="Anna")

    result = ask(contexts, "nothing of it", session_id="present")

    assert recapped(result.parts.recap) == [(1, "Fact of s4."), (2, "Fact of s3."), (3, "Fact of s2.")]
    line = result.parts.recap[0]
    assert (line["when"], line["about"], line["said_by"]) == ("2024-04", "Anna", "user")


def test_of_a_last_session_without_facts_the_recap_tells_its_lines(
    contexts: ContextService, memories: MemoryService, pool: ConnectionPool
) -> None:
    """Given a last session that no facts were found in yet, I expect its lines, then the facts of the one before."""
    say(memories, "s1", NOW - 2 * DAY, "my cat is Miso")
    note(pool, "The user's cat is Miso.", "s1", NOW - 2 * DAY)
    say(memories, "s2", NOW - DAY, "I was at the sea", "nice")

    result = ask(contexts, "nothing of it", session_id="present")

    assert recapped(result.parts.recap) == [(1, "I was at the sea"), (1, "nice"), (2, "The user's cat is Miso.")]


def test_the_present_session_is_found_and_not_recapped(contexts: ContextService, memories: MemoryService) -> None:
    """Given a long present session, I expect what it says among the memories, and the one before in the recap."""
    say(memories, "before", NOW - DAY, "good night")
    say(memories, "present", NOW - 7_200, *[f"tea number {place}" for place in range(50)])

    named = ask(contexts, "tea number 7", session_id="present", limit=1)
    unnamed = ask(contexts, "tea number 7", limit=1)
    excluded = ask(contexts, "tea number 7", exclude_session="present")

    assert [memory.content for memory in named.memories] == ["tea number 7"]
    assert recapped(named.parts.recap) == [(1, "good night")]
    assert [text for _, text in recapped(unnamed.parts.recap)][-1] == "tea number 49"
    assert (excluded.memories, recapped(excluded.parts.recap)) == ([], [(1, "good night")])


def test_messages_of_today_without_a_session_are_the_present_one(
    contexts: ContextService, memories: MemoryService
) -> None:
    """Given a publisher that names no sessions, I expect a recap of an earlier day, and not of today."""
    say(memories, None, NOW - DAY, "yesterday's talk")
    say(memories, None, NOW - 60, "today's talk", "indeed")

    assert recapped(ask(contexts, "nothing of it").parts.recap) == [(1, "yesterday's talk")]


def test_a_memory_is_in_the_context_once(contexts: ContextService, memories: MemoryService) -> None:
    """Given a last line that answers, and the message itself indexed already, I expect neither of them in the recap."""
    say(memories, "s1", NOW - DAY, "hello there", "hi", "I drink green tea")
    say(memories, None, NOW - DAY + 100, "which tea", meta={"session_id": "s1"})

    result = ask(contexts, "which tea", session_id="s2", limit=1)

    assert [memory.content for memory in result.memories] == ["I drink green tea"]
    assert recapped(result.parts.recap) == [(1, "hello there"), (1, "hi")]


def test_a_characters_context_is_its_own(
    contexts: ContextService, memories: MemoryService, pool: ConnectionPool
) -> None:
    """Given profiles and facts of two characters, I expect those of the one that is asked for, and the shared ones."""
    profiles = ProfileService(pool)
    profiles.update("u1", {"name": "Anna", "home": "Oslo"})
    for agent, name in (("luna", "Annie"), ("sol", "Boss")):
        profiles.update("u1", {"name": name}, agent_id=agent)
        say(memories, "s1", NOW - DAY, f"said to {agent}", agent_id=agent)
        note(pool, f"Fact of {agent}.", "s1", NOW - DAY, agent=agent)
    note(pool, "Shared fact.", "s1", NOW - DAY)

    of_luna = ask(contexts, "another matter", agent_id="luna")
    shared = ask(contexts, "another matter")

    assert of_luna.parts.profile == {"name": "Annie", "home": "Oslo"}
    assert {text for _, text in recapped(of_luna.parts.recap)} == {"Fact of luna.", "Shared fact."}
    assert shared.parts.profile == {"name": "Anna", "home": "Oslo"}
    assert {text for _, text in recapped(shared.parts.recap)} == {"Shared fact."}


def test_nothing_of_another_user_is_in_a_context(contexts: ContextService, memories: MemoryService) -> None:
    """Given another user's session, searched too by `also`, I expect no recap of it."""
    say(memories, "s1", NOW - DAY, "I drink green tea", user_id="u2")

    alone, also = ask(contexts), ask(contexts, also=["u2"])

    assert (alone.text, also.parts.recap) == ("", [])
    assert [memory.user_id for memory in also.memories] == ["u2"]


def test_superseded_facts_are_in_no_recap(
    contexts: ContextService, memories: MemoryService, pool: ConnectionPool
) -> None:
    """Given a fact that another replaced, I expect the other alone."""
    say(memories, "s1", NOW - DAY, "moved to Lisbon")
    note(pool, "The user lives in Oslo.", "s1", NOW - DAY)
    with pool.connection() as connection:
        row = connection.execute("SELECT number FROM memories WHERE content LIKE '%Oslo.'").fetchone()
    note(pool, "The user lives in Lisbon.", "s1", NOW - DAY, replaces=list(row or ()))

    assert recapped(ask(contexts, "nothing of it").parts.recap) == [(1, "The user lives in Lisbon.")]


@pytest.mark.parametrize("meta", [{}, {"facts": "none"}, {"facts": [7, {"id": []}]}])
def test_a_fact_of_a_message_that_is_quoted_is_not_recapped(
    contexts: ContextService, memories: MemoryService, pool: ConnectionPool, meta: dict[str, Any]
) -> None:
    """Given a message that answers, and its fact, I expect the message alone, whatever `facts` its publisher sends."""
    say(memories, None, NOW - DAY, "I drink green tea with milk", meta={"session_id": "s1", **meta})
    note(pool, "Drinks green tea.", "s1", NOW - DAY)

    parts = ask(contexts, "I drink green tea with milk?", min_score=0).parts

    assert [quote.get("quote") for quote in parts.memories] == ["I drink green tea with milk"]
    assert parts.recap == []


def test_without_time_there_are_memories_alone(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given that profile and recap take longer than is left, I expect the memories, and `partial`."""
    ProfileService(pool).update("u1", {"name": "Anna"})
    say(memories, "s1", NOW - DAY, "hello there", "I drink green tea")
    contexts = ContextService(memories, BackgroundReader(pool))
    contexts._latency.record(500.0)  # each read so far: with SMOOTHING 100 s, of which 2.5 times are kept free
    asked = ContextData(query="green tea")

    hurried = contexts.context("u1", asked, now=NOW, deadline=time.time() + 60)
    patient = contexts.context("u1", asked, now=NOW)

    assert (hurried.partial, hurried.parts.profile, hurried.parts.recap) == (True, {}, [])
    assert [quote["quote"] for quote in hurried.parts.memories] == ["I drink green tea"]
    assert (patient.partial, patient.parts.profile) == (False, {"name": "Anna"})


def test_a_context_after_its_deadline_is_expired(contexts: ContextService) -> None:
    """Given a deadline that has passed, I expect the error of a search."""
    with pytest.raises(Expired):
        contexts.context("u1", ContextData(query="tea"), now=NOW, deadline=time.time() - 1)


def test_a_context_of_a_database_that_is_gone_is_unavailable(contexts: ContextService, pool: ConnectionPool) -> None:
    """Given a closed pool, I expect `Unavailable`, as of a search."""
    pool.close()

    with pytest.raises(Unavailable):
        ask(contexts)
