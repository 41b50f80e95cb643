"""Reads of a streaming replica: every user sees what the user has written, and a replica that fails harms no read."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import (
    COUNTERS,
    AddData,
    ContextData,
    MemoryDeleteData,
    MemoryListData,
    MemoryUpdateData,
    MemoryUpdateMessage,
    SearchData,
)
from keepsake_client.records import MemoryRecord
from structlog.testing import capture_logs

from services.long_term_memory import factory
from services.long_term_memory.context_service import ContextService
from services.long_term_memory.embeddings.calibration import calibrate
from services.long_term_memory.expiry import Expiry
from services.long_term_memory.forgetting import Forgetting
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_management import MemoryManagement
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.portability import Portability
from services.long_term_memory.postgres.background import BackgroundReader
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.noted_writes import NotedWrites
from services.long_term_memory.postgres.pool import is_partitioned, open_pool
from services.long_term_memory.postgres.replica import Replica
from services.long_term_memory.postgres.replica_pool import ReplicaPool
from services.long_term_memory.postgres.replica_status import replica_status
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.server_state import ReplicaUnusable, read_state, written_position
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.profile_service import ProfileService
from services.runtime import write_notes
from services.runtime.settings import Settings, load_settings
from services.runtime.write_notes import NOTE_PREFIX, Position, WriteNotes
from services.stack.locate import FoundStack
from services.stack.processes import REPLICA
from services.stack.status import StatusReader
from services.stack.status_report import Part
from tests.integration.conftest import DIMENSIONS, WordEmbedder
from tests.integration.replicated_postgres import ReplicatedPostgres, Server
from tests.support import free_port, wait_until

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def servers() -> Iterator[ReplicatedPostgres]:
    """A primary with an empty, migrated database."""
    servers = ReplicatedPostgres()
    try:
        with psycopg.connect(servers.primary.url) as connection:
            migrate(connection, DIMENSIONS)
        yield servers
    finally:
        servers.stop()


@pytest.fixture(scope="module")
def standby(servers: ReplicatedPostgres) -> Server:
    """A replica that tests leave as they found it."""
    return servers.replica()


@pytest.fixture
def user() -> str:
    """The id of a user of whom nothing is known."""
    return f"user {next(NUMBERS)}"


@dataclass
class Process:
    """The services of a process that reads and writes, on a primary with a replica."""

    replica: Replica
    memories: MemoryService
    contexts: ContextService
    profiles: ProfileService
    management: MemoryManagement
    forgetting: Forgetting
    portability: Portability
    expiry: Expiry
    client: Any
    counted: Counter[str]

    def found(self, user: str, limit: int = 10) -> set[str]:
        """The contents that a search finds."""
        search = SearchData(query="tea", min_score=0.0, limit=limit)
        return {memory.content for memory in self.memories.search(user, search)}

    def add(self, user: str, content: str) -> str:
        """Add a memory; its id."""
        [memory] = self.memories.add(user, AddData(content=content), f"r{next(NUMBERS)}", time.time())
        return memory.id

    def counts(self) -> dict[str, int]:
        """How many reads the replica has answered, was behind for, and failed at, written to Redis or not yet."""
        return {name.removeprefix("replica_"): count for name, count in self.counted.items()}

    def wait_for_replica(self) -> None:
        """Wait until the replica answers reads of every user who has written until now."""
        wait_until(lambda: self.replica.lag_bytes is not None, description="the replica to be usable")
        wait_until(lambda: self.answered_by("somebody") == "replica", description="the replica to answer")

    def answered_by(self, user: str) -> str:
        """Who answers a search of a user."""
        before = self.counts().get("reads", 0)
        self.found(user)
        return "replica" if self.counts().get("reads", 0) > before else "primary"

    def wait_for_replay(self, user: str) -> None:
        """Wait until the replica has replayed a user's writes."""
        wait_until(lambda: self.answered_by(user) == "replica", description="the replica to replay the writes")


Start = Callable[..., Process]


