"""Export and import of all that is kept of one user."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import AddData, MemoryUpdateMessage, SearchData
from psycopg_pool import ConnectionPool

from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.portability import MAX_PAGE_BYTES, ImportOutcome, Portability
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.profile_service import ProfileService
from tests.integration.conftest import WordEmbedder

NOON = 1_715_774_400.0
MAX_CHARS = 32_768


class Instance:
    """One Keepsake: its services on a database of their own."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool
        store = MemoryStore(pool)
        self.memories = MemoryService(Mem0Memory(WordEmbedder(), store, PostgresHistory(pool), None), store)
        self.portability = Portability(pool, self.memories.writer, MAX_CHARS)
        self.profiles = ProfileService(pool)

    def say(self, content: str, at: float = NOON, user: str = "u1", **more: Any) -> None:
        """Index a message of the user."""
        event = {"user_id": user, "content": content, "source": "user", "timestamp": at, **more}
        self.memories.index(MemoryUpdateMessage.model_validate(event), at)

    def export(self, user: str = "u1", limit: int = 50) -> list[dict[str, Any]]:
        """All records of the user, page by page."""
        records, cursor = self.portability.export(user, limit, None)
        while cursor is not None:
            page, cursor = self.portability.export(user, limit, cursor)
            records += page
        return records

    def take(self, records: list[dict[str, Any]], user: str = "u1", **more: Any) -> ImportOutcome:
        """Import records."""
        return self.portability.import_records(user, records, time.time(), **more)

    def found(self, query: str, user: str = "u1", **more: Any) -> list[tuple[Any, ...]]:
        """What a search finds: ids, contents, scores and what else comes with them."""
        search = SearchData.model_validate({"query": query, "limit": 100, "min_score": 0, **more})
        hits = self.memories.search(user, search, now=NOON + 86_400)
        return [(hit.id, hit.content, hit.score, hit.timestamp, hit.speaker, hit.metadata) for hit in hits]

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement, and return its rows."""
        with self.pool.connection() as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def instances(create_database: Callable[..., str], migrated_template: str) -> Iterator[Callable[[], Instance]]:
    """Makes instances, each on a database of its own."""
    with ExitStack() as stack:
        yield lambda: Instance(stack.enter_context(open_pool(create_database(migrated_template), 2)))


def fill(instance: Instance) -> None:
    """A user with memories of every kind, and profiles."""
    instance.say("My cat is called Mochi", meta={"session_id": "s1", "mood": "glad"}, message_id="m1")
    instance.say("I like blue", NOON + 1.000001, message_id="u_1")
    instance.say("My brother is called Lin", NOON + 1.000001, message_id="u_1")
    instance.say("The tea is green", NOON + 2, source="ai", agent_id="luna")
    instance.say("I moved to Porto", NOON + 3, speaker={"id": "7", "name": "小明"}, ttl_days=30)
    instance.memories.add("u1", AddData(content="I play the cello", metadata={"a": 1}), "r1", NOON + 4)
    instance.profiles.update("u1", {"name": "Anna"}, request_id="p1")
    instance.profiles.update("u1", {"name": "Anna Lee", "age": 30}, request_id="p2")


def test_what_was_exported_is_the_same_on_another_instance(instances: Callable[[], Instance]) -> None:
    """Given an import of an export on an empty instance, I expect the same searches, profile and export there."""
    here, there = instances(), instances()
    fill(here)

    outcome = there.take(here.export())

    assert outcome == ImportOutcome(new=6)
    assert there.export() == here.export()
    assert there.profiles.get("u1") == here.profiles.get("u1")
    for scope in ({}, {"agent_id": "luna"}):
        assert there.found("What is my cat called?", **scope) == here.found("What is my cat called?", **scope)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_leave_nothing_out(instances: Callable[[], Instance], limit: int) -> None:
    """Given pages of any size, I expect every record once."""
    here = instances()
    fill(here)

    records = here.export(limit=limit)

    assert [record["content"] for record in records if record["kind"] == "memory"] == [
        *("My cat is called Mochi", "I like blue", "My brother is called Lin", "I moved to Porto", "I play the cello"),
        "The tea is green",
    ]
    assert [record["version"] for record in records if record["kind"] == "profile_change"] == [1, 2]


def test_a_page_fits_into_a_request(instances: Callable[[], Instance]) -> None:
    """Given memories of 30,000 Chinese characters, I expect pages below the limit, and all of them."""
    here = instances()
    for number in range(6):
        here.say("猫" * 30_000 + str(number), NOON + number)

    first, cursor = here.portability.export("u1", 100, None)
    assert (first, cursor is None) == ([], False)
    sizes = []
    while cursor is not None:
        page, cursor = here.portability.export("u1", 100, cursor)
        sizes.append(len(page))

    assert max(sizes) * 180_000 <= MAX_PAGE_BYTES + 180_000
    assert sum(sizes) == 6


def test_importing_twice_changes_nothing(instances: Callable[[], Instance]) -> None:
    """Given the same records again, and the same event again, I expect one memory of each."""
    here, there = instances(), instances()
    fill(here)
    records = here.export()
    there.take(records)

    assert there.take(records) == ImportOutcome(known=6)
    there.say("My cat is called Mochi", meta={"session_id": "s1", "mood": "glad"}, message_id="m1")
    assert len(there.execute("SELECT id FROM memories")) == 6


def test_a_corrected_memory_keeps_its_history_and_its_event(instances: Callable[[], Instance]) -> None:
    """Given a memory that was corrected, I expect its history there, and its event recognised."""
    here, there = instances(), instances()
    here.say("My cat is called Moshi", message_id="m1")
    [(memory_id,)] = here.execute("SELECT id::text FROM memories")
    here.execute("UPDATE memories SET content = 'My cat is called Mochi'")
    here.execute(
        "INSERT INTO memory_history (id, memory_id, old_memory, new_memory, event, updated_at, is_deleted)"
        " VALUES (gen_random_uuid(), %s, 'My cat is called Moshi', 'My cat is called Mochi', 'UPDATE', '2024', false)",
        memory_id,
    )

    there.take(here.export())

    assert there.export() == here.export()
    assert [change["event"] for change in there.export()[0]["history"]] == ["ADD", "UPDATE"]
    there.say("My cat is called Moshi", message_id="m1")
    assert there.execute("SELECT content FROM memories") == [("My cat is called Mochi",)]


def test_what_was_deleted_stays_deleted_unless_it_is_asked_for(instances: Callable[[], Instance]) -> None:
    """Given tombstones of what a file holds, I expect it left out and counted, and back where that is asked for."""
    here = instances()
    fill(here)
    records = here.export()
    here.execute("INSERT INTO tombstones (memory_id) SELECT id FROM memories WHERE payload ->> 'message_id' IS NULL")
    here.execute("DELETE FROM memories WHERE payload ->> 'message_id' IS NULL")

    assert here.take(records) == ImportOutcome(known=3, deleted=3)
    assert here.take(records, restore_deleted=True) == ImportOutcome(new=3, known=3)
    assert here.take(records) == ImportOutcome(known=6)


def test_a_profile_that_is_there_stays(instances: Callable[[], Instance]) -> None:
    """Given a profile on the other instance, I expect it unchanged, and its next update to work."""
    here, there = instances(), instances()
    fill(here)
    there.profiles.update("u1", {"name": "Bo"})

    there.take(here.export())

    assert there.profiles.get("u1").values == {"name": "Bo"}
    assert there.profiles.update("u1", {"age": 3}).version == 2


def test_another_user_gets_memories_of_their_own(instances: Callable[[], Instance]) -> None:
    """Given an export imported for another user of the same instance, I expect both to have all, apart."""
    here = instances()
    fill(here)

    assert here.take(here.export(), user="u2") == ImportOutcome(new=6)
    assert len(here.found("cat", user="u2")) == len(here.found("cat"))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"kind": "fact"}, "records.1: kind must be one of memory, profile, profile_change"),
        ({"kind": "memory", "source": "user", "timestamp": 1}, "records.1.content: Field required"),
        (
            {"kind": "memory", "content": "x" * 40_000, "source": "user", "timestamp": 1},
            "records.1.content has 40000 characters",
        ),
    ],
)
def test_a_record_that_is_none_is_named(instances: Callable[[], Instance], record: dict[str, Any], reason: str) -> None:
    """Given a bad record after a good one, I expect an error that names it, and nothing stored."""
    here = instances()
    good = {"kind": "memory", "content": "tea", "source": "user", "timestamp": NOON}

    with pytest.raises(InvalidMessage, match=re.escape(reason)):
        here.take([good, record])

    assert here.execute("SELECT id FROM memories") == []


def of_place(*place: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "bnVsbA==",
        of_place("memories", 1, True, 1),
        of_place("changes", "", 1e99),
        of_place("changes", "\0", 1),
        of_place("memories", "\ud800", 0, 0, 0),
        of_place("memories", "", -(2**62), 0, 0),
    ],
)
def test_a_cursor_of_another_making_is_refused(instances: Callable[[], Instance], cursor: str) -> None:
    """Given a cursor that no page had, I expect an error."""
    with pytest.raises(InvalidMessage, match=r"^data\.cursor"):
        instances().portability.export("u1", 50, cursor)


texts = st.text(min_size=1, max_size=40).filter(lambda text: bool(text.replace("\0", "").strip()))
events = st.fixed_dictionaries(
    {"content": texts, "timestamp": st.floats(946_684_800, 4e9)},
    optional={"message_id": texts, "agent_id": texts, "speaker": texts, "meta": st.dictionaries(texts, texts)},
)


def test_any_memories_come_back_as_they_were(instances: Callable[[], Instance]) -> None:
    """Given events of any form, I expect the export of their import to be their export."""
    here, there = instances(), instances()

    @settings(max_examples=60, deadline=None)
    @given(st.lists(events, max_size=6), texts)
    def check(said: list[dict[str, Any]], name: str) -> None:
        user = f"{name} {uuid4()}"
        for event in said:
            here.memories.index(MemoryUpdateMessage.model_validate({"user_id": user, "source": "user", **event}))

        records = here.export(user, limit=4)
        there.take(records, user)

        assert there.export(user) == records

    check()
