"""What becomes of facts, slots and the outbox when messages are deleted, corrected, outlived or forgotten."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from keepsake_client.protocol import AddData, MemoryDeleteData, MemoryUpdateData, MemoryUpdateMessage
from psycopg_pool import ConnectionPool

from services.long_term_memory.expiry import Expiry
from services.long_term_memory.forgetting import Forgetting
from services.long_term_memory.known_profile import NewSlot, write_slots
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_management import MemoryManagement
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.facts import NewFact, add_evidence, insert_facts
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.profile_service import ProfileService
from services.runtime.retention import parse_retention
from tests.integration.conftest import WordEmbedder
from tests.integration.test_forgetting import everything

NOON = 1_715_774_400.0
MARKER = "xylophone"
U1 = Owner("u1")


class Site:
    """A user's messages and facts in a database of its own."""

    def __init__(self, pool: ConnectionPool, mem0: Mem0Memory) -> None:
        self.pool = pool
        self.mem0 = mem0
        self.memories = memories = MemoryService(mem0, mem0.vector_store, extract=True)
        self.management = MemoryManagement(pool, memories.writer, extract=True)
        self.profiles = ProfileService(pool)

    def say(self, content: str, at: float = NOON, **fields: Any) -> str:
        """Index a message; its id."""
        event = {"user_id": "u1", "content": content, "source": "user", "timestamp": at, **fields}
        [memory_id] = self.memories.index(MemoryUpdateMessage.model_validate(event), at)
        return memory_id

    def find(self, content: str, evidence: Sequence[str], replaces: Sequence[str] = (), owner: Owner = U1) -> str:
        """Store a fact that messages say, by their ids; its id."""
        fact = NewFact(
            id=str(uuid.uuid5(uuid.NAMESPACE_OID, content)),
            content=content,
            vector=WordEmbedder().embed(content),
            kind="state",
            about="user",
            when=None,
            said_at=NOON,
            source="user",
            session_id=None,
            speaker=None,
            evidence=[self.number(one) for one in evidence],
            replaces=[self.number(one) for one in replaces],
        )
        with self.pool.connection() as connection:
            insert_facts(connection, owner, [fact])
        return fact.id

    def know(self, slot: str, value: str, evidence: Sequence[str], owner: Owner = U1) -> None:
        """Write a slot of the profile."""
        with self.pool.connection() as connection:
            write_slots(connection, owner, [NewSlot(slot, value, evidence, NOON)])

    def delete(self, *ids: str, **filters: Any) -> int:
        """Delete memories by their ids, or by filters."""
        data = {"ids": ids} if ids else {"filters": filters}
        return self.management.delete("u1", MemoryDeleteData.model_validate(data), time.time())

    def number(self, memory_id: str) -> int:
        [(number,)] = self.select("SELECT number FROM memories WHERE id = %s", memory_id)
        return int(number)

    def kinds(self) -> dict[str, str]:
        """Of every memory, by its content, what it is."""
        return dict(self.select("SELECT content, kind FROM memories JOIN users ON users.number = user_number"))

    def facts(self) -> set[str]:
        """The contents of the facts that are current."""
        return {content for content, kind in self.kinds().items() if kind == "fact"}

    def waiting(self) -> list[str]:
        """The contents of the messages that the LLM is yet to read."""
        statement = "SELECT content FROM to_extract JOIN memories ON number = memory_number ORDER BY number"
        return [content for (content,) in self.select(statement)]

    def select(self, statement: str, *values: object) -> list[Any]:
        with self.pool.connection() as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def site(pool: ConnectionPool, mem0: Mem0Memory) -> Site:
    return Site(pool, mem0)


def test_a_fact_goes_with_the_last_message_that_says_it(site: Site) -> None:
    """Given a fact of two messages and one of the first, I expect the former to stay until the second goes."""
    first, second = site.say("I live in Oslo"), site.say("Oslo is cold", NOON + 1)
    both, one = site.find("The user lives in Oslo.", [first, second]), site.find("The user has a flat.", [first])

    assert site.delete(first) == 1
    assert site.facts() == {"The user lives in Oslo."}
    assert site.delete(second) == 1

    assert site.kinds() == {}
    for table in ("memory_history", "fact_evidence", "to_extract", "extraction"):
        assert site.select(f"SELECT count(*) FROM {table}") == [(0,)], table
    tombstones = {str(row[0]) for row in site.select("SELECT memory_id FROM tombstones")}
    assert tombstones == {first, second, both, one}


