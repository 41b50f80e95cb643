"""Users with more memories than a search reads: the best and newest segments of their conversation."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import MemoryUpdateMessage, SearchData
from psycopg_pool import ConnectionPool

from services.long_term_memory.embeddings.calibration import calibrate
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.reader import SAMPLE
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval import candidates
from tests.integration.conftest import WordEmbedder
from tests.support import wait_until

LIMIT = 600
SESSIONS, TURNS = 50, 30
TOPICS = ["tea", "cats", "trains", "rain", "chess", "bread", "stars", "boats", "paint", "bikes"]
THEIRS = "boats and cats, they said"


@pytest.fixture
def reads(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is read from the store, as it is read: how, and how many memories."""
    seen: list[tuple[str, int]] = []
    columns, segments = store.columns.read, store.columns.read_segments

    def read(*args: Any, **options: Any) -> Any:
        found = columns(*args, **options)
        seen.append(("sample" if options.get("sample") else "all", len(found)))
        return found

    def read_segments(*args: Any, **options: Any) -> Any:
        found = segments(*args, **options)
        seen.append(("segments", len(found)))
        return found

    monkeypatch.setattr(store.columns, "read", read)
    monkeypatch.setattr(store.columns, "read_segments", read_segments)
    return seen


@pytest.fixture(scope="module")
def filled_template(create_database: Callable[..., str], migrated_template: str) -> str:
    """The name of a database with a user u1 of 1,500 memories, each session about two topics, and a quiet u2."""
    url = create_database(migrated_template)
    rng = random.Random(1)
    turns = [
        MemoryUpdateMessage(
            user_id="u1",
            content=f"{TOPICS[session % 10]} {TOPICS[session // 10]} {rng.random()} in turn {turn} of {session}",
            source="ai" if turn % 2 else "user",
            timestamp=1_700_000_000 + 86_400 * session + turn,
            meta={"session_id": f"s{session}"},
            message_id=f"{session}-{turn}",
        )
        for session in range(SESSIONS)
        for turn in range(TURNS)
    ]
    with open_pool(url, 2) as pool:
        store = MemoryStore(pool)
        service = MemoryService(Mem0Memory(WordEmbedder(), store, PostgresHistory(pool), None), store)
        service.index_many(turns)
        service.index_many([MemoryUpdateMessage(user_id="u2", content=THEIRS, source="user", timestamp=1_700_000_000)])
    return psycopg.conninfo.conninfo_to_dict(url)["dbname"]  # type: ignore[return-value]


@pytest.fixture
def database(create_database: Callable[..., str], filled_template: str) -> str:
    """A copy of that database, of this test alone."""
    return create_database(filled_template)


@pytest.fixture
def sampling(mem0: Mem0Memory, store: MemoryStore) -> MemoryService:
    """A service where 600 memories are many."""
    return MemoryService(mem0, store, calibrate(mem0.embedding_model)[0], exact_limit=LIMIT)


@pytest.fixture
def in_parts(mem0: Mem0Memory, store: MemoryStore) -> MemoryService:
    """A service where all of the 1,500 are read, and a part of a conversation is 100."""
    return MemoryService(mem0, store, calibrate(mem0.embedding_model)[0], part_size=100)


def contents(service: MemoryService, query: str, user_id: str = "u1", **more: Any) -> list[str]:
    search = SearchData(query=query, **{"min_score": 0.0, "limit": 10, **more})
    return [memory.content for memory in service.search(user_id, search)]


def test_no_more_is_read_than_the_limit(sampling: MemoryService, reads: list[tuple[str, int]]) -> None:
    """Given a user with more memories than the limit, I expect a search to read a sample and parts, not all."""
    contents(sampling, "what about cats")
    reads.clear()
    contents(sampling, "what about chess")

    assert [how for how, _ in reads] == ["sample", "segments"]
    assert sum(number for _, number in reads) < LIMIT


def test_a_user_within_the_limit_is_read_once(sampling: MemoryService, reads: list[tuple[str, int]]) -> None:
    """Given a user with few memories beside one with many, I expect one read, of all they said."""
    contents(sampling, "what about tea", "u2")

    assert reads == [("all", 1)]


