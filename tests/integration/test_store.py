"""The store on a real PostgreSQL: Mem0's own calls work on it, and storing an event is idempotent."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier
from typing import Any

import numpy as np
import psycopg
import pytest
from keepsake_client.protocol import AddData, MemoryUpdateMessage, SearchData, SearchFilters, Speaker
from psycopg_pool import ConnectionPool

from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.rows import MAX_TERMS, TRAITS
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.columns import hashed, hashed_terms
from tests.integration.conftest import WordEmbedder
from tests.support import wait_until

THREADS = 8
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp()


def said(content: str, user_id: str = "u1", **more: Any) -> MemoryUpdateMessage:
    return MemoryUpdateMessage(**{"user_id": user_id, "content": content, "source": "user", "timestamp": NOON, **more})


def rows(pool: ConnectionPool, columns: str = "content", table: str = "memories") -> list[tuple[Any, ...]]:
    with pool.connection() as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY number").fetchall()


def keep(mem0: Mem0Memory, *contents: str, user_id: str = "u1", **metadata: Any) -> list[str]:
    """Have Mem0 itself store texts; their ids."""
    return [
        mem0.add(content, user_id=user_id, infer=False, metadata=metadata or None)["results"][0]["id"]
        for content in contents
    ]


def texts(found: dict[str, Any]) -> list[str]:
    return [memory["memory"] for memory in found["results"]]


# Mem0's own calls


def test_mem0_finds_the_nearest_first(mem0: Mem0Memory) -> None:
    """Given texts that Mem0 stored, I expect its search to find the nearest first."""
    keep(mem0, "the train leaves at nine", "my cat is called Tofu")

    assert texts(mem0.search("what is my cat called", filters={"user_id": "u1"}))[0] == "my cat is called Tofu"


def test_mem0_searches_one_user_alone(mem0: Mem0Memory) -> None:
    """Given two users with the same words, I expect Mem0's search for one of them to find theirs alone."""
    keep(mem0, "green tea")
    keep(mem0, "green tea of another", user_id="u2")

    assert texts(mem0.search("green tea", filters={"user_id": "u1"})) == ["green tea"]


def test_mem0_lists_oldest_first(mem0: Mem0Memory) -> None:
    """Given texts of two users, I expect Mem0's get_all to list those of one, oldest first."""
    keep(mem0, "one", "two", "three")
    keep(mem0, "four", user_id="u2")

    assert texts(mem0.get_all(filters={"user_id": "u1"})) == ["one", "two", "three"]


def test_mem0_lists_no_more_than_asked(mem0: Mem0Memory) -> None:
    """Given a top_k, I expect as many."""
    keep(mem0, "one", "two", "three")

    assert texts(mem0.get_all(filters={"user_id": "u1"}, top_k=2)) == ["one", "two"]


def test_mem0_gets_one(mem0: Mem0Memory) -> None:
    """Given an id, I expect Mem0's get to return the memory with its user and what else it was stored with."""
    (memory_id,) = keep(mem0, "green tea", mood="calm")

    found = mem0.get(memory_id)

    assert (found["memory"], found["user_id"], found["metadata"]) == ("green tea", "u1", {"mood": "calm"})


def test_mem0_gets_nothing_under_an_unknown_id(mem0: Mem0Memory) -> None:
    """Given an unknown id, I expect None."""
    assert mem0.get("00000000-0000-0000-0000-000000000000") is None


def test_mem0_updates(mem0: Mem0Memory) -> None:
    """Given a new text, I expect Mem0 to return it, and to find it by its new words."""
    memory_id, _ = keep(mem0, "green tea", "a train")

    mem0.update(memory_id, "black coffee")

    assert texts(mem0.search("black coffee", filters={"user_id": "u1"}))[0] == mem0.get(memory_id)["memory"]


def test_an_update_leaves_a_memory_in_its_place(mem0: Mem0Memory, pool: ConnectionPool) -> None:
    """Given a new text, I expect the same user, session, time and source as before."""
    (memory_id,) = keep(mem0, "green tea", timestamp=NOON, source="ai", session_id="s1")
    before = rows(pool, "user_number, session, said_at, source")

    mem0.update(memory_id, "black coffee")

    assert rows(pool, "user_number, session, said_at, source") == before