def test_a_confirmed_fact_outlives_the_message_it_was_found_in(site: Site) -> None:
    """Given a fact that a later message confirms, I expect it to stay when the first is deleted."""
    first, second = site.say("I live in Oslo"), site.say("Oslo again", NOON + 1)
    fact = site.find("The user lives in Oslo.", [first])
    with site.pool.connection() as connection:
        add_evidence(connection, site.number(fact), [site.number(second)])

    site.delete(first)

    assert site.facts() == {"The user lives in Oslo."}


def test_nothing_confirms_a_fact_that_is_gone(site: Site) -> None:
    """Given a confirmation of a fact, and one by a message, that were deleted meanwhile, I expect no evidence."""
    first = site.say("I live in Oslo")
    fact = site.number(site.find("The user lives in Oslo.", [first]))

    with site.pool.connection() as connection:
        add_evidence(connection, fact, [10_000])
        add_evidence(connection, 10_000, [site.number(first)])

    assert site.select("SELECT * FROM fact_evidence") == [(fact, site.number(first))]


@pytest.mark.parametrize(
    ("deleted", "current"),
    [
        ("lisbon", {"The user lives in Rome."}),
        ("rome", {"The user lives in Lisbon."}),
        ("oslo", {"The user lives in Rome."}),
        ("lisbon rome", {"The user lives in Oslo."}),
        ("oslo rome", {"The user lives in Lisbon."}),
    ],
)
def test_what_a_deleted_fact_replaced_is_replaced_by_the_next_or_true_again(
    site: Site, deleted: str, current: set[str]
) -> None:
    """Given three facts, each of which replaced the one before, I expect the last one that is left to be current."""
    said = {name: site.say(f"I live in {name}", NOON + place) for place, name in enumerate(("oslo", "lisbon", "rome"))}
    found: list[str] = []
    for name, message in said.items():
        found.append(site.find(f"The user lives in {name.title()}.", [message], replaces=found[-1:]))

    site.delete(*(said[name] for name in deleted.split()))

    assert site.facts() == current
    rows = dict(site.select("SELECT fact_number, superseded_by FROM superseded_facts"))
    left = [site.number(one) for name, one in zip(said, found, strict=True) if name not in deleted]
    assert rows == dict(pairwise(left))


def test_the_history_tells_that_a_fact_is_true_again(site: Site) -> None:
    """Given a fact that was superseded and then restored, I expect both in its history."""
    oslo, lisbon = site.say("I live in Oslo"), site.say("I moved to Lisbon", NOON + 1)
    fact = site.find("The user lives in Oslo.", [oslo])
    site.find("The user lives in Lisbon.", [lisbon], replaces=[fact])

    site.delete(lisbon)

    _, history = site.management.get("u1", fact)
    assert [change.event for change in history] == ["ADD", "SUPERSEDE", "RESTORE"]


def test_a_fact_is_deleted_alone_and_not_found_again_by_its_batch(site: Site) -> None:
    """Given the deletion of a fact by its id, I expect its message to stay, and its batch to bring nothing back."""
    said = site.say("I live in Oslo")
    fact = site.find("The user lives in Oslo.", [said])

    assert site.delete(fact) == 1
    site.find("The user lives in Oslo.", [said])

    assert site.kinds() == {"I live in Oslo": "message"}
    assert site.select("SELECT count(*) FROM fact_evidence") == [(0,)]


def test_a_superseded_fact_can_be_deleted(site: Site) -> None:
    """Given the deletion of a superseded fact by its id, I expect the one that replaced it to stay."""
    oslo, lisbon = site.say("I live in Oslo"), site.say("I moved to Lisbon", NOON + 1)
    fact = site.find("The user lives in Oslo.", [oslo])
    site.find("The user lives in Lisbon.", [lisbon], replaces=[fact])

    assert site.delete(fact) == 1

    assert site.facts() == {"The user lives in Lisbon."}
    assert site.select("SELECT count(*) FROM superseded_facts") == [(0,)]