@pytest.fixture
def start(servers: ReplicatedPostgres, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts the services of a process on the primary and a replica, on an empty Redis."""
    with ExitStack() as stack:
        redis.Redis.from_url(valkey_url).flushall()

        def start(url: str, *, redis_url: str = valkey_url) -> Process:
            pool = stack.enter_context(open_pool(servers.primary.url, 4))
            note = NotedWrites(pool, redis_url)
            replica = Replica(pool, url, 4, redis_url, interval_s=0.05)
            stack.callback(replica.close)
            counted, count = Counter[str](), replica._counts.count

            def note_count(name: str) -> None:
                counted[name] += 1
                count(name)

            monkeypatch.setattr(replica._counts, "count", note_count)
            store = MemoryStore(pool)
            mem0 = Mem0Memory(WordEmbedder(), store, PostgresHistory(pool), None)
            weights = calibrate(mem0.embedding_model)[0]
            memories = MemoryService(mem0, store, weights, replica=replica, note=note)
            client = stack.enter_context(redis.Redis.from_url(valkey_url))
            replica.open()
            return Process(
                replica,
                memories,
                ContextService(memories, BackgroundReader(pool), replica=replica),
                ProfileService(pool, replica=replica, note=note),
                MemoryManagement(pool, memories.writer, replica=replica, note=note),
                Forgetting(pool, note=note),
                Portability(pool, memories.writer, 10_000, note=note),
                Expiry(pool, note=note),
                client,
                counted,
            )

        yield start


@pytest.fixture
def process(start: Start, standby: Server) -> Iterator[Process]:
    """A process whose replica can be used; replay goes on after the test."""
    process = start(standby.url)
    process.wait_for_replica()
    yield process
    standby.resume_replay()


# The replica answers


def test_the_replica_answers_reads(process: Process, user: str) -> None:
    """Given a user whose writes are replayed, I expect every kind of interactive read from the replica."""
    memory_id = process.add(user, "I drink tea")
    process.profiles.update(user, {"name": "Ann"})
    process.wait_for_replay(user)
    before = process.counts()

    assert process.found(user) == {"I drink tea"}
    with process.replica.pool.connection() as connection:
        assert is_partitioned(connection)  # so a search leaves out the partitions of other users
    assert "tea" in process.contexts.context(user, ContextData(query="tea", min_score=0.0)).text
    assert process.profiles.get(user).values == {"name": "Ann"}
    assert len(process.profiles.history(user).changes) == 1
    assert len(process.management.page(user, MemoryListData()).memories) == 1
    assert process.management.get(user, memory_id)[0].content == "I drink tea"

    after = process.counts()
    assert after["reads"] - before["reads"] == 7  # the context searches, and reads profile and recap
    assert {**after, "reads": 0} == {**before, "reads": 0}
    wait_until(
        lambda: int(process.client.hget(COUNTERS, "replica_reads")) == after["reads"], description="the counts in Redis"
    )


def test_a_long_conversation_is_read_on_two_connections_of_the_replica(
    start: Start, standby: Server, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a conversation that is read in parts, I expect both halves from the replica."""
    process = start(standby.url)
    process.wait_for_replica()
    monkeypatch.setattr(process.memories._reads._on_replica.candidates, "_part_size", 2)
    said = [MemoryUpdateMessage(user_id=user, content=f"tea {n}", source="user", timestamp=n) for n in range(8)]
    process.memories.index_many(said)
    process.wait_for_replay(user)
    before = process.counts()

    assert len(process.found(user)) == len(process.found(user)) > 4
    assert process.counts()["reads"] == before["reads"] + 2


def test_what_an_idle_primary_has_written_can_be_replayed(servers: ReplicatedPostgres) -> None:
    """Given a primary at the beginning of a segment of its log, I expect a position before the segment's header: a
    replica comes behind that with the next record only."""

    def at_a_beginning() -> bool:
        with psycopg.connect(servers.primary.url, autocommit=True) as connection:
            connection.execute("SELECT pg_switch_wal()")
            written, state = written_position(connection), read_state(connection)
            return written == state.position and written.lsn % 8192 == 0

    wait_until(at_a_beginning, 20, description="a position at the beginning of a page")


# Own writes


def indexed(process: Process, user: str, _: str) -> None:
    process.memories.index(MemoryUpdateMessage(user_id=user, content="more tea", source="user", timestamp=2.0))


def added(process: Process, user: str, _: str) -> None:
    process.add(user, "more tea")


def corrected(process: Process, user: str, memory_id: str) -> None:
    process.management.update(user, MemoryUpdateData(id=memory_id, content="cold tea"), time.time())


def deleted(process: Process, user: str, memory_id: str) -> None:
    process.management.delete(user, MemoryDeleteData(ids=[memory_id]), time.time())


def forgotten(process: Process, user: str, _: str) -> None:
    process.forgetting.forget(user, time.time())


def imported(process: Process, user: str, _: str) -> None:
    record = MemoryRecord(kind="memory", id="1", content="more tea", source="user", timestamp=2.0)
    process.portability.import_records(user, [record.model_dump(exclude_none=True)], time.time())


def expired(process: Process, user: str, memory_id: str) -> None:
    with process.expiry._pool.connection() as connection:
        connection.execute("UPDATE memories SET expires_at = now() WHERE id = %s", (memory_id,))
    process.expiry.run_once()


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (indexed, {"tea", "more tea"}),
        (added, {"tea", "more tea"}),
        (corrected, {"cold tea"}),
        (deleted, set()),
        (forgotten, set()),
        (imported, {"tea", "more tea"}),
        (expired, set()),
    ],
)
def test_a_user_reads_the_own_write_that_is_not_replayed(
    process: Process,
    start: Start,
    standby: Server,
    user: str,
    write: Callable[[Process, str, str], None],
    expected: set[str],
) -> None:
    """Given a replica that replays nothing, and a write that another process answered, I expect a search to see it."""
    writer = start(standby.url)
    memory_id = writer.add(user, "tea")
    process.wait_for_replay(user)
    standby.pause_replay()

    write(writer, user, memory_id)

    assert process.found(user) == expected
    standby.resume_replay()
    process.wait_for_replay(user)
    assert process.found(user) == expected


