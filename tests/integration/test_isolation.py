"""Isolation of users and of characters: with any ids, texts and metadata, a request gets what its scope has, alone."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keepsake_client.protocol import AddData, MemoryUpdateMessage, SearchData, clean, encode_user_id

from services.long_term_memory.embeddings.calibration import calibrate
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.facts import NewFact, insert_facts
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.scope import ALL_KINDS, Owner, Scope, encode_agent_id
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
#: As the wire reads them: an agent's id is a text that is stored.
AGENTS = sorted({clean(agent) for agent in ["luna", "Luna", "luna:sol", "' OR true --", "''", *USERS]})
agents = st.none() | st.sampled_from(AGENTS)
speakers = st.sampled_from(["Anna", "*", "' OR true --", {"id": "1"}, {"id": "u1", "name": "Anna"}])
#: The fields of a request that say whose memories it sees.
scopes = st.fixed_dictionaries(
    {}, optional={"agent_id": agents, "all_agents": st.booleans(), "also": st.lists(users, max_size=4)}
)
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
        optional={"message_id": ids, "agent_id": agents, "speaker": speakers},
    ),
)
add = st.tuples(st.just("add"), users, texts, st.tuples(metadata, ids, agents))
search = st.tuples(
    st.just("search"),
    users,
    texts,
    st.tuples(
        st.fixed_dictionaries(
            {"limit": st.just(100), "min_score": st.just(0.0)},
            optional={
                "filters": st.fixed_dictionaries(
                    {},
                    optional={
                        "session_id": ids,
                        "source": st.sampled_from(["user", "ai"]),
                        "since": st.integers(0, 9),
                        "speaker": speakers,
                    },
                ),
                "exclude_session": ids,
                "recency_half_life_days": st.floats(0.1, 1_000),
                "include_superseded": st.booleans(),
                "explain": st.booleans(),
                "speaker": speakers,
            },
        ),
        scopes,
    ).map(lambda parts: {**parts[0], **parts[1]}),
)
fact = st.tuples(st.just("fact"), users, texts, st.tuples(agents, st.integers(0, 9)))
profile = st.tuples(
    st.just("profile"), users, texts, st.tuples(st.dictionaries(ids, ids | st.none(), max_size=3), agents)
)


class World:
    """The services on one database, and a model of which user's and character's each memory and profile is."""

    def __init__(
        self, store: MemoryStore, memories: MemoryService, heavy: MemoryService, profiles: ProfileService
    ) -> None:
        self.store = store
        self.services = (memories, heavy)
        self.profiles = profiles
        self.owner: dict[str, tuple[str, str | None]] = {}
        self.facts: set[str] = set()
        self.profile: dict[tuple[str, str | None], dict[str, Any]] = {}

    def index(self, user_id: str, text: str, more: dict[str, Any]) -> None:
        update = MemoryUpdateMessage(user_id=user_id, content=text, **more)
        for memory_id in self.services[0].index(update, update.timestamp + 3_600):
            assert self.owner.setdefault(memory_id, (user_id, update.agent_id)) == (user_id, update.agent_id)

    def add(self, user_id: str, text: str, more: tuple[dict[str, Any], str, str | None]) -> None:
        metadata, request_id, agent_id = more
        data = AddData(content=text.replace("\0", ""), metadata=metadata, agent_id=agent_id)
        [memory] = self.services[0].add(user_id, data, request_id, 1_000.0)
        assert self.owner.setdefault(memory.id, (user_id, agent_id)) == (user_id, agent_id)

    def fact(self, user_id: str, text: str, more: tuple[str | None, int]) -> None:
        """A fact of one of an owner's memories, that claims to replace a fact of any owner."""
        agent_id, place = more
        owner, numbers = (user_id, agent_id), self.numbers()
        said = [number for number, one in numbers.items() if self.owner[one] == owner and one not in self.facts]
        if not said:
            return
        known = sorted(number for number, one in numbers.items() if one in self.facts)
        new = NewFact(
            id=str(uuid.uuid5(uuid.NAMESPACE_OID, repr((owner, text)))),
            content=clean(text),
            vector=WordEmbedder().embed(clean(text)),
            kind="state",
            about="user",
            when=None,
            said_at=1_000.0,
            source="user",
            session_id=None,
            speaker=None,
            evidence=[said[place % len(said)]],
            replaces=[known[place % len(known)]] if known and place % 2 else [],
        )
        with self.store.columns._pool.connection() as connection:
            insert_facts(connection, Owner(encode_user_id(user_id), encode_agent_id(agent_id)), [new])
        self.facts.add(new.id)
        assert self.owner.setdefault(new.id, owner) == owner

    def search(self, user_id: str, text: str, more: dict[str, Any]) -> None:
        search = SearchData(query=text, **more)
        for service in self.services:
            for memory in service.search(user_id, search):
                owner = (memory.user_id, memory.agent_id)
                assert owner == self.owner[memory.id]
                assert self.is_seen(memory.id, user_id, search)
                assert (memory.kind == "fact") == (memory.id in self.facts)
                if memory.kind == "message":
                    with_it = [one["id"] for one in self._attached(memory.metadata.get("facts"))]
                else:
                    with_it = [*memory.metadata["evidence"], memory.metadata.get("superseded_by", memory.id)]
                    assert search.include_superseded or "superseded_at" not in memory.metadata
                assert {self.owner[one] for one in with_it} <= {owner}

    @staticmethod
    def _attached(facts: Any) -> list[dict[str, Any]]:
        """What a search has put beside a message; a publisher's own `facts` are of any shape."""
        return [one for one in facts if isinstance(one, dict) and "score" in one] if isinstance(facts, list) else []

    def is_seen(self, memory_id: str, user_id: str, search: SearchData) -> bool:
        """Whether a search may see a memory, by the contract's words."""
        user, agent = self.owner[memory_id]
        return user in (user_id, *search.also) and (
            agent is None or search.all_agents is True or agent == search.agent_id
        )

    def update_profile(self, user_id: str, _: str, more: tuple[dict[str, Any], str | None]) -> None:
        patch, agent_id = more
        self.profiles.update(user_id, patch, agent_id=agent_id)
        kept = {**self.profile.get((user_id, agent_id), {}), **patch}
        self.profile[user_id, agent_id] = {name: value for name, value in kept.items() if value is not None}

    def numbers(self) -> dict[int, str]:
        """The ids of all memories by number."""
        with self.store.columns._pool.connection() as connection:
            return dict(connection.execute("SELECT number, id::text FROM memories").fetchall())


