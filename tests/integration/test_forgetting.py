"""Forgetting a user in PostgreSQL: everything goes, nothing comes back, and what is said after counts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from keepsake_client.protocol import AddData, MemoryUpdateMessage, SearchData
from psycopg_pool import ConnectionPool

from services.long_term_memory.forgetting import Forgetting
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.portability import ImportOutcome, Portability
from services.long_term_memory.postgres.history import PostgresHistory, insert_history
from services.long_term_memory.postgres.rows import insert_memories, memory_row
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.profile_service import ProfileService
from services.long_term_memory.removal import add_tombstones
from services.long_term_memory.storing import MemoryWriter
from tests.integration.conftest import WordEmbedder
from tests.support import wait_until

#: When the user is forgotten, in seconds since 1970.
FORGOTTEN = 1_800_000_000.5
MARKER = "xylophone"


def said(user_id: str, content: str, at: float, **fields: Any) -> MemoryUpdateMessage:
    return MemoryUpdateMessage(user_id=user_id, content=content, source="user", timestamp=at, **fields)


def found(memories: MemoryService, user_id: str, query: str = MARKER) -> list[str]:
    search = SearchData(query=query, limit=100, min_score=0, all_agents=True)
    return sorted(memory.content for memory in memories.search(user_id, search))


def everything(pool: ConnectionPool) -> str:
    """All rows of all tables, as text."""
    with pool.connection() as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
        ).fetchall()
        rows: list[Sequence[Any]] = []
        for (table,) in tables:
            rows += connection.execute(f"SELECT '{table}', t::text FROM {table} t").fetchall()
    return "\n".join(map(str, rows))


def waits_for_lock(database: str) -> bool:
    """Whether a statement in this database waits for a lock."""
    with psycopg.connect(database) as connection:
        (count,) = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ).fetchone() or (0,)
    return bool(count)


@pytest.fixture
def profiles(pool: ConnectionPool) -> ProfileService:
    return ProfileService(pool)


def test_nothing_of_a_forgotten_user_is_in_any_table(
    memories: MemoryService, profiles: ProfileService, pool: ConnectionPool
) -> None:
    """Given a user with memories of every kind, corrected ones, a profile, last messages and a deletion by text, I
    expect no row of any table to name the user or to hold a text of hers, and another user to keep everything."""
    for user in (MARKER, "ben"):
        memories.index(said(user, f"{user} one", 1_700_000_000, message_id="m1"), 1_700_000_001)
        memories.index(said(user, f"{user} two", 1_700_000_000, agent_id="luna", meta={"note": user}), 1_700_000_001)
        memories.add(user, AddData(content=f"{user} three"), "r1", 1_700_000_002)
        profiles.update(user, {"name": user})
    with pool.connection() as connection:
        connection.execute("UPDATE memories SET content = content || ' corrected'")
        for scope in (
            f"user_id={MARKER}",
            f"agent_id=x&user_id={MARKER}",
            "user_id=ben",
            f"user_id=a%26user_id%3D{MARKER}",
        ):
            connection.execute(
                "INSERT INTO last_messages (session_scope, content, created_at) VALUES (%s, 'hello', '')", (scope,)
            )
        connection.execute(
            "INSERT INTO deletions (user_digest, contains, deleted_at) VALUES (sha256(%s), %s, '2026-01-01')",
            (MARKER.encode(), ["", "", MARKER]),
        )

    assert Forgetting(pool).forget(MARKER, FORGOTTEN) == 3

    left = everything(pool).replace(f"user_id=a%26user_id%3D{MARKER}", "another user's scope")
    assert MARKER not in left
    assert len(found(memories, "ben", "ben")) == 3
    assert profiles.get("ben").values == {"name": "ben"}
    assert "another user's scope" in left
    assert "user_id=ben" in left


def test_a_dry_run_counts_and_deletes_nothing(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given a dry run, I expect the number of memories of all characters, and all of them to be there."""
    memories.index_many([said("u", "a", 1_700_000_000), said("u", "b", 1_700_000_000, agent_id="luna")])

    assert Forgetting(pool).forget("u", FORGOTTEN, dry_run=True) == 2
    assert found(memories, "u", "a b") == ["a", "b"]