def test_an_update_is_found_by_search(mem0: Mem0Memory, memories: MemoryService) -> None:
    """Given a new text, I expect a search to find it by its words, and not by the old ones."""
    (memory_id,) = keep(mem0, "green tea")
    mem0.update(memory_id, "black coffee")

    assert [m.content for m in memories.search("u1", SearchData(query="coffee", limit=5))] == ["black coffee"]


def test_mem0_deletes_one(mem0: Mem0Memory) -> None:
    """Given a memory that is deleted, I expect the others to stay."""
    memory_id, _ = keep(mem0, "one", "two")

    mem0.delete(memory_id)

    assert texts(mem0.get_all(filters={"user_id": "u1"})) == ["two"]


def test_mem0_deletes_all_of_one_user(mem0: Mem0Memory, pool: ConnectionPool) -> None:
    """Given two users and delete_all for one, I expect what the other one said to be all that is left."""
    keep(mem0, "one", "two")
    keep(mem0, "three", user_id="u2")

    mem0.delete_all(user_id="u1")

    assert rows(pool) == [("three",)]


def test_mem0_keeps_characters_apart(mem0: Mem0Memory, memories: MemoryService) -> None:
    """Given texts of two characters and a shared one, I expect Mem0's calls with an agent_id to be of that one."""
    for agent_id, text in (("luna", "green tea"), ("sol", "black tea"), (None, "tea with milk")):
        mem0.add(text, user_id="u1", agent_id=agent_id, infer=False, metadata={"agent_id": "nova"})
    mem0.add("iced tea", user_id="u2", agent_id="luna", infer=False)
    luna, u1 = {"user_id": "u1", "agent_id": "luna"}, {"user_id": "u1"}

    assert texts(mem0.search("tea", filters=luna, threshold=0.0)) == texts(mem0.get_all(filters=luna)) == ["green tea"]
    assert texts(mem0.get_all(filters=u1)) == ["green tea", "black tea", "tea with milk"]
    (memory,) = mem0.get_all(filters=luna)["results"]
    assert (memory["agent_id"], mem0.get(memory["id"])["agent_id"]) == ("luna", "luna")

    mem0.update(memory["id"], "white tea")
    seen = memories.search("u1", SearchData(query="tea", agent_id="luna", min_score=0))
    assert {(one.content, one.agent_id) for one in seen} == {("white tea", "luna"), ("tea with milk", None)}

    mem0.delete_all(user_id="u1", agent_id="luna")
    assert texts(mem0.get_all(filters=u1)) == ["black tea", "tea with milk"]
    assert texts(mem0.get_all(filters={"user_id": "u2", "agent_id": "luna"})) == ["iced tea"]


def test_an_update_keeps_who_said_it_and_when_it_expires(
    mem0: Mem0Memory, memories: MemoryService, pool: ConnectionPool
) -> None:
    """Given a memory of a speaker that expires, I expect both after Mem0's update of its text."""
    memories.index(said("green tea", agent_id="luna", speaker=Speaker(id="7", name="Anna"), ttl_days=2))
    (before,) = rows(pool, "user_number, expires_at, substring(traits FROM 6 FOR 8)")
    (memory,) = mem0.get_all(filters={"user_id": "u1"})["results"]

    mem0.update(memory["id"], "white tea")

    assert rows(pool, "user_number, expires_at, substring(traits FROM 6 FOR 8)") == [before]
    (found,) = memories.search("u1", SearchData(query="tea", agent_id="luna", filters=SearchFilters(speaker="anna")))
    assert (found.content, found.speaker) == ("white tea", Speaker(id="7", name="Anna"))


def test_mem0_tells_the_history(mem0: Mem0Memory) -> None:
    """Given a memory that was added, updated and deleted, I expect its history to say so in that order."""
    (memory_id,) = keep(mem0, "green tea")
    mem0.update(memory_id, "black coffee")
    mem0.delete(memory_id)

    assert [(change["event"], change["old_memory"], change["new_memory"]) for change in mem0.history(memory_id)] == [
        ("ADD", None, "green tea"),
        ("UPDATE", "green tea", "black coffee"),
        ("DELETE", "black coffee", None),
    ]