def test_a_deletion_by_text_finds_what_was_worded_by_the_llm(site: Site) -> None:
    """Given a word that a fact alone has, and one that fact and message have, I expect as many deleted as counted."""
    site.find("The user lives in Norway.", [site.say("I live in Oslo")])
    site.find("The user plays the cello.", [site.say("My cello is old", NOON + 1)])
    dry_run = {"filters": {"contains": "cello"}, "dry_run": True}

    assert site.delete(contains="norway") == 1
    assert site.management.delete("u1", MemoryDeleteData.model_validate(dry_run), time.time()) == 2
    assert site.delete(contains="cello") == 2

    assert site.kinds() == {"I live in Oslo": "message"}


def test_a_fact_that_is_found_while_its_words_are_deleted_is_refused(site: Site) -> None:
    """Given a call that ends after a deletion by text, I expect the fact with that text not to be stored."""
    said = site.say("The tea was good")
    site.delete(contains="norway")

    site.find("The user was in Norway for tea.", [said])

    assert site.facts() == set()


def test_a_later_fact_is_not_refused(site: Site) -> None:
    """Given words that were said after a deletion by the same text, dated in the past, I expect their fact."""
    site.delete(contains="norway")
    event = {"user_id": "u1", "content": "Norway again", "source": "user", "timestamp": NOON}
    [said] = site.memories.index(MemoryUpdateMessage.model_validate(event), time.time() + 1)

    site.find("The user likes Norway.", [said])

    assert site.facts() == {"The user likes Norway."}


def test_a_slot_goes_with_its_message(site: Site) -> None:
    """Given slots of the user's profile and a character's, I expect those that a deleted message says to go."""
    said = site.say("I live in Oslo", agent_id="luna")
    other = site.say("I like tea")
    site.know("home", "Oslo", [said], Owner("u1", "luna"))
    site.know("likes", "tea", [other])

    site.delete(said)

    assert site.profiles.get("u1", "luna").values == {}
    assert site.profiles.get("u1").values["known"]["likes"]["value"] == "tea"
    assert "Oslo" not in everything(site.pool)


def test_what_is_deleted_waits_no_longer(site: Site) -> None:
    """Given two messages that wait for the LLM, one of which is deleted, I expect one to wait, and to be counted."""
    first = site.say("I live in Oslo")
    site.say("Oslo is cold", NOON + 1)

    site.delete(first)

    assert site.waiting() == ["Oslo is cold"]
    assert site.select("SELECT pending FROM extraction") == [(1,)]


def test_a_corrected_message_is_read_again(site: Site) -> None:
    """Given a message that was read, and is corrected, I expect what it alone says to go, and it to wait again."""
    first, second = site.say("I live in Oslo"), site.say("Oslo is cold", NOON + 1)
    site.find("The user lives in Oslo.", [first])
    both = site.find("The user knows Oslo.", [first, second])
    site.know("home", "Oslo", [first])
    site.select("DELETE FROM to_extract")

    site.management.update("u1", MemoryUpdateData(id=first, content="I live in Bergen"), NOON + 60)

    assert site.facts() == {"The user knows Oslo."}
    assert site.select("SELECT * FROM fact_evidence") == [(site.number(both), site.number(second))]
    assert site.profiles.get("u1").values == {}
    assert site.waiting() == ["I live in Bergen"]
    site.find("The user lives in Oslo.", [first])
    assert site.facts() == {"The user knows Oslo.", "The user lives in Oslo."}


def test_a_correction_of_what_waits_makes_it_another_revision(site: Site) -> None:
    """Given a correction during the call of the LLM, I expect the batch not to be what was read."""
    said = site.say("I live in Oslo")
    [before] = site.select("SELECT revision FROM to_extract")

    site.management.update("u1", MemoryUpdateData(id=said, content="I live in Bergen"), NOON + 60)

    assert site.select("SELECT revision FROM to_extract") != [before]


