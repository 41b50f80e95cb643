"""The insertion of a batch on a real PostgreSQL: one statement, beside the next batch's embedding."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres import rows as postgres_rows
from services.long_term_memory.postgres.rows import Inserted, insert_memories, memory_row
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.storing import embedded, of_update
from tests.integration.test_store import BLUE, BROTHER, BY_AI, rows, said
from tests.support import wait_until


def test_messages_of_one_message_id_after_a_crash_are_each_one_memory(
    memories: MemoryService, store: MemoryStore, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a crash between the memories of ids that are new and those of ids in use, I expect the second delivery to
    bring what is missing, each once and with its history."""

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "stored_events", crash)
    with pytest.raises(KeyboardInterrupt):
        memories.index_many([BLUE, BROTHER, BY_AI])
    monkeypatch.undo()
    stored_before = rows(pool)
    ids = memories.index_many([BLUE, BROTHER, BY_AI])

    assert stored_before == [(BLUE.content,)]
    assert rows(pool, "id::text") == [(memory_id,) for memory_id in ids]
    assert sorted(rows(pool, "memory_id", "memory_history")) == sorted((memory_id,) for memory_id in ids)


def test_a_batch_is_embedded_while_the_one_before_it_is_inserted(
    memories: MemoryService, store: MemoryStore, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an insertion that waits for the next embedding, I expect both messages stored."""
    embed, insert = memories._mem0.embedding_model.embed_batch, store.insert_rows
    inserting, embedded = Event(), Event()

    def embed_and_tell(texts: list[str], action: str) -> list[list[float]]:
        if "a train" in texts:
            embedded.set()
        return embed(texts, action)  # type: ignore[no-any-return]

    def insert_after_it(new: list[dict[str, Any]], **options: Any) -> Inserted:
        inserting.set()
        assert embedded.wait(30)
        return insert(new, **options)

    monkeypatch.setattr(memories._mem0.embedding_model, "embed_batch", embed_and_tell)
    monkeypatch.setattr(store, "insert_rows", insert_after_it)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(memories.index, said("green tea"))
        assert inserting.wait(30)
        second = threads.submit(memories.index, said("a train"))
        for one in (first, second):
            one.result(60)

    assert sorted(rows(pool)) == [("a train",), ("green tea",)]


def test_an_embedder_of_another_provider_gets_what_waits_in_one_batch(
    memories: MemoryService, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given twenty messages while the first is embedded, as over HTTP, I expect them in calls of sixteen and four."""
    embed, batches, contents = memories._mem0.embedding_model.embed_batch, list[int](), [f"{n}" for n in range(20)]

    def embed_when_all_wait(texts: list[str], action: str) -> list[list[float]]:
        batches.append(len(texts))
        if len(batches) == 1:
            wait_until(lambda: memories._embed._submitted.qsize() == len(contents), description="all to wait")
        return embed(texts, action)  # type: ignore[no-any-return]

    monkeypatch.setattr(memories._mem0.embedding_model, "embed_batch", embed_when_all_wait)
    with ThreadPoolExecutor(len(contents) + 1) as threads:
        first = threads.submit(memories.index, said("first"))
        wait_until(lambda: batches, description="the first to be embedded")
        for one in [first, *(threads.submit(memories.index, said(content)) for content in contents)]:
            one.result(60)

    assert (batches, len(rows(pool))) == ([1, 16, 4], 21)


def test_batches_with_the_same_memories_do_not_deadlock(pool: ConnectionPool) -> None:
    """Given a transaction that has one of two memories and is to have the other, and a batch with both in the reverse
    order, I expect the batch to wait for it, and both to be stored."""
    low, high = (f"{digit * 8}-0000-8000-8000-000000000000" for digit in "12")
    both = {one: memory_row(one, [0.1] * 384, {"data": one, "user_id": "u1"}) for one in (high, low)}
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"

    def insert_both() -> set[str]:
        with pool.connection() as connection:
            return insert_memories(connection, list(both.values())).new

    known = memory_row("33333333-0000-8000-8000-000000000000", [0.1] * 384, {"data": "known", "user_id": "u1"})
    with ThreadPoolExecutor(1) as threads, pool.connection() as connection:
        insert_memories(connection, [known])  # else the batch would wait for the user
        with connection.transaction():
            insert_memories(connection, [both[low]])
            batch = threads.submit(insert_both)
            with pool.connection() as other:
                wait_until(
                    lambda: other.execute(waiting, ("%memories_number_seq%",)).fetchone() == (1,),
                    description="the batch to wait",
                )
            insert_memories(connection, [both[high]])
        assert batch.result(60) == set()

    assert sorted(rows(pool)) == [(low,), (high,), ("known",)]


def test_a_memory_that_cannot_be_stored_fails_alone(
    memories: MemoryService, store: MemoryStore, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given three in a batch, one of them with a vector of another size, I expect the other two stored."""
    embed, insert, batches = memories._mem0.embedding_model.embed_batch, store.insert_rows, list[int]()

    def embed_one_badly(texts: list[str], action: str) -> list[list[float]]:
        vectors = zip(texts, embed(texts, action), strict=True)
        return [vector[: 3 if text == "broken" else None] for text, vector in vectors]

    def insert_three_at_once(new: list[dict[str, Any]], **options: Any) -> Inserted:
        batches.append(len(new))
        if len(batches) == 1:
            wait_until(lambda: memories._insert._submitted.qsize() == 3, description="three threads to wait")
        return insert(new, **options)

    monkeypatch.setattr(memories._mem0.embedding_model, "embed_batch", embed_one_badly)
    monkeypatch.setattr(store, "insert_rows", insert_three_at_once)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(memories.index, said("first"))
        wait_until(lambda: batches, description="the first to be inserted")
        others = {content: threads.submit(memories.index, said(content)) for content in ("a", "broken", "c")}

    assert (first.exception(), others["a"].exception(), others["c"].exception()) == (None, None, None)
    assert isinstance(others["broken"].exception(), psycopg.DataError)
    assert (batches, sorted(rows(pool))) == ([1, 3, 1, 1, 1], [("a",), ("c",), ("first",)])


def test_memories_are_numbered_in_the_order_of_their_events(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given a batch of one moment, inserted by id, I expect the numbers, and those of the history, in its order."""
    contents = [f"tea number {n}" for n in range(40)]

    memories.index_many([said(content) for content in contents])

    assert [content for (content,) in rows(pool)] == contents
    assert [content for (content,) in rows(pool, "new_memory", "memory_history")] == contents


def test_a_memory_of_no_user_is_refused(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a user who is gone by the time their memory is inserted, I expect an error, not a memory left out."""
    monkeypatch.setattr(postgres_rows, "_ADD_OWNERS", "SELECT FROM users WHERE user_id = ANY(%(users)b)")

    with pytest.raises(psycopg.errors.NotNullViolation):
        store.insert([[0.1] * 384], [{"data": "green tea", "user_id": "u1"}], ["00000000-0000-8000-8000-000000000000"])


def test_every_event_that_was_deleted_says_so(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given one event three times in a batch, and a tombstone of it, I expect all three to be known as deleted."""
    [memory_id] = memories.index_many([said("green tea")])
    with pool.connection() as connection:
        connection.execute("INSERT INTO tombstones (memory_id) SELECT id FROM memories")
        connection.execute("DELETE FROM memories")
    utterances = [of_update(said("green tea")) for _ in range(3)]
    vectors = memories.writer.embed([utterance.content for utterance in utterances])

    stored = memories.writer.insert([embedded(*pair) for pair in zip(utterances, vectors, strict=True)])

    assert [(utterance.id, utterance.deleted) for utterance in stored] == [(memory_id, True)] * 3
