"""`ltm backup` and `ltm restore` on a real PostgreSQL and Valkey: nothing lost, nothing half, nothing overwritten."""

from __future__ import annotations

import json
import stat
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import (
    STREAM_ARRIVED_FIELD,
    STREAM_EVENT_FIELD,
    MemoryUpdateMessage,
    SearchData,
    conversation_key,
)
from pydantic import SecretStr

from adapters.stream import UpdateStream
from services.backup.archive import MANIFEST, Manifest
from services.backup.backup import back_up
from services.backup.redis_state import BATCH, RedisState
from services.backup.restore import Restore
from services.long_term_memory.embeddings.calibration import calibrate
from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.dump import snapshot
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.profile_service import ProfileService
from services.runtime.errors import BackupRefused, RestoreRefused
from services.runtime.queues import INDEX_QUEUE, QueueKeys
from services.runtime.settings import Settings
from tasks.queues import index_message
from tests.integration.conftest import DIMENSIONS, WordEmbedder, drop_database
from tests.integration.test_embedder_change import WORDS, fill, fill_present, start
from tests.integration.test_life_of_facts import NOON, Site
from tests.integration.test_migrations import STEPS, migrated, schema, store_unversioned, versions

TEXTS = ("My cat is called Tofu", "I live in Lisbon", "我喜欢绿茶", "Tofu the cat likes fish")


def ignore(*_: object) -> None:
    """Report no progress."""


@dataclass
class Place:
    """A database and a Redis of a test's own.

    Args:
        redis_database: the number of the Redis database.
    """

    database_url: str
    redis_url: str
    stream: str = field(default_factory=lambda: f"updates-{uuid.uuid4().hex}")

    @property
    def settings(self) -> Settings:
        return Settings(
            database_url=SecretStr(self.database_url),
            redis_url=SecretStr(self.redis_url),
            ltm_stream_key=self.stream,
        )

    @property
    def client(self) -> Any:  # redis-py's types of stream replies are those of every protocol at once
        return redis.Redis.from_url(self.redis_url)

    def back_up(self, path: Path, **options: bool) -> Manifest:
        return back_up(self.settings, path, ignore, **options)

    def restore(self, path: Path, **options: bool) -> None:
        Restore(path, **options).run(self.settings, ignore)


@pytest.fixture
def full(database: str, valkey_url: str) -> Iterator[Place]:
    """A place with a migrated database, to back up."""
    place = Place(database, valkey_url.replace("/0", "/5"))
    yield place
    place.client.flushdb()


@pytest.fixture
def new(empty_database: str, valkey_url: str) -> Iterator[Place]:
    """An empty place, to restore into."""
    place = Place(empty_database, valkey_url.replace("/0", "/6"))
    yield place
    place.client.flushdb()


@pytest.fixture
def backup(full: Place, tmp_path: Path) -> Path:
    """A backup of some memories."""
    start(full.database_url, WordEmbedder(), WORDS)
    fill(full.database_url, WordEmbedder(), TEXTS)
    full.back_up(tmp_path / "backup")
    return tmp_path / "backup"


def found(url: str, query: str) -> list[tuple[str, float | None, str]]:
    """What a search returns: ids, scores and contents, in order."""
    embedder = WordEmbedder()
    with open_pool(url, 2) as pool:
        store = MemoryStore(pool)
        service = MemoryService(Mem0Memory(embedder, store, PostgresHistory(pool), None), store, calibrate(embedder)[0])
        memories = service.search("u1", SearchData(query=query, limit=10, min_score=0), now=2e9)
    return [(memory.id, memory.score, memory.content) for memory in memories]


def rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables but those of the migrations."""
    with psycopg.connect(url) as connection:
        names = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_migrations'"
        ).fetchall()
        return {name: connection.execute(f"SELECT t::text FROM {name} AS t ORDER BY 1").fetchall() for (name,) in names}


# The database


def test_searches_find_the_same_after_a_restore(full: Place, new: Place, tmp_path: Path) -> None:
    """Given memories and a profile, I expect every row again, and of a search the same ids, scores and order."""
    start(full.database_url, WordEmbedder(), WORDS)
    fill_present(full.database_url, WordEmbedder(), TEXTS)
    with open_pool(full.database_url, 1) as pool:
        PostgresHistory(pool).add_history(str(uuid.uuid4()), "I live in Porto", TEXTS[1], "UPDATE", role="user")
        ProfileService(pool).update("u1", {"city": "Lisbon"}, None, "r1")

    manifest = full.back_up(tmp_path / "backup")
    new.restore(tmp_path / "backup")

    assert rows(new.database_url) == rows(full.database_url)
    assert schema(new.database_url)[: -len(STEPS)] == schema(full.database_url)[: -len(STEPS)]
    for query in ("cat", "Lisbon", "绿茶", "fish for Tofu"):
        assert found(new.database_url, query) == found(full.database_url, query) != []
    assert manifest.tables["memories"].rows == len(TEXTS)
    assert (manifest.dimensions, manifest.embedder and manifest.embedder.provider) == (DIMENSIONS, "words")


def test_facts_are_restored_with_what_belongs_to_them(full: Place, new: Place, tmp_path: Path) -> None:
    """Given facts, a superseded one, a slot, and what waits for the LLM, I expect every row again, and a deletion of a
    message to take its fact along there."""
    start(full.database_url, WordEmbedder(), WORDS)
    with open_pool(full.database_url, 2) as pool:
        site = Site(pool, Mem0Memory(WordEmbedder(), MemoryStore(pool), PostgresHistory(pool), None))
        oslo, lisbon = site.say("I live in Oslo"), site.say("I moved to Lisbon", NOON + 1)
        site.find("The user lives in Lisbon.", [lisbon], replaces=[site.find("The user lives in Oslo.", [oslo])])
        site.know("home", "Lisbon", [lisbon])

    manifest = full.back_up(tmp_path / "backup")
    new.restore(tmp_path / "backup")

    assert rows(new.database_url) == rows(full.database_url)
    filled = {name: part.rows for name, part in manifest.tables.items()}
    assert (filled["fact_evidence"], filled["superseded_facts"], filled["to_extract"]) == (2, 1, 2)
    with open_pool(new.database_url, 2) as pool:
        site = Site(pool, Mem0Memory(WordEmbedder(), MemoryStore(pool), PostgresHistory(pool), None))
        site.delete(lisbon)
        assert site.facts() == {"The user lives in Oslo."}
        assert site.profiles.get("u1").values == {}


def test_numbers_go_on_after_a_restore(backup: Path, new: Place, full: Place) -> None:
    """Given the newest memory deleted, I expect its number not used again in the restored database."""
    with psycopg.connect(full.database_url) as connection:
        connection.execute("DELETE FROM memories WHERE number = (SELECT max(number) FROM memories)")
    backup.unlink()
    full.back_up(backup)
    new.restore(backup)
    for url in (full.database_url, new.database_url):
        fill(url, WordEmbedder(), ["one more"])

    newest = "SELECT number FROM memories WHERE content = 'one more'"
    with psycopg.connect(full.database_url) as there, psycopg.connect(new.database_url) as here:
        assert here.execute(newest).fetchall() == there.execute(newest).fetchall()


@pytest.mark.parametrize("version", range(1, len(STEPS) + 1))
def test_a_backup_of_any_version_is_restored(
    empty_database: str, new_database: str, tmp_path: Path, version: int
) -> None:
    """Given a database that an older release has left, I expect it restored and migrated, not the original."""
    migrated(empty_database, steps=STEPS[:1])
    with psycopg.connect(empty_database) as connection:
        connection.execute("INSERT INTO profiles VALUES ('u1', '{}', 1, now())")
        if version == 1:
            connection.execute(
                "INSERT INTO memories VALUES (%s, %s::vector, %s)",
                (uuid.uuid4(), str(WordEmbedder().embed(TEXTS[0])), json.dumps({"data": TEXTS[0], "user_id": "u1"})),
            )
    migrated(empty_database, steps=STEPS[:version])
    if version > 1:
        store_unversioned(empty_database, TEXTS[0])

    back_up(Settings(database_url=SecretStr(empty_database)), tmp_path / "backup", ignore, database_only=True)
    settings = Settings(database_url=SecretStr(new_database))
    Restore(tmp_path / "backup", database_only=True).run(settings, ignore)

    assert versions(empty_database) == list(range(1, version + 1))
    assert versions(new_database) == list(range(1, len(STEPS) + 1))
    with psycopg.connect(new_database) as connection:
        assert connection.execute("SELECT user_id FROM profiles").fetchall() == [("u1",)]
    assert [content for _, _, content in found(new_database, "cat Tofu")] == [TEXTS[0]]


@pytest.mark.parametrize("version", [1, 3, len(STEPS)])
def test_a_backup_is_restored_for_the_release_that_it_was_made_of(
    empty_database: str, new_database: str, tmp_path: Path, version: int
) -> None:
    """Given a backup of an older release's database, and that its schema is to be kept, I expect the same tables,
    columns, indexes and rows."""
    migrated(empty_database, steps=STEPS[:version])
    if version > 1:
        store_unversioned(empty_database, *TEXTS)
    back_up(Settings(database_url=SecretStr(empty_database)), tmp_path / "backup", ignore, database_only=True)

    restore = Restore(tmp_path / "backup", database_only=True, keep_schema=True)
    restore.run(Settings(database_url=SecretStr(new_database)), ignore)

    assert versions(new_database) == list(range(1, version + 1))
    assert schema(new_database)[:-version] == schema(empty_database)[:-version]
    rows = "SELECT * FROM memories ORDER BY id"
    with psycopg.connect(empty_database) as there, psycopg.connect(new_database) as here:
        assert here.execute(rows).fetchall() == there.execute(rows).fetchall()


@pytest.fixture
def new_database(create_database: Callable[..., str], database_url: str) -> Iterator[str]:
    """The URL of a second empty database."""
    url = create_database()
    yield url
    drop_database(database_url, url)


def test_every_table_is_in_a_backup(database: str) -> None:
    """Given a migrated database, I expect the tables and columns of the catalog, but for what is generated."""
    with psycopg.connect(database) as connection:
        columns = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
            " AND is_generated = 'NEVER' AND table_name <> 'schema_migrations'"
            " AND table_name NOT IN (SELECT relname FROM pg_class WHERE relispartition)"
        ).fetchall()
        connection.execute("CREATE TABLE of_another_program (id int)")
        connection.commit()
    with snapshot(database) as stored:
        backed_up = {(table.name, column) for table in stored.tables for column in table.columns}

    assert backed_up == set(columns)


def test_what_is_written_meanwhile_is_whole_or_not_in_it(full: Place, new: Place, tmp_path: Path) -> None:
    """Given a memory of a new user that is stored while the tables are read, I expect neither or both."""
    start(full.database_url, WordEmbedder(), WORDS)
    fill(full.database_url, WordEmbedder(), TEXTS)
    joined: list[bool] = []

    def join(done: int, total: int) -> None:
        if not joined:
            joined.append(True)
            fill(full.database_url, WordEmbedder(), ["said meanwhile"])

    back_up(full.settings, tmp_path / "backup", join)
    new.restore(tmp_path / "backup")

    with psycopg.connect(new.database_url) as connection:
        contents = connection.execute("SELECT content FROM memories ORDER BY number").fetchall()
    assert [content for (content,) in contents] == list(TEXTS)


# What Redis keeps


def event(message_id: str, content: str = "I like tea") -> MemoryUpdateMessage:
    return MemoryUpdateMessage(user_id="u1", content=content, source="user", timestamp=1.79e9, message_id=message_id)


def test_events_that_are_not_indexed_yet_are_restored(full: Place, new: Place, tmp_path: Path) -> None:
    """Given events on every way to the index, I expect each of them once more, with the time of its arrival."""
    full.client.xadd(full.stream, {STREAM_EVENT_FIELD: event("dispatched").to_wire()}, id="1790000000500-0")
    full.client.xadd(full.stream, {STREAM_EVENT_FIELD: event("pending").to_wire()}, id="1790000001500-0")
    stream = UpdateStream(full.client, full.stream, "a1", 1_000)
    stream.open()
    stream.read(2, None)  # what was pending: nothing
    read = stream.read(2, None)
    stream.ack([read[0].id])
    full.client.xadd(full.stream, {STREAM_EVENT_FIELD: event("unread").to_wire()}, id="1790000002500-0")
    keys = QueueKeys(INDEX_QUEUE)
    for name in (keys.messages, keys.delayed_messages, keys.dead_messages):
        full.client.hset(name, name, index_message(event(name), 1_790_000_003.5).encode())
    full.client.hset(keys.dead_messages, "no message", b"\xff")
    full.client.hset(keys.dead_messages, "no time", b'{"kwargs": {"update": {"message_id": "undated"}}}')

    manifest = full.back_up(tmp_path / "backup")
    new.restore(tmp_path / "backup")

    restored = UpdateStream(new.client, new.stream, "a1", 1_000)
    restored.open()
    restored.read(10, None)
    arrived = {json.loads(entry.event)["message_id"]: entry.arrived_at for entry in restored.read(10, None)}
    assert abs(arrived.pop("undated") - time.time()) < 60
    assert arrived == {
        "pending": 1_790_000_001.5,
        "unread": 1_790_000_002.5,
        **dict.fromkeys((keys.messages, keys.delayed_messages, keys.dead_messages), 1_790_000_003.5),
    }
    assert manifest.events is not None
    assert manifest.events.rows == len(arrived) + 1


def test_conversations_are_restored_with_the_time_they_have_left(full: Place, new: Place, tmp_path: Path) -> None:
    """Given conversations, one without a limit, and what another program keeps, I expect the conversations again."""
    key = conversation_key("ann a")
    full.client.rpush(key, event("m1").to_wire(), b"\xff\xfe")
    full.client.pexpire(key, 50_000_000)
    full.client.rpush(conversation_key("u2"), "x")
    full.client.set("memory:conversation:no-list", "theirs")

    full.back_up(tmp_path / "backup")
    new.restore(tmp_path / "backup")

    assert new.client.lrange(key, 0, -1) == [event("m1").to_wire().encode(), b"\xff\xfe"]
    assert 0 < new.client.pttl(key) <= 50_000_000
    assert new.client.pttl(conversation_key("u2")) == -1
    assert new.client.keys("memory:conversation:*no-list") == []


def test_what_is_not_in_a_backup_is_told(full: Place, tmp_path: Path) -> None:
    """Given requests and inputs that wait, I expect their numbers."""
    full.client.lpush("ltm_requests", "{}", "{}")
    full.client.lpush("ltm_requests:manage", "{}")
    full.client.lpush("user_input_queue", "{}")
    full.client.lpush("user_input_queue:processing", "{}")
    settings = full.settings.model_copy(update={"ltm_manage_queue": "ltm_requests:manage"})

    manifest = back_up(settings, tmp_path / "backup", ignore)

    assert manifest.left_out == {"messages on user_input_queue": 2, "requests in progress": 3}


def test_a_stream_without_a_group_is_all_unread(full: Place) -> None:
    """Given events that no adapter has ever looked for, I expect all of them."""
    for number in range(3):
        full.client.xadd(full.stream, {STREAM_EVENT_FIELD: event(str(number)).to_wire()})

    assert [json.loads(found["event"])["message_id"] for found in RedisState(full.settings).events()] == ["0", "1", "2"]


def test_a_long_backlog_is_read_whole(full: Place) -> None:
    """Given more events than are read at once, pending and unread, I expect each of them once."""
    ids = [str(number) for number in range(3 * BATCH + 10)]
    with full.client.pipeline(transaction=False) as pipeline:
        for message_id in ids:
            pipeline.xadd(full.stream, {STREAM_EVENT_FIELD: event(message_id).to_wire()})
        pipeline.execute()
    stream = UpdateStream(full.client, full.stream, "a1", 1_000_000)
    stream.open()
    stream.read(1, None)
    stream.read(2 * BATCH, None)

    found = [json.loads(entry["event"])["message_id"] for entry in RedisState(full.settings).events()]

    assert sorted(found) == sorted(ids)


# Refusals, each of which leaves everything as it was


def test_a_stack_that_is_not_empty_is_refused(backup: Path, full: Place) -> None:
    """Given memories, I expect one line, and what is there left alone."""
    before = rows(full.database_url), schema(full.database_url)

    with pytest.raises(RestoreRefused, match="the database is not empty, there are rows in memories, users: restore"):
        full.restore(backup)

    assert (rows(full.database_url), schema(full.database_url)) == before


@pytest.mark.parametrize("kept", ["conversation", "event"])
def test_a_redis_that_is_not_empty_is_refused(backup: Path, new: Place, kept: str) -> None:
    """Given an empty database and a Redis with conversations or events, I expect one line; and the database alone."""
    if kept == "conversation":
        new.client.rpush(conversation_key("u9"), "x")
    else:
        new.client.xadd(new.stream, {STREAM_EVENT_FIELD: event("m1").to_wire()})

    with pytest.raises(RestoreRefused, match=f"Redis is not empty, there are {kept}s"):
        new.restore(backup)

    assert rows(new.database_url) == {}
    new.restore(backup, database_only=True)
    assert len(rows(new.database_url)["memories"]) == len(TEXTS)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(backup: Path, new: Place, share: float) -> None:
    """Given a file that is not whole, I expect one line before anything is written."""
    whole = backup.read_bytes()
    backup.write_bytes(whole[: int(len(whole) * share)])

    with pytest.raises(RestoreRefused, match="is not whole, or no backup"):
        new.restore(backup)

    assert rows(new.database_url) == {}


def test_a_damaged_file_is_refused(backup: Path, new: Place) -> None:
    """Given a byte of the memories that changed, in the archive and behind its back, I expect one line."""
    whole = bytearray(backup.read_bytes())
    with zipfile.ZipFile(backup) as archive:
        place = archive.getinfo("tables/memories").header_offset + 500
    whole[place] ^= 1
    backup.write_bytes(whole)

    with pytest.raises(RestoreRefused, match="is not whole"):
        new.restore(backup)

    assert rows(new.database_url) == {}


def rewritten(path: Path, **changes: Any) -> None:
    """Write the archive again with another manifest, or other contents of an entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(entries[MANIFEST])
    entries |= {name: changes.pop(name) for name in list(changes) if name in entries}
    entries[MANIFEST] = json.dumps(manifest | changes).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_contents_that_are_not_those_of_the_manifest_are_refused(backup: Path, new: Place) -> None:
    """Given an archive that was put together again with other contents, I expect one line."""
    rewritten(backup, **{"tables/users": b"other"})

    with pytest.raises(RestoreRefused, match="tables/users has another checksum"):
        new.restore(backup)

    assert rows(new.database_url) == {}