def test_a_memory_that_mem0_stored_is_found_by_search(mem0: Mem0Memory, memories: MemoryService) -> None:
    """Given a text that Mem0 stored without the fields that the pipeline adds, I expect a search to return it whole."""
    keep(mem0, "green tea", source="slack")

    (found,) = memories.search("u1", SearchData(query="tea", limit=5))

    assert (found.content, found.source, found.timestamp > NOON) == ("green tea", "user", True)


NO_USER: list[Any] = [
    None,
    {},
    {"agent_id": "a1"},
    {"user_id": None},
    {"user_id": "*"},
    {"user_id": {"ne": "u2"}},
    {"user_id": {"in": ["u1", "u2"]}},
    {"user_id": ["u1", "u2"]},
    {"$or": [{"user_id": "u1"}, {"user_id": "u2"}]},
]


@pytest.mark.parametrize("filters", NO_USER, ids=str)
def test_a_search_without_one_user_is_refused(store: MemoryStore, filters: Any) -> None:
    """Given filters that name no user, or more than one, I expect the store to refuse them."""
    with pytest.raises(ValueError, match="filters must name one user_id"):
        store.search("tea", [0.1] * 384, filters=filters)


@pytest.mark.parametrize("filters", NO_USER, ids=str)
def test_a_list_without_one_user_is_refused(store: MemoryStore, filters: Any) -> None:
    """Given the same filters, I expect the store to list nothing."""
    with pytest.raises(ValueError, match="filters must name one user_id"):
        store.list(filters)


def test_a_wildcard_for_the_user_is_refused_through_mem0(mem0: Mem0Memory) -> None:
    """Given Mem0's wildcard for a user, which its own store takes to mean all users, I expect a refusal."""
    with pytest.raises(ValueError, match="filters must name one user_id"):
        mem0.search("tea", filters={"user_id": "*"})


FILTERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "equals": ({"mood": "calm"}, ["calm tea"]),
    "eq": ({"mood": {"eq": "calm"}}, ["calm tea"]),
    "ne": ({"mood": {"ne": "calm"}}, ["wild tea"]),
    "in": ({"mood": {"in": ["calm", "odd"]}}, ["calm tea"]),
    "nin": ({"mood": {"nin": ["calm"]}}, ["wild tea"]),
    "gt": ({"cups": {"gt": 1}}, ["wild tea"]),
    "lte": ({"cups": {"lte": 1}}, ["calm tea"]),
    "contains": ({"mood": {"contains": "al"}}, ["calm tea"]),
    "icontains": ({"mood": {"icontains": "AL"}}, ["calm tea"]),
    "any value": ({"cups": "*"}, ["calm tea", "wild tea"]),
    "OR": ({"OR": [{"mood": "calm"}, {"cups": 3}]}, ["calm tea", "wild tea"]),
    "NOT": ({"NOT": [{"mood": "calm"}]}, ["wild tea"]),
    "AND": ({"AND": [{"mood": "calm"}, {"cups": 3}]}, []),
    "another user in OR": ({"OR": [{"user_id": "u2"}, {"mood": "calm"}]}, ["calm tea"]),
    "hostile": ({"mood') OR true --": "x"}, []),
}


@pytest.mark.parametrize(("filters", "expected"), FILTERS.values(), ids=FILTERS)
def test_mem0s_other_filters_work(mem0: Mem0Memory, filters: dict[str, Any], expected: list[str]) -> None:
    """Given one of Mem0's filters beside the user, I expect what it leaves of that user's memories."""
    keep(mem0, "calm tea", mood="calm", cups=1)
    keep(mem0, "wild tea", mood="wild", cups=3)
    keep(mem0, "tea of another", user_id="u2", mood="calm", cups=3)

    found = texts(mem0.search("tea", filters={"user_id": "u1", **filters}, threshold=0.0))

    assert sorted(found) == expected


# One event, one memory