def test_an_event_that_comes_again_stays_deleted(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given events that are handed over again, with the arrival of then and of now, I expect none to be a memory."""
    events = [
        said("u", "with an id", 1_700_000_000, message_id="m1"),
        said("u", "the same id", 1_700_000_001, message_id="m1"),
        said("u", "without an id", 1_700_000_002),
        said("u", "just before", FORGOTTEN - 1, message_id="m2"),
        said("u", "of luna", FORGOTTEN - 1, message_id="m1", agent_id="luna"),
    ]
    for event in events:
        memories.index(event, event.timestamp)
    Forgetting(pool).forget("u", FORGOTTEN)

    for arrived_at in (FORGOTTEN - 1, FORGOTTEN, FORGOTTEN + 60, None):
        again = [memories.index(event, arrived_at) for event in events]
        assert all(indexed.deleted and not indexed for indexed in again), arrived_at
    assert found(memories, "u", "id before luna") == []


def test_a_corrected_memory_does_not_come_back_by_its_first_text(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given a memory that was corrected, whose event is handed over again, I expect it to stay deleted."""
    event = said("u", "the first text", FORGOTTEN - 5, message_id="m1")
    memories.index(event, FORGOTTEN - 5)
    with pool.connection() as connection:
        connection.execute("UPDATE memories SET content = 'the second text'")
    Forgetting(pool).forget("u", FORGOTTEN)

    assert memories.index(event, FORGOTTEN + 5).deleted
    assert found(memories, "u", "text") == []


def test_an_event_that_was_not_indexed_yet_is_dropped(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given events that arrived before, or are dated long before, I expect them to be dropped; an `add` too."""
    Forgetting(pool).forget("u", FORGOTTEN)

    assert memories.index(said("u", "waited", FORGOTTEN + 5), FORGOTTEN).deleted  # its publisher's clock is wrong
    assert memories.index(said("u", "old", FORGOTTEN - 601), FORGOTTEN + 60).deleted
    assert memories.add("u", AddData(content="added"), "r1", FORGOTTEN - 1) == []
    assert found(memories, "u", "waited old added") == []


def test_what_is_said_after_counts_again(
    memories: MemoryService, profiles: ProfileService, pool: ConnectionPool
) -> None:
    """Given what is said within the same second, after the user was forgotten, I expect it to be a memory, and to stay
    one where the request is delivered again."""
    memories.index(said("u", "before", FORGOTTEN - 1), FORGOTTEN - 1)
    forgetting = Forgetting(pool)
    forgetting.forget("u", FORGOTTEN)

    # Whole seconds, as many publishers write them: dated before.
    assert not memories.index(said("u", "after", int(FORGOTTEN)), FORGOTTEN + 0.001).deleted
    assert len(memories.add("u", AddData(content="added after"), "r1", FORGOTTEN + 0.002)) == 1
    assert forgetting.forget("u", FORGOTTEN) == 0
    assert found(memories, "u", "after before") == ["added after", "after"]
    assert profiles.update("u", {"a": 1}, arrived_at=FORGOTTEN + 1).version == 1


def test_what_arrived_after_the_request_and_was_indexed_before_it_ran_is_kept(
    memories: MemoryService, pool: ConnectionPool
) -> None:
    """Given a forget that waits for its worker while an event that arrived after it is indexed, I expect that event to
    be kept, and the one before to be deleted, whatever their publishers' clocks say."""
    memories.index(said("u", "before", FORGOTTEN + 30), FORGOTTEN - 0.1)
    memories.index(said("u", "after", FORGOTTEN - 30), FORGOTTEN + 0.1)

    assert Forgetting(pool).forget("u", FORGOTTEN) == 1
    assert found(memories, "u", "after before") == ["after"]


def test_a_user_may_be_forgotten_again(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given a user who is forgotten twice, I expect the later time to hold, and one row to say so."""
    forgetting = Forgetting(pool)
    forgetting.forget("u", FORGOTTEN)
    memories.index(said("u", "between", FORGOTTEN + 1), FORGOTTEN + 1)
    assert forgetting.forget("u", FORGOTTEN + 2) == 1
    assert forgetting.forget("u", FORGOTTEN) == 0  # delivered again, late

    assert memories.index(said("u", "waited", FORGOTTEN + 2), FORGOTTEN + 2).deleted
    with pool.connection() as connection:
        assert connection.execute("SELECT count(*) FROM deletions").fetchone() == (1,)


def test_a_profile_update_that_arrived_before_is_not_applied(profiles: ProfileService, pool: ConnectionPool) -> None:
    """Given a patch that waited while the user was forgotten, I expect an empty profile, and no row."""
    Forgetting(pool).forget("u", FORGOTTEN)

    assert profiles.update("u", {"name": "Anna"}, arrived_at=FORGOTTEN - 1).values == {}
    with pool.connection() as connection:
        assert connection.execute("SELECT count(*) FROM profiles").fetchone() == (0,)


def test_one_that_fails_in_the_middle_keeps_what_it_has_done(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given a batch that PostgreSQL refuses, I expect the ones before to be deleted for good, each whole, and the next
    delivery to delete the rest."""
    memories.index_many([said("u", f"number {n}", 1_700_000_000 + n, message_id=f"m{n}") for n in range(7)])
    with pool.connection() as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF OLD.content = 'number 4' THEN RAISE 'refused'; END IF; RETURN OLD; END $$"
        )
        connection.execute("CREATE TRIGGER refuse BEFORE DELETE ON memories FOR EACH ROW EXECUTE FUNCTION refuse()")
    forgetting = Forgetting(pool, batch=2)
    with pytest.raises(psycopg.errors.RaiseException):
        forgetting.forget("u", FORGOTTEN)

    assert found(memories, "u", "number") == ["number 4", "number 5", "number 6"]
    with pool.connection() as connection:
        counts = "SELECT (SELECT count(*) FROM memory_history), (SELECT count(*) FROM tombstones)"
        assert connection.execute(counts).fetchone() == (3, 8)
        connection.execute("DROP TRIGGER refuse ON memories")
    assert forgetting.forget("u", FORGOTTEN) == 3
    assert "number" not in everything(pool)


class Killed(Exception):
    """Stands for the death of the process."""


class Deadly:
    """An eraser at which the process dies the first time."""

    def __init__(self) -> None:
        self.calls = 0

    def erase(self, user_id: str, before: float) -> list[MemoryUpdateMessage]:
        self.calls += 1
        if self.calls == 1:
            raise Killed
        return [said(user_id, "in the stream", before - 1, message_id="m9")]


def test_one_that_was_interrupted_is_done_by_the_next_delivery(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given a process that dies between two steps, I expect what arrived before to be dropped already, and the next
    delivery to do the rest: what else kept an event cannot bring it back."""
    memories.index_many([said("u", f"number {n}", 1_700_000_000 + n) for n in range(7)])
    forgetting = Forgetting(pool, Deadly(), batch=3)
    with pytest.raises(Killed):
        forgetting.forget("u", FORGOTTEN)

    assert memories.index(said("u", "waited", FORGOTTEN), FORGOTTEN).deleted
    forgetting.forget("u", FORGOTTEN)

    assert memories.index(said("u", "in the stream", FORGOTTEN - 1, message_id="m9"), FORGOTTEN + 60).deleted
    with pool.connection() as connection:
        assert connection.execute("SELECT count(*) FROM users WHERE user_id = 'u'").fetchone() == (0,)


@pytest.mark.parametrize("known", [True, False], ids=["an owner with a row", "a new owner"])
def test_an_insertion_in_flight_is_seen(
    memories: MemoryService, pool: ConnectionPool, known: bool, database: str
) -> None:
    """Given an insertion that has looked for deletions and is not committed, I expect the forget to wait for it and to
    delete what it inserts."""
    if known:
        memories.index(said("u", "first", 1_700_000_000), 1_700_000_000)
    payload = {"data": "in flight", "user_id": "u", "timestamp": FORGOTTEN - 1, "event_arrived_at": FORGOTTEN - 1}
    row = memory_row("00000000-0000-8000-8000-000000000001", [1.0] * 384, payload)
    with psycopg.connect(database, autocommit=True) as connection, ThreadPoolExecutor() as threads:
        with connection.transaction():
            insert_memories(connection, [row])
            forget = threads.submit(Forgetting(pool).forget, "u", FORGOTTEN)
            wait_until(lambda: waits_for_lock(database), description="the forget to wait")
        assert forget.result() == 1 + known
    assert "in flight" not in everything(pool)


def test_a_correction_in_flight_leaves_no_history(memories: MemoryService, pool: ConnectionPool, database: str) -> None:
    """Given a correction that is not committed yet, I expect the forget to wait for it and to delete its history."""
    memories.index(said("u", "first", 1_700_000_000), 1_700_000_000)
    with psycopg.connect(database, autocommit=True) as connection, ThreadPoolExecutor() as threads:
        with connection.transaction(), connection.cursor() as cursor:
            [changed] = cursor.execute("UPDATE memories SET content = 'second' RETURNING id::text").fetchone() or ()
            change = {"memory_id": changed, "old_memory": "first", "new_memory": "second", "event": "UPDATE"}
            insert_history(cursor, [change])
            forget = threads.submit(Forgetting(pool).forget, "u", FORGOTTEN)
            wait_until(lambda: waits_for_lock(database), description="the forget to wait")
        assert forget.result() == 1
    assert "second" not in everything(pool)


def test_an_import_in_flight_is_dropped(store: MemoryStore, pool: ConnectionPool) -> None:
    """Given an import that arrived before its user was forgotten, and is embedded meanwhile, I expect neither memories
    nor histories nor profiles of it to be left; one that arrives after counts."""
    records: list[dict[str, Any]] = [
        {"kind": "memory", "content": f"{MARKER} 1", "source": "user", "timestamp": 1_700_000_000, "message_id": "m1"},
        {
            "kind": "memory",
            "content": f"{MARKER} 2",
            "original": MARKER,
            "source": "user",
            "timestamp": 1_700_000_000,
            "history": [
                {"event": "ADD", "new_content": MARKER},
                {"event": "UPDATE", "old_content": MARKER, "new_content": f"{MARKER} 2"},
            ],
        },
    ]
    profile = {"kind": "profile", "profile": {"likes": MARKER}, "version": 1, "updated_at": 1_700_000_000}
    change = {"kind": "profile_change", "patch": {"likes": MARKER}, "version": 1, "changed_at": 1_700_000_000}

    class ForgettingEmbedder(WordEmbedder):
        def embed(self, text: str, memory_action: str | None = None) -> list[float]:
            Forgetting(pool).forget("u", FORGOTTEN)
            return super().embed(text, memory_action)

    def with_embedder(embedder: WordEmbedder) -> Portability:
        writer = MemoryWriter(Mem0Memory(embedder, store, PostgresHistory(pool), None), store)
        return Portability(pool, writer, 1_000)

    portability = with_embedder(ForgettingEmbedder())

    dropped = portability.import_records("u", [profile, change, *records], FORGOTTEN - 1)
    again = portability.import_records("u", [profile, change], FORGOTTEN - 1)

    assert (dropped, again) == (ImportOutcome(deleted=2), ImportOutcome())
    assert MARKER not in everything(pool)
    portability = with_embedder(WordEmbedder())
    assert portability.import_records("u", records, FORGOTTEN + 1) == ImportOutcome(deleted=2)
    outcome = portability.import_records("u", [profile, *records], FORGOTTEN + 1, restore_deleted=True)
    assert outcome == ImportOutcome(new=2)
    assert everything(pool).count("likes") == 1


def test_a_profile_of_after_outlives_another_delivery(profiles: ProfileService, pool: ConnectionPool) -> None:
    """Given a profile that is written after its user was forgotten, I expect the same request, delivered again, to keep
    it, and a later one to delete it."""
    profiles.update("u", {"name": "before"})
    Forgetting(pool).forget("u", FORGOTTEN)
    profiles.update("u", {"likes": "after"}, arrived_at=FORGOTTEN + 1)

    Forgetting(pool).forget("u", FORGOTTEN)
    assert profiles.get("u").values == {"likes": "after"}

    Forgetting(pool).forget("u", FORGOTTEN + 2)
    assert profiles.get("u").values == {}


def test_many_at_once(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given indexing, adding and forgetting of one user by several threads, I expect nothing to fail, and nothing that
    arrived before the last forget to be left."""
    forgetting, barrier = Forgetting(pool, batch=2), threading.Barrier(6)

    def index(name: int) -> None:
        barrier.wait()
        for turn in range(12):
            agent = {"agent_id": f"a{turn % 3}"} if turn % 2 else {}
            memories.index(said("u", f"{name} says {turn}", FORGOTTEN + turn, **agent), FORGOTTEN + turn)

    def forget(_: int) -> None:
        barrier.wait()
        for turn in range(4):
            forgetting.forget("u", FORGOTTEN + 3 * turn)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda n: index(n) if n < 4 else forget(n), range(6)))
    forgetting.forget("u", FORGOTTEN + 20)

    assert "says" not in everything(pool)


def test_an_id_that_a_memory_has_gets_no_tombstone(memories: MemoryService, pool: ConnectionPool) -> None:
    """Given that one of two ids of what was deleted is that of a memory which is there, I expect a tombstone of the
    other alone, and the event of that memory, handed over again, to be known and not refused."""
    kept = said("u1", MARKER, 1_700_000_000, message_id="m1")
    [kept_id] = memories.index(kept, 1_700_000_001)
    gone_id = str(uuid4())

    with pool.connection() as connection:
        add_tombstones(connection, [kept_id, gone_id])
        assert connection.execute("SELECT memory_id::text FROM tombstones").fetchall() == [(gone_id,)]

    assert memories.index(kept, 1_700_000_001) == [kept_id]