@pytest.fixture(scope="module")
def world(create_database: Callable[..., str], migrated_template: str) -> Iterator[World]:
    with open_pool(create_database(migrated_template), 4) as pool:
        store, embedder = MemoryStore(pool), WordEmbedder()
        mem0 = Mem0Memory(embedder, store, PostgresHistory(pool), None)
        weights, _ = calibrate(embedder)
        memories, heavy = MemoryService(mem0, store, weights), MemoryService(mem0, store, weights, exact_limit=MANY)
        world = World(store, memories, heavy, ProfileService(pool))
        for number in range(2 * MANY):  # a user, and a character, with more than are read whole
            for agent_id in (None, AGENTS[0]):
                event = {"source": "user", "timestamp": number, "agent_id": agent_id}
                world.index(USERS[0], f"I like tea number {number}", event)
        yield world


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(index, add, search, profile, fact), min_size=1, max_size=12))
def test_nothing_crosses_users_or_characters(world: World, deeds: list[tuple[str, str, str, Any]]) -> None:
    """Given any users and characters with any events, adds, searches and updates, I expect to each its own alone."""
    do = {
        "index": world.index,
        "add": world.add,
        "search": world.search,
        "profile": world.update_profile,
        "fact": world.fact,
    }
    for deed, user_id, text, more in deeds:
        do[deed](user_id, text, more)  # type: ignore[operator]

    for user_id in USERS:
        world.search(user_id, "tea", {"limit": 100, "min_score": 0.0})
        for agent_id in (None, *AGENTS):
            expected = world.profile.get((user_id, agent_id), {})
            assert world.profiles.get(user_id, agent_id).values == expected


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(index, fact), max_size=6), users, scopes)
def test_every_read_is_of_its_scope(world: World, events: list[Any], user_id: str, scope: dict[str, Any]) -> None:
    """Given any scope, I expect all that it sees to be ranked, and of all numbers only its own to be loaded."""
    for deed, user, text, more in events:
        (world.index if deed == "index" else world.fact)(user, text, more)
    search = SearchData(query="tea", **scope)
    stored = world.numbers()
    seen = {number for number, memory_id in stored.items() if world.is_seen(memory_id, user_id, search)}
    agent, whole = search.agent_id, bool(search.all_agents)
    sql_scope = Scope.of(user_id, agent, all_agents=whole, also=search.also, kinds=ALL_KINDS)

    few, many = (
        set(service._reads.primary.candidates.read(sql_scope, None, search, 0.0).number) for service in world.services
    )
    assert few == seen
    assert many <= seen
    assert set(world.store.payloads(sql_scope, list(stored))) == seen
    everything = Scope(sql_scope.users, all_agents=True, kinds=ALL_KINDS)
    arrivals = set(world.store.arrivals(everything, list(stored)))
    assert set(world.store.arrivals(sql_scope, list(stored))) == arrivals & seen
    for first in (min(stored), max(stored)):
        order = [first, *(number for number in stored if number != first)]
        near = {number for number, cosine in zip(order, world.store.likeness(sql_scope, order), strict=True) if cosine}
        assert near == (seen if first in seen else set())


def test_what_arrived_just_now_is_an_echo_in_its_own_scope_alone(memories: MemoryService) -> None:
    """Given one message of just now, dated otherwise, to two characters, I expect each search to leave out its own."""
    now, said_at = 1_800_000_000.0, 1_800_000_000.0 - 3_600
    for agent_id, arrived_at in (("luna", now), ("sol", now - 1_000)):
        said = {"user_id": "u1", "content": "my dog is Rex", "source": "user", "timestamp": said_at}
        memories.index(MemoryUpdateMessage.model_validate({**said, "agent_id": agent_id}), arrived_at)

    found = [
        [memory.agent_id for memory in memories.search("u1", SearchData(query="my dog is Rex", **scope), now=now)]
        for scope in ({"agent_id": "luna"}, {"agent_id": "sol"}, {"all_agents": True}, {})
    ]

    assert found == [[], ["sol"], ["sol"], []]
