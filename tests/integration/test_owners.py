"""Searches of several owners: users (`also`), and a user's characters, read at once and ranked as one conversation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from keepsake_client.protocol import MemoryUpdateMessage, SearchData
from numpy.testing import assert_array_equal

from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.scope import Owner, Scope
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.candidates import CandidateReader
from services.long_term_memory.retrieval.weights import Weights

NOON = 1_712_345_678.0


def said(content: str, user_id: str = "u1", session: str = "s1", seconds: int = 0, **more: Any) -> MemoryUpdateMessage:
    fields = {"user_id": user_id, "content": content, "source": "user", "timestamp": NOON + seconds, **more}
    return MemoryUpdateMessage.model_validate({**fields, "meta": {"session_id": session}})


def contents(memories: MemoryService, query: str, user_id: str = "u1", **more: Any) -> list[str]:
    search = SearchData.model_validate({"query": query, "limit": 100, "min_score": 0, **more})
    return [memory.content for memory in memories.search(user_id, search)]


@pytest.fixture
def statements(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements with which columns are read, as they are sent."""
    sent: list[str] = []
    fetch = store.columns._fetch

    def noting(statement: Any, values: Any) -> Any:
        sent.append(str(statement))
        return fetch(statement, values)

    monkeypatch.setattr(store.columns, "_fetch", noting)
    return sent


def test_several_owners_are_one_round_trip(memories: MemoryService, store: MemoryStore, statements: list[str]) -> None:
    """Given five users, and a user with characters, I expect one statement for all, and what each read alone has."""
    for number in range(40):
        memories.index(said(f"tea number {number}", f"u{number % 5}", agent_id=[None, "luna"][number % 2]))
    reader = CandidateReader(store.columns, Weights())
    search = SearchData(query="tea")
    alone = {
        number
        for user in range(5)
        for number in reader.read(Scope((f"u{user}",), all_agents=True), None, search, 0.0).number.tolist()
    }
    statements.clear()

    together = reader.read(Scope(tuple(f"u{n}" for n in range(5)), all_agents=True), None, search, 0.0)

    assert len(statements) == 1
    assert set(together.number.tolist()) == alone
    assert len(alone) == 40


def test_the_memories_of_several_owners_are_in_the_order_of_the_conversation(
    memories: MemoryService, store: MemoryStore
) -> None:
    """Given a session with lines to a character and to all, I expect them by time, each with its own terms."""
    lines = ["tea is green", "the night train leaves", "rain", "a boat with seven red sails"]
    for second, line in enumerate(lines):
        memories.index(said(line, seconds=second, agent_id="luna" if second % 2 else None))
    reader = CandidateReader(store.columns, Weights())

    both = reader.read(Scope(("u1",), "luna"), None, SearchData(query="tea"), 0.0)
    shared = reader.read(Scope(("u1",)), None, SearchData(query="tea"), 0.0)

    assert both.timestamp.tolist() == [NOON + second for second in range(4)]
    assert len(set(both.session.tolist())) == 1
    assert_array_equal(both.where(np.array([True, False, True, False])).terms, shared.terms)


def test_sessions_of_two_users_are_two(memories: MemoryService, store: MemoryStore) -> None:
    """Given two users with a session of one id, I expect two sessions; a filter means that of either."""
    memories.index(said("tea at noon", "u1"))
    memories.index(said("tea at nine", "u2"))
    memories.index(said("tea at ten", "u2", session="s2"))
    reader = CandidateReader(store.columns, Weights())

    columns = reader.read(Scope(("u1", "u2")), None, SearchData(query="tea"), 0.0)

    assert len(set(columns.session.tolist())) == 3
    also: dict[str, Any] = {"also": ["u2"]}
    assert set(contents(memories, "tea", **also)) == {"tea at noon", "tea at nine", "tea at ten"}
    assert set(contents(memories, "tea", **also, filters={"session_id": "s1"})) == {"tea at noon", "tea at nine"}
    assert contents(memories, "tea", **also, exclude_session="s1") == ["tea at ten"]
    assert set(contents(memories, "tea", "u2", also=["u1"], filters={"session_id": "s2"})) == {"tea at ten"}


def test_every_memory_says_whose_it_is(memories: MemoryService) -> None:
    """Given a room, its member and a character, I expect user, agent and speaker of each memory as they were sent."""
    memories.index(said("tea in the room", "room 1", speaker={"id": "7", "name": "Anna"}))
    memories.index(said("tea for Luna", " u1 ", agent_id="*"))

    search = SearchData(query="tea", min_score=0, also=(" u1 ",), agent_id="*")
    found = {memory.content: memory for memory in memories.search("room 1", search)}

    assert {name: (one.user_id, one.agent_id) for name, one in found.items()} == {
        "tea in the room": ("room 1", None),
        "tea for Luna": (" u1 ", "*"),
    }
    speaker = found["tea in the room"].speaker
    assert speaker is not None
    assert (speaker.id, speaker.name) == ("7", "Anna")


def test_two_who_say_the_same_at_once_are_two_memories(memories: MemoryService, store: MemoryStore) -> None:
    """Given one text in one second of two people, without message_ids, I expect both, and one of each repetition."""
    for speaker in ("Anna", "Ben", {"id": "7", "name": "Ben"}, {"id": "7", "name": "Benny"}, "Anna", None, None):
        memories.index(said("yes, let us meet at the harbour", speaker=speaker))

    columns = store.columns.read(Owner("u1"), None)

    assert len(columns) == len(set(columns.speaker.tolist())) == 4


def test_a_user_named_twice_is_read_once(memories: MemoryService) -> None:
    """Given the user among the further ones, I expect each memory once."""
    memories.index(said("tea"))

    assert contents(memories, "tea?", also=["u1", "u1", "nobody"]) == ["tea"]


def test_of_several_owners_the_largest_is_read_in_part(memories: MemoryService, store: MemoryStore) -> None:
    """Given a limit of 300, one user with 600 memories and one with 20, I expect all 20, and of the others some."""
    memories.index_many(
        [said(f"tea number {n}", "large", f"s{n // 20}", n) for n in range(600)]
        + [said(f"coffee number {n}", "small", "s1", n) for n in range(20)]
    )
    reader = CandidateReader(store.columns, Weights(), exact_limit=300)
    numbers = {
        user: set(store.columns.read(Scope((user,)).owner, None).number.tolist())  # type: ignore[arg-type]
        for user in ("large", "small")
    }

    for users in (("large", "small"), ("small", "large"), ("large", "small")):
        columns = reader.read(Scope(users), None, SearchData(query="tea"), 0.0)
        read = set(columns.number.tolist())
        assert numbers["small"] <= read
        assert 0 < len(read & numbers["large"]) < 300
        assert len(read) == len(columns)
    assert read <= numbers["small"] | numbers["large"]


def test_an_owner_that_exceeds_its_share_is_read_whole_alone(
    memories: MemoryService, store: MemoryStore, statements: list[str]
) -> None:
    """Given two users with more than half of the limit and less than all, I expect one statement for one alone."""
    for user in ("u1", "u2"):
        memories.index_many([said(f"tea number {n}", user, f"s{n // 20}", n) for n in range(200)])
    reader, search = CandidateReader(store.columns, Weights(), exact_limit=250), SearchData(query="tea")
    assert len(reader.read(Scope(("u1", "u2")), None, search, 0.0)) < 400
    statements.clear()

    assert len(reader.read(Scope(("u1",)), None, search, 0.0)) == 200
    assert len(statements) == 1
