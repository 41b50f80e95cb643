"""Slots of the profile that extraction fills, on a real PostgreSQL."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keepsake_client.protocol import MemoryUpdateMessage
from psycopg_pool import ConnectionPool

from services.long_term_memory.extraction.batch import SlotValue
from services.long_term_memory.known_profile import (
    NewSlot,
    SlotOutcome,
    owners_with_slots,
    read_slots,
    remove_evidence,
    write_slots,
)
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.profile_service import MAX_PROFILE_BYTES, ProfileService

U1 = Owner("u1")
FIRST, SECOND, THIRD = 1_712_000_001.5, 1_712_000_002.0, 1_712_000_003.0


@pytest.fixture
def said(memories: MemoryService) -> list[str]:
    """The ids of four messages of u1."""
    events = [
        MemoryUpdateMessage(user_id="u1", content=f"words {place}", source="user", timestamp=FIRST + place)
        for place in range(4)
    ]
    return memories.index_many(events)


@pytest.fixture
def profiles(pool: ConnectionPool) -> ProfileService:
    return ProfileService(pool)


def write(pool: ConnectionPool, *slots: NewSlot, owner: Owner = U1) -> SlotOutcome:
    with pool.connection() as connection:
        return write_slots(connection, owner, slots)


def home(value: SlotValue | None, evidence: list[str], said_at: float) -> NewSlot:
    return NewSlot("home", value, evidence, said_at)


def read(pool: ConnectionPool, owner: Owner = U1) -> dict[str, SlotValue]:
    with pool.connection() as connection:
        return read_slots(connection, owner)


def forget(pool: ConnectionPool, *ids: str) -> None:
    with pool.connection() as connection:
        remove_evidence(connection, U1, ids)


def history(pool: ConnectionPool) -> list[tuple[Any, ...]]:
    with pool.connection() as connection:
        return connection.execute(
            "SELECT version, source, evidence::text[], patch FROM profile_history ORDER BY version"
        ).fetchall()


def test_a_slot_has_its_value_its_evidence_and_its_time(
    pool: ConnectionPool, said: list[str], profiles: ProfileService
) -> None:
    """Given a slot that was found, I expect it under `known`, and a version with its source and evidence."""
    profiles.update("u1", {"name": "Anna"})

    assert write(pool, home("Oslo", said[:2], FIRST)) == SlotOutcome(written=1)

    slot = {"value": "Oslo", "evidence": sorted(said[:2]), "said_at": FIRST}
    assert profiles.get("u1").values == {"name": "Anna", "known": {"home": slot}}
    assert profiles.get("u1").version == 2
    assert history(pool)[1] == (2, "extraction", sorted(said[:2]), {"known": {"home": slot}})
    assert read(pool) == {"home": "Oslo"}


def test_a_whole_second_is_written_without_a_fraction(
    pool: ConnectionPool, said: list[str], profiles: ProfileService
) -> None:
    """Given a slot of a whole second, I expect its time written as all times of the wire."""
    write(pool, home("Oslo", said[:1], SECOND))

    assert json.dumps(profiles.get("u1").values["known"]["home"]["said_at"]) == "1712000002"


def test_each_character_keeps_its_own(pool: ConnectionPool, said: list[str], profiles: ProfileService) -> None:
    """Given slots found in what was said to a character, I expect them in that character's profile alone."""
    write(pool, home("Oslo", said, FIRST), owner=Owner("u1", "luna"))

    assert profiles.get("u1").values == {}
    assert read(pool, Owner("u1", "luna")) == {"home": "Oslo"}


def test_what_was_said_earlier_does_not_replace(pool: ConnectionPool, said: list[str]) -> None:
    """Given a value of earlier words after one of later words, as a backfill has them, I expect the later."""
    write(pool, home("Lisbon", said[1:2], SECOND))

    assert write(pool, home("Oslo", said[:1], FIRST)) == SlotOutcome(older=1)

    assert read(pool) == {"home": "Lisbon"}


