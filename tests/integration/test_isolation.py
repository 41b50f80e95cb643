"""Isolation of users: with any ids, texts and metadata, no user gets data of another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keepsake_client.protocol import AddData, MemoryUpdateMessage, SearchData

from services.long_term_memory.embeddings.calibration import calibrate
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.profile_service import ProfileService
from tests.integration.conftest import WordEmbedder

USERS = [
    "u1",
    " u1 ",
    "U1",
    "u1\0",
    "*",
    "%2A",
    "%",
    "u1' OR user_id <> '",
    '{"ne": "u1"}',
    "用户一",
    "\ud800",
    "e\u0301",
    "é",
]
MANY = 60

users = st.sampled_from(USERS)
texts = st.text(min_size=1, max_size=60).filter(lambda text: text.replace("\0", "").strip()) | st.sampled_from(
    ["I like tea", "do you like tea?", "tea", "'; DROP TABLE memories; --", "Anna: tea", "茶", "%s %(user)s {}"]
)
ids = st.sampled_from(["1", "s1", "*", "%", "' OR true --", *USERS[:3]])
metadata = st.dictionaries(
    st.sampled_from(["user_id", "session_id", "source", "data", "id", "message_id", "$or", "x' OR true --"]),
    ids | st.integers() | st.none() | st.dictionaries(ids, ids, max_size=2) | st.lists(ids, max_size=2),
    max_size=4,
)
index = st.tuples(
    st.just("index"),
    users,
    texts,
    st.fixed_dictionaries(
        {"source": st.sampled_from(["user", "ai"]), "timestamp": st.integers(1, 10**9), "meta": metadata},
        optional={"message_id": ids},
    ),
)
add = st.tuples(st.just("add"), users, texts, st.tuples(metadata, ids))
search = st.tuples(
    st.just("search"),
    users,
    texts,
    st.fixed_dictionaries(
        {"limit": st.just(100), "min_score": st.just(0.0)},
        optional={
            "filters": st.fixed_dictionaries(
                {}, optional={"session_id": ids, "source": st.sampled_from(["user", "ai"]), "since": st.integers(0, 9)}
            ),
            "exclude_session": ids,
            "recency_half_life_days": st.floats(0.1, 1_000),
            "explain": st.booleans(),
        },
    ),
)
profile = st.tuples(st.just("profile"), users, texts, st.dictionaries(ids, ids | st.none(), max_size=3))


class World:
    """The services on one database, and a model of which user has which memories and profile."""

    def __init__(self, memories: MemoryService, heavy: MemoryService, profiles: ProfileService) -> None:
        self.services = (memories, heavy)
        self.profiles = profiles
        self.owner: dict[str, str] = {}
        self.profile: dict[str, dict[str, Any]] = {}

    def index(self, user_id: str, text: str, more: dict[str, Any]) -> None:
        for memory_id in self.services[0].index(MemoryUpdateMessage(user_id=user_id, content=text, **more)):
            assert self.owner.setdefault(memory_id, user_id) == user_id

    def add(self, user_id: str, text: str, more: tuple[dict[str, Any], str]) -> None:
        [memory] = self.services[0].add(
            user_id, AddData(content=text.replace("\0", ""), metadata=more[0]), more[1], 1_000.0
        )
        assert self.owner.setdefault(memory.id, user_id) == user_id

    def search(self, user_id: str, text: str, more: dict[str, Any]) -> None:
        for service in self.services:
            for memory in service.search(user_id, SearchData(query=text, **more)):
                assert self.owner[memory.id] == user_id

    def update_profile(self, user_id: str, _: str, patch: dict[str, Any]) -> None:
        self.profiles.update(user_id, patch)
        kept = {**self.profile.get(user_id, {}), **patch}
        self.profile[user_id] = {name: value for name, value in kept.items() if value is not None}


@pytest.fixture(scope="module")
def world(create_database: Callable[..., str], migrated_template: str) -> Iterator[World]:
    with open_pool(create_database(migrated_template), 4) as pool:
        store, embedder = MemoryStore(pool), WordEmbedder()
        mem0 = Mem0Memory(embedder, store, PostgresHistory(pool), None)
        weights, _ = calibrate(embedder)
        memories, heavy = MemoryService(mem0, store, weights), MemoryService(mem0, store, weights, exact_limit=MANY)
        world = World(memories, heavy, ProfileService(pool))
        for number in range(2 * MANY):  # a user with more than are read whole
            world.index(USERS[0], f"I like tea number {number}", {"source": "user", "timestamp": number})
        yield world


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(index, add, search, profile), min_size=1, max_size=12))
def test_nothing_crosses_users(world: World, deeds: list[tuple[str, str, str, Any]]) -> None:
    """Given any users with any events, adds, searches and updates, I expect each to get their own data alone."""
    do = {"index": world.index, "add": world.add, "search": world.search, "profile": world.update_profile}
    for deed, user_id, text, more in deeds:
        do[deed](user_id, text, more)  # type: ignore[operator]

    for user_id in USERS:
        world.search(user_id, "tea", {"limit": 100, "min_score": 0.0})
        assert world.profiles.get(user_id).values == world.profile.get(user_id, {})