def test_a_long_conversation_is_read_in_parts_the_next_time(
    in_parts: MemoryService, reads: list[tuple[str, int]]
) -> None:
    """Given a user whose conversation was long, I expect its parts to be read at once, and the same to be found."""
    first = contents(in_parts, "boats and cats", limit=100)
    again = contents(in_parts, "boats and cats", limit=100)

    assert reads == [("all", SESSIONS * TURNS), ("segments", SESSIONS * TURNS)]
    assert again == first


def test_the_parts_are_the_whole_in_its_order(store: MemoryStore) -> None:
    """Given cuts in the midst of sessions, I expect every memory once, in the order of the conversation."""
    whole = store.columns.read(Owner("u1"), [1.0] * 384)
    places = candidates._places(whole, slice(17, None, 101))
    parts = store.columns.read_segments(
        Owner("u1"), [1.0] * 384, list(pairwise([candidates._BEGINNING, *places, candidates._END]))
    )

    assert parts.number.tolist() == whole.number.tolist()
    assert parts.cosine.tolist() == whole.cosine.tolist()
    assert parts.terms.tolist() == whole.terms.tolist()


def test_one_connection_is_enough_for_the_parts(database: str) -> None:
    """Given a pool whose other connections are all taken, I expect the halves one after the other, not a deadlock."""
    with open_pool(database, 1) as pool:
        store = MemoryStore(pool)
        place = candidates._places(store.columns.read(Owner("u1"), None))[700]

        parts = store.columns.read_segments(
            Owner("u1"), None, [(candidates._BEGINNING, place), (place, candidates._END)]
        )

    assert len(parts) == SESSIONS * TURNS


def test_a_failed_half_fails_the_search(in_parts: MemoryService, database: str) -> None:
    """Given that one of the two connections dies as both read, I expect the search to fail as if its only one had."""
    reading_now = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND query LIKE '%FROM unnest(%' ORDER BY query_start"
    )
    contents(in_parts, "what about cats")
    with ThreadPoolExecutor() as searches, psycopg.connect(database, autocommit=True) as watch:
        with psycopg.connect(database) as lock:
            lock.execute("LOCK memories IN ACCESS EXCLUSIVE MODE")
            search = searches.submit(contents, in_parts, "what about cats")
            wait_until(lambda: len(watch.execute(reading_now).fetchall()) == 2, description="both halves to be read")
            [(first,), _] = watch.execute(reading_now).fetchall()
            watch.execute("SELECT pg_terminate_backend(%s)", (first,))
        with pytest.raises(Unavailable):
            search.result()


def test_what_was_said_and_deleted_since_the_last_search_counts(in_parts: MemoryService, pool: ConnectionPool) -> None:
    """Given a long conversation that was cut before, I expect what is new in it, and not what is gone."""
    gone = contents(in_parts, "boats and cats")[0]
    said = [
        MemoryUpdateMessage(
            user_id="u1",
            content=f"my violet giraffe, said the {n}th",
            source="user",
            timestamp=1_600_000_000 + 20_000_000 * n,
            meta={"session_id": f"new {n}"},
        )
        for n in range(20)
    ]
    in_parts.index_many(said)
    with pool.connection() as connection:
        connection.execute("DELETE FROM memories WHERE content = %s", (gone,))

    assert set(contents(in_parts, "my violet giraffe", limit=20)) == {update.content for update in said}
    assert gone not in contents(in_parts, "boats and cats", limit=100)


def test_a_user_who_outgrows_the_limit_is_read_in_segments(
    mem0: Mem0Memory, store: MemoryStore, reads: list[tuple[str, int]]
) -> None:
    """Given a long conversation that was cut before and then passed the limit, I expect a sample to be read."""
    weights = calibrate(mem0.embedding_model)[0]
    service = MemoryService(mem0, store, weights, exact_limit=SESSIONS * TURNS, part_size=100)
    contents(service, "what about cats")
    more = [MemoryUpdateMessage(user_id="u1", content=f"{n}", source="user", timestamp=n) for n in range(20)]
    service.index_many(more)
    contents(service, "what about cats")

    assert [how for how, _ in reads] == ["all", "segments", "sample", "segments"]