def test_a_user_reads_the_own_profile_that_is_not_replayed(process: Process, standby: Server, user: str) -> None:
    """Given a replica that replays nothing, I expect a profile as it was last updated."""
    standby.pause_replay()

    process.profiles.update(user, {"name": "Ann"})

    assert process.profiles.get(user).values == {"name": "Ann"}


def test_others_are_read_on_a_replica_that_is_behind(process: Process, standby: Server, user: str) -> None:
    """Given one user's write that is not replayed, I expect another user's search from the replica all the same."""
    standby.pause_replay()
    process.add(user, "tea")

    assert process.answered_by("somebody else") == "replica"
    assert process.answered_by(user) == "primary"


def test_a_search_of_several_users_sees_the_writes_of_each(process: Process, standby: Server, user: str) -> None:
    """Given a search of two users, of whom one has just written, I expect it to see that."""
    standby.pause_replay()
    process.add(user, "tea")

    found = process.memories.search("somebody", SearchData(query="tea", also=[user], min_score=0.0))

    assert [memory.content for memory in found] == ["tea"]


def test_a_later_note_is_not_replaced_by_an_earlier_one(valkey_url: str, user: str) -> None:
    """Given two writers of a user whose notes arrive in the other order, I expect the later position to stay."""
    notes = WriteNotes(valkey_url, 2.0)
    before, after = Position(7, 1, 0x100), Position(7, 2, 0x80)  # after a failover, to a replica that had less

    notes.note([user], after)
    notes.note([user], before)
    assert notes.latest([user]) == [after]

    elsewhere = Position(6, 1, 0x10)  # another server, whose log says nothing of that one
    notes.note([user], elsewhere)
    assert notes.latest([user]) == [elsewhere]
    notes.close()


_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2)),
        st.tuples(st.just("delete"), st.integers(0, 2)),
        st.tuples(st.just("read"), st.integers(0, 2)),
        st.tuples(st.sampled_from(["pause", "resume"]), st.just(0)),
    ),
    min_size=5,
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=_OPERATIONS)
def test_no_read_misses_an_own_answered_write(
    process: Process, standby: Server, operations: Sequence[tuple[str, int]]
) -> None:
    """Given writes and reads of three users in any order, and replay that stops and goes on, I expect every read to
    see exactly what its user has written."""
    users = [f"user {next(NUMBERS)}" for _ in range(3)]
    known: list[dict[str, str]] = [{}, {}, {}]
    for operation, number in operations:
        if operation == "add":
            content = f"tea {next(NUMBERS)}"
            known[number][process.add(users[number], content)] = content
        elif operation == "delete" and known[number]:
            memory_id, _ = known[number].popitem()
            process.management.delete(users[number], MemoryDeleteData(ids=[memory_id]), time.time())
        elif operation == "pause":
            standby.pause_replay()
        elif operation == "resume":
            standby.resume_replay()
        listed = process.management.page(users[number], MemoryListData()).memories
        assert {memory.content for memory in listed} == set(known[number].values())
        assert process.found(users[number], limit=50) == set(known[number].values())


