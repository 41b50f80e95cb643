"""Deduplication of profile_update: a request that is redelivered after a crash is applied once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.profile_service import ProfileService
from services.runtime.errors import ProfileConflict


@pytest.fixture
def pool(database: str) -> Iterator[ConnectionPool]:
    with open_pool(database, 8) as pool:
        yield pool


@pytest.fixture
def profiles(pool: ConnectionPool) -> ProfileService:
    return ProfileService(pool)


def test_the_same_request_again_changes_nothing(profiles: ProfileService) -> None:
    """Given a request that was applied and comes again, I expect the profile as it is for an answer."""
    first = profiles.update("u1", {"mood": "calm"}, request_id="r1")

    assert profiles.update("u1", {"mood": "calm"}, request_id="r1") == first
    assert profiles.get("u1") == first


def test_it_does_not_undo_what_came_between(profiles: ProfileService) -> None:
    """Given another change in between, I expect the late duplicate to leave it, and to answer with it."""
    profiles.update("u1", {"mood": "calm"}, request_id="r1")
    second = profiles.update("u1", {"mood": "merry"}, request_id="r2")

    assert profiles.update("u1", {"mood": "calm"}, request_id="r1") == second


def test_eight_at_once_are_applied_once(profiles: ProfileService, pool: ConnectionPool) -> None:
    """Given forty copies of one request from eight threads, I expect one version, one entry in the history."""
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: profiles.update("u1", {"n": 1}, request_id="r1"), range(40)))

    with pool.connection() as connection:
        assert connection.execute("SELECT count(*) FROM profile_history").fetchone() == (1,)
    assert {answer.version for answer in answers} == {1}


def test_a_version_that_was_expected_the_first_time_is_no_conflict(profiles: ProfileService) -> None:
    """Given a request that expected the version it has since raised itself, I expect no conflict with itself."""
    profiles.update("u1", {"mood": "calm"}, expected_version=0, request_id="r1")

    assert profiles.update("u1", {"mood": "calm"}, expected_version=0, request_id="r1").version == 1


def test_a_request_that_was_refused_is_refused_again(profiles: ProfileService) -> None:
    """Given a request that met a conflict, I expect its copy to meet it too: nothing of it was applied."""
    for _ in range(2):
        with pytest.raises(ProfileConflict):
            profiles.update("u1", {"mood": "calm"}, expected_version=3, request_id="r1")


@pytest.mark.parametrize(
    ("user_id", "patch", "request_id"),
    [("u1", {"mood": "merry"}, "r1"), ("u2", {"mood": "calm"}, "r1"), ("u1", {"mood": "calm"}, "r2")],
    ids=["another patch", "another user", "another id"],
)
def test_another_request_is_applied(
    profiles: ProfileService, user_id: str, patch: dict[str, str], request_id: str
) -> None:
    """Given a request that differs in patch, user or id, I expect it applied: some clients count their ids from 1."""
    profiles.update("u1", {"mood": "calm"}, request_id="r1")
    before = profiles.get(user_id).version

    assert profiles.update(user_id, patch, request_id=request_id).version == before + 1


def test_one_without_an_id_is_applied(profiles: ProfileService) -> None:
    """Given two updates without a request, I expect both applied."""
    assert [profiles.update("u1", {"mood": "calm"}).version for _ in range(2)] == [1, 2]


def test_the_same_request_id_after_the_window_is_applied(pool: ConnectionPool) -> None:
    """Given an id that comes again after the deduplication window, I expect it applied."""
    profiles = ProfileService(pool, deduplication_window=timedelta(0))
    profiles.update("u1", {"mood": "calm"}, request_id="r1")

    assert profiles.update("u1", {"mood": "calm"}, request_id="r1").version == 2
