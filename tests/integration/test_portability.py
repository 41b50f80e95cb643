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
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import AddData, MemoryUpdateMessage, SearchData
from psycopg_pool import ConnectionPool

from services.long_term_memory.known_profile import NewSlot, write_slots
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.portability import MAX_PAGE_BYTES, ImportOutcome, Portability
from services.long_term_memory.postgres.facts import NewFact, insert_facts
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.profile_service import ProfileService
from services.long_term_memory.removal import remove
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
        ({"kind": "note"}, "records.1: kind must be one of memory, fact, profile, profile_change"),
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
    @example([{"content": text, "timestamp": 1e9 - at, "message_id": "m1"} for at, text in enumerate("ab")], "anna")
    def check(said: list[dict[str, Any]], name: str) -> None:
        user = f"{name} {uuid4()}"
        for event in said:
            here.memories.index(MemoryUpdateMessage.model_validate({"user_id": user, "source": "user", **event}))

        records = here.export(user, limit=4)
        there.take(records, user)

        assert there.export(user) == records

    check()


def test_a_memory_with_an_id_that_was_written_by_hand_can_be_deleted(instances: Callable[[], Instance]) -> None:
    """Given an import with ids that are no UUIDs, for a user with slots, I expect each memory deleted with its slot."""
    here = instances()
    said = [
        {"kind": "memory", "id": f"by hand {n}", "content": text, "source": "user", "timestamp": NOON + n}
        for n, text in enumerate(("I live in Rome", "I like tea"))
    ]
    here.take(said)
    for content, slot in (("I live in Rome", "home"), ("I like tea", "likes")):
        [(memory_id,)] = here.execute("SELECT id::text FROM memories WHERE content = %s", content)
        with here.pool.connection() as connection:
            write_slots(connection, Owner("u1"), [NewSlot(slot, "it", [memory_id], NOON)])

    with here.pool.connection() as connection:
        [(number,)] = connection.execute("SELECT number FROM memories WHERE content = 'I live in Rome'").fetchall()
        assert remove(connection, [number]) == 1

    assert here.profiles.get("u1").values["known"].keys() == {"likes"}


def find(instance: Instance, content: str, evidence: list[str], replaces: list[str] | None = None) -> str:
    """Store a fact that messages of u1 say; its id."""

    def number(one: str) -> int:
        [(found,)] = instance.execute("SELECT number FROM memories WHERE id = %s", one)
        return int(found)

    fact = NewFact(
        id=str(uuid4()),
        content=content,
        vector=WordEmbedder().embed(content),
        kind="state",
        about="user",
        when="2024-05",
        said_at=NOON,
        source="user",
        session_id="s1",
        speaker={"name": "Lin"},
        evidence=[number(one) for one in evidence],
        replaces=[number(one) for one in replaces or []],
    )
    with instance.pool.connection() as connection:
        insert_facts(connection, Owner("u1"), [fact])
    return fact.id


def fill_with_facts(instance: Instance) -> None:
    """A user with three messages, a fact of the first that two others replaced in turn, and a slot."""
    for place, town in enumerate(("Oslo", "Lisbon", "Rome")):
        instance.say(f"I live in {town}", NOON + place)
    said = [row[0] for row in instance.execute("SELECT id::text FROM memories ORDER BY number")]
    facts: list[str] = []
    for town, one in zip(("Oslo", "Lisbon", "Rome"), said, strict=True):
        facts.append(find(instance, f"The user lives in {town}.", [one], facts[-1:]))
    with instance.pool.connection() as connection:
        write_slots(connection, Owner("u1"), [NewSlot("home", "Rome", said[2:], NOON + 2)])