# Redis


def test_a_write_whose_note_fails_is_not_answered(start: Start, standby: Server, user: str) -> None:
    """Given a Redis that does not answer, I expect a write to fail as transient, and to be done when tried again."""
    process = start(standby.url)
    note, process.memories.writer._note = (
        process.memories.writer._note,
        NotedWrites(process.expiry._pool, f"redis://127.0.0.1:{free_port()}/0"),
    )
    add = AddData(content="tea")
    with pytest.raises(Unavailable, match="note"):
        process.memories.add(user, add, "r1", 1.0)
    process.memories.writer._note = note

    assert [memory.content for memory in process.memories.add(user, add, "r1", 1.0)] == ["tea"]
    process.wait_for_replay(user)
    assert process.found(user) == {"tea"}


def test_the_primary_is_read_while_redis_is_down(process: Process, user: str) -> None:
    """Given a Redis that does not answer a reader, I expect it to read the primary."""
    process.add(user, "tea")
    process.wait_for_replay(user)
    process.replica._notes = WriteNotes(f"redis://127.0.0.1:{free_port()}/0", 0.2)

    assert process.found(user) == {"tea"}
    assert process.answered_by(user) == "primary"


def test_a_redis_that_lost_the_notes_hides_no_write(process: Process, standby: Server, user: str) -> None:
    """Given a write that is not replayed, and a Redis that is restarted without its note, I expect it found."""
    standby.pause_replay()
    process.add(user, "tea")

    process.client.flushall()
    process.client.client_kill_filter(_type="normal", skipme=True)

    assert process.found(user) == {"tea"}
    wait_until(lambda: process.replica._floor, description="a new floor")
    assert process.found(user) == {"tea"}
    assert process.answered_by(user) == "primary"


def test_a_note_does_not_name_its_user_and_expires(process: Process) -> None:
    """Given a note of a write, I expect no id of its user in Redis, and an end of it."""
    process.client.flushall()
    process.add("ann@example.org", "tea")

    [key] = process.client.keys(f"{NOTE_PREFIX}*")
    assert b"ann" not in key
    assert 0 < process.client.ttl(key) <= write_notes.NOTE_TTL_S


# A replica that fails


def test_a_killed_replica_is_replaced_by_the_primary_until_it_is_back(
    servers: ReplicatedPostgres, start: Start, user: str
) -> None:
    """Given a replica that is killed, I expect answers of the primary, one line that says so, and the replica again
    once it runs."""
    replica = servers.replica()
    process = start(replica.url)
    process.add(user, "tea")
    process.wait_for_replay(user)

    with capture_logs() as lines:
        replica.stop()
        assert [process.found(user) for _ in range(20)] == [{"tea"}] * 20
        wait_until(lambda: process.replica.lag_bytes is None, description="the outage to be noticed")
        replica.start()
        process.wait_for_replay(user)

    outages = [line for line in lines if line["event"] in ("dependency_down", "dependency_up")]
    assert [(line["event"], line["dependency"]) for line in outages] == [
        ("dependency_down", "replica"),
        ("dependency_up", "replica"),
    ]


def test_a_frozen_replica_costs_no_search(servers: ReplicatedPostgres, start: Start, user: str) -> None:
    """Given a replica that is frozen, I expect each search to be answered before its deadline."""
    replica = servers.replica()
    process = start(replica.url)
    process.add(user, "tea")
    process.wait_for_replay(user)

    replica.freeze()
    found = [process.memories.search(user, SearchData(query="tea"), deadline=time.time() + 5) for _ in range(5)]

    assert [len(memories) for memories in found] == [1] * 5
    wait_until(lambda: process.replica.lag_bytes is None, description="the replica to be left out")
    replica.thaw()
    process.wait_for_replay(user)