def test_the_same_again_is_no_new_version(pool: ConnectionPool, said: list[str], profiles: ProfileService) -> None:
    """Given the same slot twice, I expect one version."""
    for _ in range(2):
        write(pool, home("Oslo", said[:1], FIRST))

    assert profiles.get("u1").version == 1


def test_what_is_no_longer_true_does_not_come_back(
    pool: ConnectionPool, said: list[str], profiles: ProfileService
) -> None:
    """Given a removal, and then an older value, I expect the slot without a value, and none for readers."""
    write(pool, home("Oslo", said[:1], FIRST))
    write(pool, home(None, said[2:3], THIRD))

    write(pool, home("Lisbon", said[1:2], SECOND))

    assert profiles.get("u1").values["known"] == {"home": {"evidence": said[2:3], "said_at": THIRD}}
    assert read(pool) == {}


@settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_of_the_same_writes_gives_the_same_profile(
    pool: ConnectionPool, said: list[str], data: st.DataObject
) -> None:
    """Given the same slots in two orders, by one call or by several, I expect the same profile."""
    slot = st.builds(
        NewSlot,
        slot=st.sampled_from(["home", "likes"]),
        value=st.none() | st.sampled_from(["Oslo", "Lisbon"]) | st.lists(st.sampled_from(["tea", "go"]), max_size=2),
        evidence=st.lists(st.sampled_from(said), min_size=1, max_size=2, unique=True),
        said_at=st.sampled_from([FIRST, SECOND, THIRD]),
    )
    slots = data.draw(st.lists(slot, min_size=1, max_size=6))
    orders = [slots, data.draw(st.permutations(slots))]
    sizes = [data.draw(st.integers(1, len(slots))) for _ in orders]  # all before: a draw may end an example
    found: list[Any] = []
    for user, order, size in zip((U1, Owner("u2")), orders, sizes, strict=True):
        for begin in range(0, len(order), size):
            write(pool, *order[begin : begin + size], owner=user)
        with pool.connection() as connection:
            row = connection.execute("SELECT profile FROM profiles WHERE user_id = %s", (user.user,)).fetchone()
            connection.execute("TRUNCATE profiles, profile_history" if found else "SELECT")
        found.append(row)

    assert found[0] == found[1]


@pytest.mark.parametrize(
    "theirs",
    [
        {"known": {"home": "Paris"}},
        {"known": {"home": {"value": "Paris"}}},
        {"known": {"home": {"city": "Paris"}}},
        {"known": {"home": {"value": "Paris", "evidence": ["x"], "said_at": 1}}},
        {"known": {"home": {"value": None}}},
        {"known": "nothing"},
    ],
)
def test_what_a_service_wrote_stays(
    pool: ConnectionPool, said: list[str], profiles: ProfileService, theirs: dict[str, Any]
) -> None:
    """Given a slot that a service wrote over one that was found, I expect no later words to change it."""
    write(pool, home("Oslo", said[:1], FIRST))
    written = profiles.update("u1", theirs)

    assert write(pool, home("Lisbon", said[1:2], SECOND)) == SlotOutcome(of_service=1)

    assert profiles.get("u1") == written
    assert "evidence" not in str(written.values)
    assert "Oslo" not in str(written.values)


def test_a_slot_that_the_service_removes_is_found_again(
    pool: ConnectionPool, said: list[str], profiles: ProfileService
) -> None:
    """Given a service's own slot that it removes, I expect what is said then in its place."""
    profiles.update("u1", {"known": {"home": "Paris"}})
    profiles.update("u1", {"known": {"home": None}})

    write(pool, home("Lisbon", said[1:2], SECOND))

    assert read(pool) == {"home": "Lisbon"}


def test_a_profile_that_is_sent_back_as_it_was_read_is_no_service_s(
    pool: ConnectionPool, said: list[str], profiles: ProfileService
) -> None:
    """Given a service that patches a profile with all that it has read, I expect the slots still to follow the words.

    One of them is without a value.
    """
    write(pool, home("Oslo", said[:1], FIRST), NewSlot("work", None, said[:1], FIRST))
    profiles.update("u1", {**profiles.get("u1").values, "mood": "glad"})

    write(pool, home("Lisbon", said[1:2], SECOND), NewSlot("work", "nurse", said[1:2], SECOND))

    assert read(pool) == {"home": "Lisbon", "work": "nurse"}