def test_the_session_about_the_topic_is_found(sampling: MemoryService) -> None:
    """Given a question about what one session was about, I expect what is found to be of that session."""
    found = contents(sampling, "boats and cats")

    assert all(content.endswith("of 17") for content in found), found


def test_the_newest_message_is_found(sampling: MemoryService) -> None:
    """Given something new in the session that goes on, I expect it found, although no sample has seen it."""
    sampling.index(
        MemoryUpdateMessage(
            user_id="u1",
            content="my locker is number 7781",
            source="user",
            timestamp=1_700_000_000 + 86_400 * (SESSIONS - 1) + TURNS,
            meta={"session_id": f"s{SESSIONS - 1}"},
        )
    )

    assert contents(sampling, "which locker is mine?")[0] == "my locker is number 7781"


def test_memories_of_other_users_are_not_read(sampling: MemoryService) -> None:
    """Given another user with the same words, I expect none of theirs, in any part of what is read."""
    assert THEIRS not in contents(sampling, "boats and cats", limit=100)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"session_id": "s33"}, {33}),
        ({"since": 1_700_000_000 + 86_400 * 48}, {48, 49}),
        ({"until": 1_700_000_000 + 86_400}, {0, 1}),
        ({"since": 1_700_000_000 + 86_400 * 7, "until": 1_700_000_000 + 86_400 * 8 - 1}, {7}),
    ],
    ids=str,
)
def test_a_filter_that_matches_few_is_exact(
    sampling: MemoryService, filters: dict[str, Any], expected: set[int]
) -> None:
    """Given a filter for a session or a time, I expect all that it leaves to be ranked, whatever it is about."""
    found = contents(sampling, "what about the weather", filters=filters, limit=100)

    assert {int(content.split()[-1]) for content in found} == expected
    assert len(found) == sum(TURNS if session != 1 or len(expected) == 1 else 1 for session in expected)


def test_a_filter_that_matches_many_holds(sampling: MemoryService) -> None:
    """Given a filter that leaves more than the limit, I expect nothing that it does not leave."""
    found = contents(sampling, "boats and cats", filters={"since": 1_700_000_000 + 86_400 * 20}, limit=100)

    assert min(int(content.split()[-1]) for content in found) >= 20


def test_the_other_side_can_be_asked_for(sampling: MemoryService) -> None:
    """Given a filter for the AI's words, I expect those of the sessions that are about it."""
    sources = {
        memory.source
        for memory in sampling.search(
            "u1",
            SearchData(query="boats and cats", filters={"source": "ai"}, min_score=0),
        )
    }

    assert sources == {"ai"}


def test_who_forgets_much_is_read_whole_again(
    sampling: MemoryService, reads: list[tuple[str, int]], pool: ConnectionPool
) -> None:
    """Given that most of the memories are deleted, I expect one read of all again."""
    contents(sampling, "what about cats")
    with pool.connection() as connection:
        connection.execute("DELETE FROM memories WHERE number > 150")
    contents(sampling, "what about cats")
    reads.clear()
    contents(sampling, "what about cats")

    assert reads == [("all", 150)]


def test_a_sample_holds_both_sides(sampling: MemoryService, store: MemoryStore) -> None:
    """Given a user and an AI who take turns, I expect both in the sample."""
    from_ai = store.columns.read(Owner("u1"), None, sample=True).from_ai

    assert (len(from_ai), set(from_ai.tolist())) == (SESSIONS * TURNS // SAMPLE, {True, False})


def test_the_sample_has_an_index_of_its_own(sampling: MemoryService, pool: ConnectionPool) -> None:
    """Given many memories, I expect the sample to be read without the rest."""
    with pool.connection() as connection:
        connection.execute("VACUUM ANALYZE memories")
        plan = connection.execute(
            "EXPLAIN SELECT head, terms, vector FROM memories WHERE user_number = 1"
            " AND user_hash = (SELECT user_hash FROM users WHERE number = 1) AND number % 7 = 0"
        ).fetchall()
        sample = connection.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'memories_sample'::regclass"
        ).fetchall()

    assert any(name in line for (line,) in plan for (name,) in sample), plan