@pytest.mark.parametrize("newer", [{"format": 2}, {"schema_version": len(STEPS) + 1}])
def test_a_file_of_a_newer_release_is_refused(backup: Path, new: Place, newer: dict[str, int]) -> None:
    """Given a format or a schema that this release does not know, I expect a line that names the release."""
    rewritten(backup, release="9.9", **newer)

    with pytest.raises(RestoreRefused, match=r"was written by release 9\.9 of Keepsake, which is newer"):
        new.restore(backup)

    assert rows(new.database_url) == {}


def test_a_column_that_the_schema_has_not_is_refused(backup: Path, new: Place) -> None:
    """Given a file with an unknown column, I expect one line, and nothing written."""
    with zipfile.ZipFile(backup) as archive:
        tables = json.loads(archive.read(MANIFEST))["tables"]
    tables["users"]["columns"][1] = "nick"
    rewritten(backup, tables=tables)

    with pytest.raises(RestoreRefused, match=r"the file has users\.nick"):
        new.restore(backup)

    assert rows(new.database_url) == {}


def test_a_redis_that_refuses_leaves_nothing(backup: Path, full: Place, new: Place) -> None:
    """Given a Redis that takes the conversations and then refuses an event, I expect neither it nor the database."""
    full.client.rpush(conversation_key("u1"), "x")
    full.client.xadd(full.stream, {STREAM_EVENT_FIELD: event("m1").to_wire()})
    backup.unlink()
    full.back_up(backup)
    new.client.set(new.stream, "of another type")

    with pytest.raises(RestoreRefused, match=r"cannot be used .* and nothing was restored"):
        Restore(backup).run(new.settings, ignore)

    assert rows(new.database_url) == {}
    assert new.client.keys("memory:*") == []