def test_a_profile_does_not_grow_beyond_its_limit(
    pool: ConnectionPool, said: list[str], profiles: ProfileService
) -> None:
    """Given a profile that has room for one of two slots, I expect that one, and the other counted."""
    profiles.update("u1", {"notes": "x" * (MAX_PROFILE_BYTES - 400)})

    outcome = write(pool, NewSlot("likes", "x" * 600, said[:1], FIRST), home("Oslo", said[:1], FIRST))

    assert outcome == SlotOutcome(written=1, too_large=1)
    assert read(pool) == {"home": "Oslo"}


def test_what_only_a_deleted_message_says_goes_from_the_profile_and_its_history(
    pool: ConnectionPool, said: list[str], profiles: ProfileService
) -> None:
    """Given a slot whose messages are deleted one after the other, I expect it while one says it, then no trace."""
    profiles.update("u1", {"name": "Anna"})
    write(pool, home("Oslo", said[:2], FIRST))

    forget(pool, said[0])
    assert profiles.get("u1").values["known"]["home"]["evidence"] == said[1:2]
    forget(pool, said[1])

    assert profiles.get("u1").values == {"name": "Anna"}
    assert "Oslo" not in str(history(pool))
    assert not any(one in str(history(pool)) for one in said)


def test_the_value_before_holds_again(pool: ConnectionPool, said: list[str]) -> None:
    """Given three values, whose last and then second message is deleted, I expect the one before each time."""
    write(pool, home("Oslo", said[:1], FIRST))
    write(pool, home(None, said[1:2], SECOND))
    write(pool, home("Lisbon", said[2:3], THIRD))

    forget(pool, said[2])
    assert read(pool) == {}
    forget(pool, said[1])

    assert read(pool) == {"home": "Oslo"}


def test_a_value_from_before_a_service_s_change_does_not_hold_again(
    pool: ConnectionPool, said: list[str], profiles: ProfileService
) -> None:
    """Given a slot that a service removed between two values, I expect none when the second one's message goes."""
    write(pool, home("Oslo", said[:1], FIRST))
    profiles.update("u1", {"known": {"home": None}})
    write(pool, home("Lisbon", said[1:2], SECOND))

    forget(pool, said[1])

    assert read(pool) == {}


def test_nothing_is_written_of_messages_that_are_gone(pool: ConnectionPool, said: list[str]) -> None:
    """Given a slot whose message was deleted meanwhile, I expect nothing."""
    with pool.connection() as connection:
        connection.execute("DELETE FROM memories WHERE id = %s", (said[0],))

    assert write(pool, home("Oslo", said[:1], FIRST)) == SlotOutcome(deleted=1)
    assert read(pool) == {}


def test_nothing_is_written_of_a_forgotten_user(pool: ConnectionPool, said: list[str]) -> None:
    """Given a user who was forgotten, and whose messages are about to be deleted, I expect nothing."""
    with pool.connection() as connection:
        connection.execute(
            "INSERT INTO deletions (user_digest, everything, deleted_at) VALUES (sha256('u1'), true, now())"
        )

    assert write(pool, home("Oslo", said[:1], FIRST)) == SlotOutcome(deleted=1)


def test_a_deletion_knows_the_profiles_that_it_concerns(
    pool: ConnectionPool, said: list[str], profiles: ProfileService
) -> None:
    """Given a profile without slots, I expect none to look at; with one, or one that was removed, that profile."""
    profiles.update("u1", {"name": "Anna"})
    with pool.connection() as connection:
        numbers = [row[0] for row in connection.execute("SELECT number FROM users").fetchall()]
        assert owners_with_slots(connection, numbers) == []
    write(pool, home("Oslo", said[:1], FIRST))
    profiles.update("u1", {"known": None})

    with pool.connection() as connection:
        assert owners_with_slots(connection, numbers) == [U1]
