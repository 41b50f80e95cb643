"""Profiles on a real PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from keepsake_client.errors import InvalidMessage, MessageTooLarge, Unavailable
from keepsake_client.protocol import decode_user_id
from psycopg_pool import ConnectionPool

from services.long_term_memory import profile_service
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.profile_service import (
    MAX_PROFILE_BYTES,
    Profile,
    ProfileService,
    locked_profile,
    write_profile,
)
from services.runtime.errors import ProfileConflict

STRANGE_IDS = [
    "*",
    " u1 ",
    "u1",
    "anna lee",
    "用户一",
    '{"ne": "x"}',
    "x" * 500,
    "'; drop table profiles",
    "a\0b",
    "\ud800",
]


@pytest.fixture
def pool(database: str) -> Iterator[ConnectionPool]:
    with open_pool(database, 8) as pool:
        yield pool


@pytest.fixture
def profiles(pool: ConnectionPool) -> ProfileService:
    return ProfileService(pool)


def history(pool: ConnectionPool) -> list[tuple[Any, ...]]:
    with pool.connection() as connection:
        return connection.execute(
            "SELECT user_id, version, patch, request_id, changed_at FROM profile_history ORDER BY user_id, version"
        ).fetchall()


def test_an_unknown_user_has_an_empty_profile(profiles: ProfileService) -> None:
    """Given an unknown user, I expect an empty profile at version 0."""
    assert profiles.get("unknown") == Profile({}, 0, None)


def test_an_empty_patch_changes_nothing(profiles: ProfileService, pool: ConnectionPool) -> None:
    """Given empty patches, I expect the present profile and version, no row, no history, and a conflict told."""
    assert profiles.update("u1", {}) == Profile({}, 0, None)
    assert history(pool) == []
    changed = profiles.update("u1", {"name": "Lin"})

    assert profiles.update("u1", {}, 1) == changed
    with pytest.raises(ProfileConflict):
        profiles.update("u1", {}, 0)
    assert len(history(pool)) == 1


def test_a_get_creates_no_row(profiles: ProfileService, pool: ConnectionPool) -> None:
    """Given a get of an unknown user, I expect no row to be left behind."""
    profiles.get("unknown")

    with pool.connection() as connection:
        assert connection.execute("SELECT count(*) FROM profiles").fetchone() == (0,)


def test_what_was_written_is_read(profiles: ProfileService) -> None:
    """Given a patch on nothing, I expect its values at version 1, and the same to be read."""
    written = profiles.update("u1", {"name": "Lin", "likes": {"drink": "茶"}})

    assert (profiles.get("u1"), written.version) == (written, 1)


def test_a_patch_merges(profiles: ProfileService) -> None:
    """Given a second patch, I expect the first one's values unchanged where it does not name them."""
    profiles.update("u1", {"name": "Lin", "likes": {"drink": "tea", "pet": "cat"}})

    assert profiles.update("u1", {"likes": {"drink": None}, "age": 30}).values == {
        "name": "Lin",
        "likes": {"pet": "cat"},
        "age": 30,
    }


def test_concurrent_patches_are_all_applied(profiles: ProfileService) -> None:
    """Given forty patches from eight threads, I expect every one of them in the profile."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: profiles.update("u1", {f"k{n}": n}), range(40)))

    assert profiles.get("u1").values == {f"k{n}": n for n in range(40)}


def test_concurrent_patches_have_consecutive_versions(profiles: ProfileService, pool: ConnectionPool) -> None:
    """Given patches from many threads, I expect their versions to count on without a gap."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: profiles.update("u1", {"n": n}), range(20)))

    assert [row[1] for row in history(pool)] == list(range(1, 21))