def test_nothing_else_is_read_again(site: Site) -> None:
    """Given corrections of metadata, of a fact, of what was added by request, and without an LLM, I expect none."""
    said = site.say("I live in Oslo")
    fact = site.find("The user lives in Oslo.", [said])
    [added] = site.memories.add("u1", AddData(content="I play the cello"), "r1", NOON)
    site.select("DELETE FROM to_extract")

    site.management.update("u1", MemoryUpdateData(id=said, metadata={"a": 1}), NOON + 60)
    site.management.update("u1", MemoryUpdateData(id=fact, content="The user lives in Oslo, Norway."), NOON + 60)
    site.management.update("u1", MemoryUpdateData(id=added.id, content="I play the viola"), NOON + 60)
    without = MemoryManagement(site.pool, site.memories.writer)
    tea = site.say("Tea", NOON + 2)
    assert site.waiting() == ["Tea"]  # since it was said, and none of the others
    site.select("DELETE FROM to_extract")
    without.update("u1", MemoryUpdateData(id=tea, content="Coffee"), NOON + 60)

    assert "Coffee" in site.kinds()
    assert site.facts() == {"The user lives in Oslo, Norway."}
    assert site.waiting() == []
    assert [change.event for change in site.management.get("u1", fact)[1]] == ["ADD", "UPDATE"]


def test_facts_expire_with_their_messages(site: Site) -> None:
    """Given a message whose time is over, and one that outlives the retention, I expect their facts to go too."""
    over = site.say("I live in Oslo", ttl_days=1)
    old, new = site.say("I like tea", NOON + 1), site.say("I like go", time.time())
    site.find("The user lives in Oslo.", [over])
    site.find("The user likes tea.", [old])
    site.find("The user likes go.", [new])

    Expiry(site.pool, parse_retention("30")).run_once()

    assert site.kinds() == {"I like go": "message", "The user likes go.": "fact"}


def test_nothing_of_a_forgotten_user_is_left(site: Site) -> None:
    """Given a marker in facts, superseded ones, slots, the outbox and its reasons, I expect it nowhere after."""
    first, second = site.say(f"My {MARKER} is red"), site.say(f"My {MARKER} is blue", NOON + 1, agent_id=MARKER)
    red = site.find(f"The {MARKER} is red.", [first])
    site.find(f"The {MARKER} is blue.", [first], replaces=[red])
    site.find(f"The {MARKER} is there.", [second], owner=Owner("u1", MARKER))
    site.know("likes", MARKER, [first])
    site.know("likes", f"the {MARKER}", [second], Owner("u1", MARKER))
    site.select("UPDATE to_extract SET set_aside = %s", f"the {MARKER} cannot be read")
    site.select("INSERT INTO extraction_usage (day, user_number, calls) SELECT now(), number, 1 FROM users")
    moment = datetime.now(UTC).timestamp()

    counted = Forgetting(site.pool).forget("u1", moment, dry_run=True)
    assert Forgetting(site.pool, batch=2).forget("u1", moment) == counted == 5

    assert MARKER not in everything(site.pool)
    tables = "memories memory_history users profiles profile_history fact_evidence superseded_facts"
    for table in f"{tables} to_extract extraction extraction_usage".split():
        assert site.select(f"SELECT count(*) FROM {table}") == [(0,)], table


def test_what_was_said_after_the_user_was_forgotten_keeps_its_facts(site: Site) -> None:
    """Given a fact of words from before, one of words from after, and one of both, I expect the latter two to stay."""
    before, after = site.say("I live in Oslo"), site.say("I like tea", NOON + 3_600)
    site.find("The user lives in Oslo.", [before])
    site.find("The user likes tea.", [after])
    both = site.find("The user drinks tea in Oslo.", [before])
    with site.pool.connection() as connection:
        add_evidence(connection, site.number(both), [site.number(after)])

    assert Forgetting(site.pool).forget("u1", NOON + 1_800) == 2

    assert site.facts() == {"The user likes tea.", "The user drinks tea in Oslo."}


def test_a_fact_whose_message_mem0_deleted_is_forgotten(site: Site) -> None:
    """Given a message that was deleted by Mem0's own method, I expect its fact to go when the user is forgotten."""
    said = site.say("I live in Oslo")
    site.find("The user lives in Oslo.", [said])
    site.mem0.delete(said)

    Forgetting(site.pool).forget("u1", time.time())

    assert site.kinds() == {}


def test_a_message_that_mem0_deleted_keeps_no_fact(site: Site) -> None:
    """Given a fact of two messages, one of which Mem0's own method deleted, I expect it to go with the other."""
    first, second = site.say("I live in Oslo"), site.say("Oslo is cold", NOON + 1)
    site.find("The user lives in Oslo.", [first, second])
    site.mem0.delete(first)

    site.delete(second)

    assert site.kinds() == {}