def test_a_database_that_breaks_at_the_end_leaves_nothing_in_redis(
    backup: Path, full: Place, new: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a PostgreSQL that ends before the commit, I expect neither it nor Redis to keep anything."""
    full.client.rpush(conversation_key("u1"), "x")
    full.client.xadd(full.stream, {STREAM_EVENT_FIELD: event("m1").to_wire()})
    backup.unlink()
    full.back_up(backup)
    write = RedisState.restore
    written: list[int] = []

    def write_and_break(state: RedisState, *parts: Any) -> Callable[[], None]:
        undo = write(state, *parts)
        written.append(new.client.dbsize())
        with psycopg.connect(full.database_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                (psycopg.conninfo.conninfo_to_dict(new.database_url)["dbname"],),
            )
        return undo

    monkeypatch.setattr(RedisState, "restore", write_and_break)
    with pytest.raises(Unavailable):
        new.restore(backup)

    assert written == [2]
    assert rows(new.database_url) == {}
    assert new.client.keys("memory:*") == []
    assert new.client.xlen(new.stream) == 0


def test_workers_with_another_embedder_are_refused(backup: Path, new: Place) -> None:
    """Given a stack that has been started empty with another embedder, I expect one line while its workers run."""
    start(new.database_url, WordEmbedder(), EmbedderIdentity("others", "o1", DIMENSIONS, ""))
    with (
        open_pool(new.database_url, 1),
        pytest.raises(RestoreRefused, match=r"were embedded by words w1 .* and the running workers embed by others o1"),
    ):
        new.restore(backup)

    assert rows(new.database_url)["memories"] == []
    new.restore(backup)
    assert len(rows(new.database_url)["memories"]) == len(TEXTS)


def test_a_stack_that_has_been_started_is_restored_into(backup: Path, full: Place, new: Place) -> None:
    """Given workers that have opened an empty database and searched it, I expect them to find and store."""
    start(new.database_url, WordEmbedder(), WORDS)
    embedder = WordEmbedder()
    with open_pool(new.database_url, 2) as pool:
        store = MemoryStore(pool)
        service = MemoryService(Mem0Memory(embedder, store, PostgresHistory(pool), None), store, calibrate(embedder)[0])
        for _ in range(10):  # by then, the driver has prepared the statements
            assert service.search("u1", SearchData(query="cat")) == []

        new.restore(backup)

        contents = {memory.content for memory in service.search("u1", SearchData(query="cat", min_score=0))}
        service.index_many([event("m1")])
        assert contents == set(TEXTS)
    assert {content for _, _, content in found(new.database_url, "tea")} == {*TEXTS, "I like tea"}


def test_a_database_without_keepsake_is_not_backed_up(new: Place, tmp_path: Path) -> None:
    """Given an empty database, I expect one line and no file."""
    with pytest.raises(BackupRefused, match="there is nothing to back up"):
        new.back_up(tmp_path / "backup")

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_overwritten(full: Place, tmp_path: Path) -> None:
    """Given a file of that name, I expect one line, and the file left alone."""
    (tmp_path / "mine").write_text("mine")

    with pytest.raises(BackupRefused, match="is there already"):
        full.back_up(tmp_path / "mine")

    assert (tmp_path / "mine").read_text() == "mine"


def test_a_redis_that_does_not_answer_is_told(full: Place, tmp_path: Path) -> None:
    """Given no Redis, I expect a line that names the option, no file, and with the option a backup."""
    away = Place(full.database_url, "redis://127.0.0.1:1/0")

    with pytest.raises(BackupRefused, match="--database-only backs up memories and profiles alone"):
        away.back_up(tmp_path / "backup")

    assert list(tmp_path.iterdir()) == []
    assert away.back_up(tmp_path / "backup", database_only=True).events is None


def test_a_backup_is_private_and_holds_no_secrets(backup: Path, full: Place) -> None:
    """Given settings with passwords, I expect none of them in the file, which its owner alone can read."""
    with zipfile.ZipFile(backup) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())

    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert full.database_url.encode() not in content
    assert b"redis://" not in content
    assert b"postgresql://" not in content
    assert [path.name for path in backup.parent.iterdir()] == ["backup"]


def test_an_entry_without_its_arrival_is_dated_by_its_id(full: Place) -> None:
    """Given an entry as publishers write it, and one with an unreadable arrival, I expect the id's time, or now."""
    full.client.xadd(full.stream, {STREAM_EVENT_FIELD: "{}"}, id="1790000000500-0")
    full.client.xadd(full.stream, {STREAM_EVENT_FIELD: "{}", STREAM_ARRIVED_FIELD: "1780000000.25"})
    stream = UpdateStream(full.client, full.stream, "a1", 1_000)
    stream.open()

    stream.read(10, None)
    assert [entry.arrived_at for entry in stream.read(10, None)] == [1_790_000_000.5, 1_780_000_000.25]


def test_a_migrated_database_is_needed_no_more_than_an_empty_one(backup: Path, new: Place) -> None:
    """Given a database that was migrated for other dimensions and is empty, I expect those of the backup."""
    with psycopg.connect(new.database_url) as connection:
        migrate(connection, 8)

    new.restore(backup)

    assert found(new.database_url, "cat") != []