def test_the_history_is_read_newest_first(
    profiles: ProfileService, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given changes by a service and one by extraction, I expect all of them over pages, newest first, each with who
    made it and by which words; of another character's profile none."""
    monkeypatch.setattr(profile_service, "HISTORY_PAGE", 2)
    evidence = [str(uuid.uuid4())]
    profiles.update("u1", {"name": "Lin"})
    profiles.update("u1", {"mood": "shy"}, agent_id="luna")
    with pool.connection() as connection, connection.transaction():
        owner = Owner("u1")
        locked_profile(connection, owner)
        write_profile(connection, owner, {}, {"known": {}}, source="extraction", evidence=evidence)
    profiles.update("u1", {"name": None})

    first = profiles.history("u1")
    second = profiles.history("u1", cursor=first.next_cursor)

    changes = [*first.changes, *second.changes]
    assert [(change.version, change.source, change.patch) for change in changes] == [
        (3, "service", {"name": None}),
        (2, "extraction", {"known": {}}),
        (1, "service", {"name": "Lin"}),
    ]
    assert [change.evidence for change in changes] == [[], evidence, []]
    assert changes[0].changed_at >= changes[2].changed_at > 1_700_000_000
    assert (first.next_cursor, second.next_cursor) == ("2", None)
    assert [change.patch for change in profiles.history("u1", "luna").changes] == [{"mood": "shy"}]


def test_a_page_of_the_history_ends_behind_large_patches(
    profiles: ProfileService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given patches that fill a response, I expect a page of fewer, and the rest on the next."""
    monkeypatch.setattr(profile_service, "MAX_HISTORY_CHARS", 60)
    for number in range(3):
        profiles.update("u1", {"note": f"{number}" * 40})

    first = profiles.history("u1")

    assert ([change.version for change in first.changes], first.next_cursor) == ([3, 2], "2")
    assert [change.version for change in profiles.history("u1", cursor="2").changes] == [1]
    for cursor in ("", "x", "-1", "²"):
        with pytest.raises(InvalidMessage, match=r"data\.cursor"):
            profiles.history("u1", cursor=cursor)


def test_a_characters_profile_is_another_one(profiles: ProfileService, pool: ConnectionPool) -> None:
    """Given the user's own profile and those of two characters, I expect each with its values, version and history."""
    profiles.update("u1", {"name": "Lin"})
    profiles.update("u1", {"nickname": "Sunny"}, agent_id="luna")
    luna = profiles.update("u1", {"mood": "shy"}, agent_id="luna")
    profiles.update("u1", {"rank": 3}, expected_version=0, agent_id="sol")

    assert luna.version == 2
    assert profiles.get("u1", "luna") == luna
    assert luna.values == {"nickname": "Sunny", "mood": "shy"}
    assert (profiles.get("u1").values, profiles.get("u1", "sol").values) == ({"name": "Lin"}, {"rank": 3})
    assert profiles.get("luna") == profiles.get("u2", "luna") == Profile()
    with pool.connection() as connection:
        changes = connection.execute("SELECT agent_id, version FROM profile_history ORDER BY 1, 2").fetchall()
    assert changes == [("", 1), ("luna", 1), ("luna", 2), ("sol", 1)]


def test_one_request_id_may_change_two_characters_profiles(profiles: ProfileService) -> None:
    """Given the same request for two characters, I expect both changed: it is a redelivery for each alone."""
    for agent_id in ("luna", "sol", "luna"):
        profiles.update("u1", {"mood": "shy"}, request_id="r1", agent_id=agent_id)

    assert [profiles.get("u1", agent_id).version for agent_id in ("luna", "sol")] == [1, 1]
    with pytest.raises(ProfileConflict):
        profiles.update("u1", {}, 0, agent_id="luna")


def test_the_expected_version_is_written(profiles: ProfileService) -> None:
    """Given a write that expects the version there is, I expect it to be taken."""
    profiles.update("u1", {"name": "Lin"}, expected_version=0)

    assert profiles.update("u1", {"age": 30}, expected_version=1).version == 2


@pytest.mark.parametrize("expected", [0, 2])
def test_a_stale_write_is_refused(profiles: ProfileService, expected: int) -> None:
    """Given a write that expects another version, I expect a conflict that says both."""
    profiles.update("u1", {"name": "Lin"})

    with pytest.raises(ProfileConflict, match=f"expected_version is {expected} and the profile is at version 1"):
        profiles.update("u1", {"name": "Eve"}, expected_version=expected)


def test_a_refused_write_changes_nothing(profiles: ProfileService, pool: ConnectionPool) -> None:
    """Given a refused write, I expect the profile and its history as they were."""
    before = profiles.update("u1", {"name": "Lin"})

    with pytest.raises(ProfileConflict):
        profiles.update("u1", {"name": "Eve"}, expected_version=0)

    assert (profiles.get("u1"), len(history(pool))) == (before, 1)


def test_a_refused_first_write_leaves_no_profile(profiles: ProfileService) -> None:
    """Given a first write that expects a version there cannot be, I expect the user still unknown."""
    with pytest.raises(ProfileConflict):
        profiles.update("u1", {"name": "Lin"}, expected_version=5)

    assert profiles.get("u1") == Profile()


def test_of_two_writes_that_expect_one_version_one_wins(profiles: ProfileService) -> None:
    """Given eight writes at once that all expect version 0, I expect one to be taken and seven refused."""

    def write(number: int) -> bool:
        try:
            profiles.update("u1", {"n": number}, expected_version=0)
        except ProfileConflict:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(write, range(8)))

    assert taken.count(True) == 1


def test_every_change_is_kept(profiles: ProfileService, pool: ConnectionPool) -> None:
    """Given two changes, I expect each one's patch, version, request and time in the history."""
    first = profiles.update("u1", {"name": "Lin"}, request_id="r1")
    second = profiles.update("u1", {"name": None}, request_id="r2")

    assert history(pool) == [
        ("u1", 1, {"name": "Lin"}, "r1", first.updated_at),
        ("u1", 2, {"name": None}, "r2", second.updated_at),
    ]


def test_a_request_id_that_postgresql_refuses_is_stored_encoded(profiles: ProfileService, pool: ConnectionPool) -> None:
    """Given a request id that PostgreSQL could not store as it is, I expect it stored encoded."""
    profiles.update("u1", {"name": "Lin"}, request_id="r\0\ud800")

    assert [decode_user_id(row[3]) for row in history(pool)] == ["r\0\ud800"]


def test_strange_users_are_each_their_own(profiles: ProfileService) -> None:
    """Given ids that look like wildcards, queries and attacks, I expect a profile of its own for each."""
    for user_id in STRANGE_IDS:
        profiles.update(user_id, {"me": STRANGE_IDS.index(user_id)})

    assert [profiles.get(user_id).values["me"] for user_id in STRANGE_IDS] == list(range(len(STRANGE_IDS)))


def test_a_profile_over_its_maximum_size_is_refused(profiles: ProfileService) -> None:
    """Given a patch that would make a profile too large, I expect it refused with both sizes."""
    with pytest.raises(MessageTooLarge, match=f"{MAX_PROFILE_BYTES} are allowed"):
        profiles.update("u1", {"x": "y" * MAX_PROFILE_BYTES})


def test_numbers_come_back_as_they_were(profiles: ProfileService) -> None:
    """Given numbers of all sizes, I expect the same ones to be read."""
    numbers = {"int": 2**63, "float": 0.1, "tiny": 1e-300, "whole": 1.0}

    profiles.update("u1", numbers)

    assert profiles.get("u1").values == numbers


def test_an_unreachable_database_is_unavailable(database: str) -> None:
    """Given a pool whose database is gone, I expect Unavailable, which is transient."""
    pool = open_pool(database, 1)
    pool.close()

    with pytest.raises(Unavailable):
        ProfileService(pool).get("u1")


def test_a_server_that_is_not_there_is_unavailable() -> None:
    """Given an address without a listener, I expect Unavailable."""
    with pytest.raises(Unavailable, match="PostgreSQL does not answer"):
        open_pool("postgresql://postgres@127.0.0.1:1/keepsake", 1)