def test_the_same_event_twice_is_one_memory(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given an event that is delivered twice, I expect one memory, with one history."""
    first, second = memories.index(said("green tea")), memories.index(said("green tea"))

    assert (first, rows(pool), rows(pool, "event", "memory_history")) == (second, [("green tea",)], [("ADD",)])


def test_the_same_event_at_once_is_one_memory(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given an event that eight threads store at once, I expect one memory, with one history."""
    together = Barrier(THREADS)

    def store_it(_: int) -> None:
        together.wait(timeout=60)
        memories.index(said("green tea"))

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(store_it, range(THREADS)))

    assert (rows(pool), rows(pool, "event", "memory_history")) == ([("green tea",)], [("ADD",)])


def test_a_memory_is_not_stored_without_its_history(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given a database that fails at the history of a memory, I expect the next delivery to bring both, once."""
    with pool.connection() as connection:
        connection.execute("ALTER TABLE memory_history ADD CONSTRAINT none CHECK (event = '')")
    with pytest.raises(psycopg.errors.CheckViolation):
        memories.index(said("green tea"))
    with pool.connection() as connection:
        connection.execute("ALTER TABLE memory_history DROP CONSTRAINT none")
    memories.index(said("green tea"))

    assert (rows(pool), rows(pool, "event", "memory_history")) == ([("green tea",)], [("ADD",)])


def test_the_same_event_twice_in_a_batch_is_one_memory(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given a batch with an event twice, I expect one memory, with one history."""
    memories.index_many([said("green tea"), said("a train"), said("green tea")])

    assert (rows(pool), rows(pool, "event", "memory_history")) == ([("green tea",), ("a train",)], [("ADD",), ("ADD",)])


def test_the_same_request_twice_is_one_memory(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given an add that is delivered twice, I expect one memory."""
    for _ in range(2):
        memories.add("u1", AddData(content="green tea"), "r1", NOON)

    assert rows(pool) == [("green tea",)]


@pytest.mark.parametrize(
    "other", [{"content": "black tea"}, {"source": "ai"}, {"timestamp": NOON + 0.001}, {"user_id": "u2"}], ids=str
)
def test_events_that_differ_are_two_memories(
    memories: MemoryService, pool: ConnectionPool, other: dict[str, Any]
) -> None:
    """Given two events without an id that differ in user, source, content or time, I expect two memories."""
    memories.index(said("green tea"))
    memories.index(said(**{"content": "green tea", **other}))

    assert len(rows(pool)) == 2


MS_ID = "u_1795913599901"  # as upstream makes them, of user and millisecond
BLUE, BROTHER = said("我喜欢蓝色", message_id=MS_ID), said("我哥哥叫志强", message_id=MS_ID)
BY_AI = said("我喜欢蓝色", message_id=MS_ID, source="ai")


@pytest.mark.parametrize("order", list(itertools.permutations((BLUE, BROTHER, BY_AI))), ids=range(6))
def test_messages_of_one_message_id_are_all_memories(
    memories: MemoryService, pool: ConnectionPool, order: tuple[MemoryUpdateMessage, ...]
) -> None:
    """Given one message_id with other contents and another source, in any order, I expect a memory of each, the later
    ones said to have a used id once; delivered again, in any order, I expect no change."""
    first = [memories.index(event) for event in order]
    again = [memories.index(event) for event in (*order, *reversed(order))]

    assert rows(pool, "content, source") == [(event.content, event.source) for event in order]
    assert [ids.reused_id for ids in first] == [False, True, True]
    assert [ids.reused_id for ids in again] == [False] * 6
    assert again == [*first, *reversed(first)]
    assert len(rows(pool, "event", "memory_history")) == 3


def test_messages_of_one_message_id_in_a_batch_are_all_memories(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given them in one batch, one twice, I expect the same."""
    ids = memories.index_many([BLUE, BROTHER, BLUE, BY_AI, BROTHER])

    assert rows(pool, "id::text") == [(ids[0],), (ids[1],), (ids[3],)]
    assert ids == [ids[0], ids[1], ids[0], ids[3], ids[1]]


def test_messages_of_one_message_id_at_once_are_each_one_memory(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given eight threads that store two of them at once, I expect each once, and one of them counted."""
    together = Barrier(THREADS)

    def store_it(number: int) -> bool:
        together.wait(timeout=30)
        return memories.index((BLUE, BROTHER)[number % 2]).reused_id

    with ThreadPoolExecutor(THREADS) as threads:
        counted = list(threads.map(store_it, range(THREADS)))

    assert sorted(rows(pool)) == sorted([(BLUE.content,), (BROTHER.content,)])
    assert len(rows(pool, "event", "memory_history")) == 2
    assert sum(counted) <= 1


def test_a_memory_of_an_earlier_version_is_recognised(
    memories: MemoryService, store: MemoryStore, pool: ConnectionPool
) -> None:
    """Given a memory that version 0.2 stored, whose id was made of user and message_id alone, I expect its event,
    delivered again, to be the same memory, and another one with that id a second."""
    old_id = "81076149-0aa3-828e-ad5f-1bdfc041e0b7"
    payload = {"data": BLUE.content, "user_id": "u1", "source": "user", "message_id": MS_ID, "timestamp": NOON}
    store.insert([WordEmbedder().embed(BLUE.content)], [payload], [old_id])

    assert memories.index(BLUE) == [old_id]
    assert memories.index(BROTHER).reused_id
    assert rows(pool) == [(BLUE.content,), (BROTHER.content,)]


def test_an_event_whose_memory_was_changed_is_recognised(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given a memory whose content was changed since, I expect its event, delivered again, to add nothing."""
    (memory_id,) = memories.index(BLUE)
    with pool.connection() as connection:
        connection.execute("UPDATE memories SET content = 'changed' WHERE id = %s", (memory_id,))

    assert memories.index(BLUE) == [memory_id]
    assert rows(pool) == [("changed",)]


def test_what_was_added_is_told_from_what_was_said(memories: MemoryService, store: MemoryStore) -> None:
    """Given texts that state and that ask, added and said, I expect both features of each read back."""
    texts = ("I like tea", "I like tea. And you?", "Do you like tea?")
    for number, text in enumerate(texts):
        memories.add("u1", AddData(content=text, metadata={"session_id": "s1"}), f"r{number}", NOON + number)
    memories.index_many(
        [said(text, meta={"session_id": "s1"}, timestamp=NOON + 10 + n) for n, text in enumerate(texts)]
    )

    columns = store.columns.read(Owner("u1"), None)

    assert columns.added.tolist() == [True] * 3 + [False] * 3
    assert columns.asks.tolist() == [0, 1, 2] * 2


def test_one_request_id_with_two_contents_is_two_memories(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given adds whose asker repeats its request_id, I expect a memory of each content, and each once."""
    for content in ("green tea", "black tea", "green tea"):
        memories.add("u1", AddData(content=content), "r1", NOON)

    assert rows(pool) == [("green tea",), ("black tea",)]


def test_two_message_ids_are_two_memories(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given the same words at the same time under two ids, I expect two memories."""
    memories.index_many([said("green tea", message_id="m1"), said("green tea", message_id="m2")])

    assert len(rows(pool)) == 2


def test_a_message_id_is_its_users(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given two users whose publishers count messages from one, I expect both memories."""
    memories.index_many([said("green tea", message_id="1"), said("green tea", "u2", message_id="1")])

    assert len(rows(pool)) == 2


def test_what_threads_index_at_the_same_time_is_embedded_at_once(
    memories: MemoryService, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given three threads that come while one embeds, I expect one embedding more, for all of theirs."""
    embedder, batches = memories._mem0.embedding_model, list[list[str]]()
    embed = embedder.embed_batch

    def slow_at_first(texts: list[str], action: str) -> list[list[float]]:
        batches.append(texts)
        if len(batches) == 1:
            wait_until(lambda: memories._embed._submitted.qsize() == 3, description="three threads to wait")
        vectors: list[list[float]] = embed(texts, action)
        return vectors

    monkeypatch.setattr(embedder, "embed_batch", slow_at_first)
    teas = [said(f"tea number {n}", f"u{n}") for n in range(4)]

    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(memories.index, teas[0])
        wait_until(lambda: batches, description="the first to be embedded")
        ids = [*threads.map(memories.index, teas[1:]), first.result()]

    assert [len(batch) for batch in batches] == [1, 3]
    assert sorted(content for (content,) in rows(pool)) == [tea.content for tea in teas]
    assert all(len(memories._mem0.history(one)) == 1 for (one,) in ids)


def test_concurrent_batches_of_many_users_do_not_deadlock(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given threads that store the same events of the same new users in different orders, I expect each event once."""
    events = [said(f"tea number {n}", f"u{n % 12}") for n in range(120)]
    together = Barrier(THREADS)

    def store_them(seed: int) -> None:
        shuffled = random.Random(seed).sample(events, len(events))
        for begin in range(0, len(events), 40):
            together.wait(timeout=60)
            memories.index_many(shuffled[begin : begin + 40])

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(store_them, range(THREADS)))

    assert sorted(rows(pool)) == sorted((event.content,) for event in events)


# What is stored


def nonsense(seed: int, count: int) -> list[str]:
    """So many different words."""
    rng = random.Random(seed)
    return ["".join(rng.choices("bcdfghjklmnpqrtvwz", k=9)) for _ in range(count)]


@pytest.mark.parametrize("dimensions", [384, 480, 481, 1_536])
def test_a_memory_of_very_many_words_is_stored_and_found(create_database: Callable[..., str], dimensions: int) -> None:
    """Given more different words than an index row holds, beside vectors of any size, I expect it found by one."""
    url = create_database()
    spoken = nonsense(1, 3 * MAX_TERMS)
    with psycopg.connect(url) as connection:
        migrate(connection, dimensions)
    with open_pool(url, 2) as pool:
        store = MemoryStore(pool)
        memories = MemoryService(Mem0Memory(WordEmbedder(dimensions), store, PostgresHistory(pool), None), store)
        memories.index_many([said(" ".join(spoken), message_id=str(n)) for n in range(30)])  # the sample has some
        found = memories.search("u1", SearchData(query=spoken[MAX_TERMS - 1], min_score=0))

    assert [m.content for m in found] == [" ".join(spoken)]


@pytest.mark.parametrize(
    "content", ["茶" * 31_996 + "绿茶好喝", " ".join(nonsense(2, 3_200))], ids=["Chinese", "words"]
)
def test_a_memory_of_32000_characters_comes_back_whole(memories: MemoryService, content: str) -> None:
    """Given a message as long as the limit allows, I expect all of it back."""
    memories.index(said(content))

    assert [m.content for m in memories.search("u1", SearchData(query=content[:9], min_score=0))] == [content]


def test_a_row_has_the_columns_of_its_event(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given an event, I expect user, session, time, source, text and id in columns of their own."""
    (memory_id,) = memories.index(said("hello", "anna lee", source="ai", meta={"session_id": "s1"}))

    (row,) = rows(
        pool, "id::text, (SELECT user_id FROM users WHERE number = user_number), session, said_at, source, content"
    )

    assert row == (memory_id, "anna%20lee", hashed("s1"), datetime.fromtimestamp(NOON, UTC), "ai", "hello")


def test_a_row_has_the_features_of_its_text(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given an utterance, I expect its terms and traits beside it."""
    memories.index(said("Anna: I like tea, do you?"))

    ((terms, traits),) = rows(pool, "terms, traits")

    (judged,) = np.frombuffer(traits, TRAITS)
    assert (terms, judged["from_ai"], judged["asks"], judged["length"], judged["speaker"]) == (
        hashed_terms(["anna", "like", "tea"]).tobytes(),
        False,
        1,
        3,
        hashed("anna"),
    )


@pytest.mark.parametrize("timestamp", [0, -6.1e10, 9.9e10, 1_712_345_678.123456], ids=str)
def test_any_time_of_the_contract_is_stored(memories: MemoryService, store: MemoryStore, timestamp: float) -> None:
    """Given a time as early or late as the contract allows, I expect it to rank, and to come back."""
    memories.index(said("green tea", timestamp=timestamp))

    found = memories.search("u1", SearchData(query="tea", min_score=0))

    assert [memory.timestamp for memory in found] == [timestamp]


# The conversation


def conversation_of(store: MemoryStore, pool: ConnectionPool, user_id: str = "u1") -> list[str]:
    contents = dict(rows(pool, "number, content"))
    return [contents[number] for number in store.columns.read(Owner(user_id), None).number.tolist()]


def test_columns_are_in_the_order_of_sessions(
    memories: MemoryService, store: MemoryStore, pool: ConnectionPool
) -> None:
    """Given turns of two sessions that took turns themselves, I expect each session's together, as time went."""
    for n in (3, 0, 2, 1):
        memories.index(said(f"{n}", timestamp=NOON + n, meta={"session_id": f"s{n % 2}"}))

    found = conversation_of(store, pool)

    assert found in (["0", "2", "1", "3"], ["1", "3", "0", "2"])


def test_turns_of_the_same_time_stay_in_order_of_arrival(
    memories: MemoryService, store: MemoryStore, pool: ConnectionPool
) -> None:
    """Given turns whose publisher counts time in whole seconds, I expect them as they came, in a batch too."""
    memories.index_many([said(f"{n}") for n in range(10)])
    memories.index_many([said(f"{n}") for n in range(10, 20)])

    assert conversation_of(store, pool) == [f"{n}" for n in range(20)]


def test_columns_are_of_one_user(memories: MemoryService, store: MemoryStore, pool: ConnectionPool) -> None:
    """Given two users in a session of one name, I expect the conversation of one of them."""
    memories.index_many([said("mine"), said("yours", "u2")])

    assert conversation_of(store, pool) == ["mine"]


def test_an_unknown_user_has_no_memories(store: MemoryStore) -> None:
    """Given an unknown user, I expect no memories."""
    assert len(store.columns.read(Owner("unknown"), [0.1] * 384)) == 0


def test_a_cosine_is_that_of_the_vectors(memories: MemoryService, store: MemoryStore) -> None:
    """Given a memory and its own vector, I expect a cosine of 1."""
    memories.index(said("green tea"))

    assert store.columns.read(Owner("u1"), WordEmbedder().embed("green tea")).cosine == pytest.approx(1, abs=1e-3)


# Sessions without an id


def sessions(pool: ConnectionPool) -> list[int]:
    return [session for (session,) in rows(pool, "session")]


@pytest.mark.parametrize("meta", [{}, {"session_id": None}, {"session_id": ""}], ids=str)
def test_a_day_is_a_session(memories: MemoryService, pool: ConnectionPool, meta: dict[str, Any]) -> None:
    """Given messages of one day without a session, I expect them to share one."""
    memories.index_many([said("one", meta=meta), said("two", timestamp=NOON + 3_600, meta=meta)])

    assert len(set(sessions(pool))) == 1


def test_days_are_sessions_of_their_own(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given messages before and after midnight UTC, I expect two sessions."""
    memories.index_many([said("one", timestamp=NOON + 43_199), said("two", timestamp=NOON + 43_200)])

    assert len(set(sessions(pool))) == 2


def test_a_given_session_is_never_that_of_a_day(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given a session that is named as our days are inside, I expect it to stay apart from them."""
    memories.index_many([said("one"), said("two", meta={"session_id": "day 2024-05-01"})])

    assert len(set(sessions(pool))) == 2


def test_a_day_is_not_shown_as_a_session(memories: MemoryService) -> None:
    """Given a message without a session, I expect none in what comes back."""
    memories.index(said("green tea"))

    assert memories.search("u1", SearchData(query="tea", limit=1))[0].metadata == {
        "source": "user",
        "timestamp": NOON,
    }


@pytest.mark.parametrize(
    "search",
    [
        {"filters": {"session_id": "day 2024-05-01"}},
        {"filters": {"session_id": ""}},
        {"filters": {"session_id": "2024-05-01"}},
    ],
    ids=str,
)
def test_a_day_cannot_be_filtered_for(memories: MemoryService, search: dict[str, Any]) -> None:
    """Given a message without a session, I expect no filter for a session to find it."""
    memories.index(said("green tea"))

    assert memories.search("u1", SearchData(query="tea", **search)) == []


def test_a_day_cannot_be_excluded(memories: MemoryService) -> None:
    """Given a message without a session, I expect it found whichever session is excluded."""
    memories.index(said("green tea"))

    assert len(memories.search("u1", SearchData(query="tea", exclude_session="day 2024-05-01"))) == 1