def test_a_promoted_replica_is_read_no_longer(servers: ReplicatedPostgres, start: Start, user: str) -> None:
    """Given a replica that was promoted, I expect the primary to answer, and the log to say why."""
    replica = servers.replica()
    process = start(replica.url)
    process.add(user, "tea")
    process.wait_for_replay(user)

    with capture_logs() as lines:
        replica.promote()
        process.add(user, "more tea")
        assert process.found(user) == {"tea", "more tea"}
        wait_until(lambda: process.replica.lag_bytes is None, description="the promotion to be noticed")

    assert process.answered_by("somebody") == "primary"
    assert [line["reason"] for line in lines if line["event"] == "dependency_down"] == [
        "it is no standby: it was promoted, or DATABASE_READ_URL names a primary"
    ]


def test_a_connection_to_a_promoted_replica_is_never_given_again(servers: ReplicatedPostgres) -> None:
    """Given a connection that was found to lead to a promoted server, I expect it refused to the next reads as well."""
    with psycopg.connect(servers.primary.url) as connection:
        primary = read_state(connection)
    replica = servers.replica()
    with ReplicaPool(replica.url, 1, lambda state: state.check_standby_of(primary), lambda _: None) as pool:
        pool.wait()

        def refused() -> bool:
            try:
                with pool.connection():
                    return False
            except ReplicaUnusable:
                return True

        assert not refused()
        replica.promote()
        wait_until(refused, description="the promotion to be noticed")

        assert [refused() for _ in range(3)] == [True] * 3


def test_a_standby_of_a_promoted_server_is_not_read(servers: ReplicatedPostgres, start: Start, user: str) -> None:
    """Given a replica of a replica that was promoted, and workers that still write to the primary, I expect each user
    to read the own write, and the status to say why the replica is not read."""
    promoted = servers.replica()
    replica = servers.replica(of=promoted)
    process = start(replica.url)
    process.wait_for_replica()

    promoted.promote()
    wait_until(lambda: promoted.execute("SELECT NOT pg_is_in_recovery()")[0][0], description="the promotion")
    # The log of the promoted server gets ahead of the primary's.
    promoted.execute("CREATE TABLE theirs AS SELECT generate_series(1, 200000)")
    wait_until(
        lambda: replica.execute("SELECT to_regclass('theirs') IS NOT NULL")[0][0], description="the replica to follow"
    )
    process.add(user, "tea")

    assert process.found(user) == {"tea"}
    wait_until(lambda: process.replica.lag_bytes is None, description="the failover to be noticed")
    assert replica_status(servers.primary.url, replica.url, 5) == (
        False,
        "it does not follow the timeline of the primary, after a failover",
    )


def test_a_standby_of_another_primary_is_not_read(start: Start, user: str) -> None:
    """Given a replica of another PostgreSQL with the same tables, I expect the primary to answer."""
    others = ReplicatedPostgres()
    try:
        with psycopg.connect(others.primary.url) as connection:
            migrate(connection, DIMENSIONS)
        with capture_logs() as lines:
            process = start(others.replica().url)
            process.add(user, "tea")
            wait_until(lambda: any(line.get("dependency") == "replica" for line in lines), description="the refusal")

        assert process.found(user) == {"tea"}
        assert "another PostgreSQL" in next(line["reason"] for line in lines if line.get("dependency") == "replica")
    finally:
        process.replica.close()
        others.stop()


def test_another_database_of_the_replica_is_not_read(start: Start, standby: Server, user: str) -> None:
    """Given the URL of a database without the tables, I expect the primary to answer."""
    with capture_logs() as lines:
        process = start(standby.url.replace("/keepsake?", "/postgres?"))
        process.add(user, "tea")
        wait_until(lambda: any(line.get("dependency") == "replica" for line in lines), description="the refusal")

    assert process.found(user) == {"tea"}


def test_a_replica_that_is_not_there_delays_no_start(start: Start, user: str) -> None:
    """Given a URL where nothing listens, I expect a process that starts and answers from the primary."""
    process = start(f"postgresql://postgres@127.0.0.1:{free_port()}/keepsake")
    process.add(user, "tea")

    assert process.found(user) == {"tea"}