def kinds(instance: Instance, user: str = "u1") -> list[tuple[Any, ...]]:
    """What every fact of a user is, by what it was replaced, and the contents of its evidence."""
    return instance.execute(
        "SELECT m.content, kind, (SELECT content FROM memories n WHERE n.number = s.superseded_by),"
        " array_agg(e.content ORDER BY e.number) FROM memories m JOIN users u ON u.number = m.user_number"
        " LEFT JOIN superseded_facts s ON s.fact_number = m.number"
        " LEFT JOIN fact_evidence f ON f.fact_number = m.number LEFT JOIN memories e ON e.number = f.memory_number"
        " WHERE user_id = %s AND kind <> 'message' GROUP BY 1, 2, 3 ORDER BY 1",
        user,
    )


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_facts_and_slots_come_along(instances: Callable[[], Instance], limit: int) -> None:
    """Given facts, superseded ones and a slot, imported twice, I expect the same there, once, and the same export."""
    here, there = instances(), instances()
    fill_with_facts(here)

    records = here.export(limit=limit)
    assert there.take(records) == ImportOutcome(new=6)
    assert there.take(records) == ImportOutcome(known=6)

    assert [record["kind"] for record in records].count("fact") == 3
    assert kinds(there) == kinds(here)
    assert [row[1] for row in kinds(there)] == ["superseded", "superseded", "fact"]
    assert there.export() == here.export()
    assert here.take(there.export()) == ImportOutcome(known=6)
    assert there.profiles.get("u1") == here.profiles.get("u1")
    evidence = "SELECT source, evidence FROM profile_history"
    assert there.execute(evidence) == here.execute(evidence)


def test_a_fact_that_was_replaced_since_the_first_import_is_replaced_by_the_second(
    instances: Callable[[], Instance],
) -> None:
    """Given exports before and after a fact was replaced, imported one after the other, I expect what there is here."""
    here, there = instances(), instances()
    here.say("I live in Oslo", NOON)
    here.say("I live in Rome", NOON + 1)
    said = [row[0] for row in here.execute("SELECT id::text FROM memories ORDER BY number")]
    oslo = find(here, "The user lives in Oslo.", said[:1])
    there.take(here.export())
    find(here, "The user lives in Rome.", said[1:], [oslo])

    there.take(here.export())

    assert kinds(there) == kinds(here)


def test_facts_follow_their_messages_to_another_user(instances: Callable[[], Instance]) -> None:
    """Given an export that is imported for another user, I expect the facts there, and each to go with its message."""
    here = instances()
    fill_with_facts(here)

    assert here.take(here.export(), "u2") == ImportOutcome(new=6)
    assert kinds(here, "u2") == kinds(here)
    numbers = here.execute(
        "SELECT m.number FROM memories m JOIN users u ON u.number = user_number WHERE user_id = 'u2'"
        " AND kind = 'message'"
    )
    with here.pool.connection() as connection:
        remove(connection, [number for (number,) in numbers])

    assert kinds(here, "u2") == []
    assert here.profiles.get("u2").values == {}
    assert len(kinds(here)) == 3


def test_a_fact_without_its_message_stays_deleted(instances: Callable[[], Instance]) -> None:
    """Given an export from before a message was deleted, I expect its fact and slot not to come back, unless asked."""
    here = instances()
    fill_with_facts(here)
    before = kinds(here)
    records = here.export()
    [(rome,)] = here.execute("SELECT number FROM memories WHERE content = 'I live in Rome'")
    with here.pool.connection() as connection:
        remove(connection, [rome])
        connection.execute("DELETE FROM profiles")
        connection.execute("DELETE FROM profile_history")

    assert here.take(records) == ImportOutcome(known=4, deleted=2)
    assert "Rome" not in str(here.export())

    assert here.take(records, restore_deleted=True) == ImportOutcome(new=2, known=4)
    assert kinds(here) == before


def test_a_deleted_fact_stays_deleted(instances: Callable[[], Instance]) -> None:
    """Given an export from before a fact alone was deleted, there and elsewhere, I expect it not to come back."""
    here, there = instances(), instances()
    fill_with_facts(here)
    records = here.export()
    there.take(records)
    for instance in (here, there):
        [(rome,)] = instance.execute("SELECT number FROM memories WHERE content = 'The user lives in Rome.'")
        with instance.pool.connection() as connection:
            remove(connection, [rome])

        assert instance.take(records) == ImportOutcome(known=5, deleted=1)


def test_no_import_takes_the_id_of_another_users_fact(instances: Callable[[], Instance]) -> None:
    """Given a record with the id of another user's fact, I expect both facts, each with its user's evidence."""
    here = instances()
    fill_with_facts(here)
    before = kinds(here)

    here.take(here.export(), "mallory")

    assert kinds(here) == before


def test_an_export_without_ids_is_read(instances: Callable[[], Instance]) -> None:
    """Given an export of an earlier release, whose memories have no ids, I expect it as it was."""
    here, there = instances(), instances()
    fill(here)

    there.take([{name: value for name, value in record.items() if name != "id"} for record in here.export()])

    assert there.export() == here.export()