def test_a_read_that_conflicts_with_replay_is_done_on_the_primary(
    process: Process, servers: ReplicatedPostgres, user: str
) -> None:
    """Given a read that replay ends, I expect the primary to answer it, and the replica to stay in use."""
    process.add(user, "tea")
    process.wait_for_replay(user)

    def read_and_conflict() -> str:
        with process.replica.pool.connection() as connection, connection.transaction():
            connection.execute("SELECT FROM memories LIMIT 1")
            servers.primary.execute("BEGIN; LOCK TABLE memories IN ACCESS EXCLUSIVE MODE; COMMIT")
            connection.execute("SELECT pg_sleep(20)")
        return "replica"

    with capture_logs() as lines:
        before = process.counts()
        assert process.replica.read([user], read_and_conflict, lambda: "primary", 60.0) == "primary"

    assert process.counts()["failed"] == before.get("failed", 0) + 1
    assert not [line for line in lines if line["event"] == "dependency_down"]
    process.wait_for_replay(user)


def test_a_replica_of_another_schema_is_not_read(
    process: Process, servers: ReplicatedPostgres, standby: Server, user: str
) -> None:
    """Given a migration that the replica has not replayed, I expect the primary to answer until it has."""
    process.add(user, "tea")
    process.wait_for_replay(user)
    standby.pause_replay()
    servers.primary.execute("INSERT INTO schema_migrations (version) SELECT max(version) + 1 FROM schema_migrations")
    try:
        wait_until(lambda: process.replica.lag_bytes is None, description="the other schema to be noticed")
        assert process.found(user) == {"tea"}
        standby.resume_replay()
        process.wait_for_replay(user)
    finally:
        servers.primary.execute(
            "DELETE FROM schema_migrations WHERE version = (SELECT max(version) FROM schema_migrations)"
        )


# Status


def test_the_status_shows_how_far_the_replica_is_behind(
    process: Process, servers: ReplicatedPostgres, standby: Server, user: str, valkey_url: str
) -> None:
    """Given a replica, I expect a line of its own with its lag; and down, with the reason, where it is none."""

    def replica_part(read_url: str) -> Part:
        given = load_settings(redis_url=valkey_url, database_url=servers.primary.url, database_read_url=read_url)
        [part] = [part for part in StatusReader(FoundStack(given, True, ())).report().parts if part.name == REPLICA]
        return part

    standby.pause_replay()
    process.add(user, "tea")
    behind = replica_part(standby.url)
    assert behind.state == "answers"
    assert re.fullmatch(r"[1-9][\d,]* bytes behind", str(behind.detail))

    primary = replica_part(servers.primary.url)
    assert (primary.state, str(primary.detail).partition(":")[0]) == ("down", "it is no standby")
    gone = replica_part(f"postgresql://u:s3cret@127.0.0.1:{free_port()}/keepsake")
    assert (gone.state, gone.detail) == ("down", "it does not answer")
    assert "s3cret" not in gone.model_dump_json()


# Without one


def test_without_a_replica_nothing_is_asked_of_redis_or_postgres(
    database: str, valkey_url: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given no DATABASE_READ_URL, I expect a write and a search to send what they sent before: no note, no position."""
    statements: list[str] = []
    execute = psycopg.Connection.execute

    def note(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        statements.append(query.as_string(None) if hasattr(query, "as_string") else query)
        return execute(self, query, params, **options)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("connected to Redis")

    monkeypatch.setattr(write_notes, "connect", refuse)
    long_term_memory = factory.open_long_term_memory(Settings(database_url=database, redis_url=valkey_url), 1)
    try:
        long_term_memory.memories.add(user, AddData(content="I drink tea"), "r1", time.time())
        monkeypatch.setattr(psycopg.Connection, "execute", note)
        long_term_memory.memories.add(user, AddData(content="I drink coffee"), "r2", time.time())
        written, statements[:] = list(statements), []
        long_term_memory.memories.search(user, SearchData(query="tea"))
    finally:
        long_term_memory.close()

    assert len(written) == 2  # the insertion with its history, and the analysis of what was inserted
    assert len(statements) == 2  # what is ranked, and what is shown
    assert not [one for one in written + statements if "lsn" in one or "recovery" in one]
