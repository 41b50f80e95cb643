"""The chats that retrieval is measured on say what their questions ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent.parent / "data"
FILES = ["bilingual.json", "chats-seen.json", "chats-unseen.json"]


@pytest.fixture(params=FILES)
def users(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The users of one file."""
    found: list[dict[str, Any]] = json.loads((DATA / request.param).read_text())["users"]
    return found


def test_every_question_is_answered_by_a_memory_of_its_user(users: list[dict[str, Any]]) -> None:
    """Given a question, I expect at least one memory that answers it, and all of them to be its user's."""
    for user in users:
        known = {memory["id"] for memory in user["memories"]}
        assert all(question["answers"] and known.issuperset(question["answers"]) for question in user["questions"])


def test_memories_have_ids_of_their_own_and_stand_in_their_order(users: list[dict[str, Any]]) -> None:
    """Given a user's memories, I expect no id twice and no step back in time: they are stored as they come."""
    ids = [memory["id"] for user in users for memory in user["memories"]]
    assert len(set(ids)) == len(ids)
    for user in users:
        times = [memory["timestamp"] for memory in user["memories"]]
        assert times == sorted(times)


def test_there_is_enough_to_measure_with(users: list[dict[str, Any]]) -> None:
    """Given a file, I expect six users, 300 memories and 120 questions at the least."""
    assert len(users) >= 6
    assert sum(len(user["memories"]) for user in users) >= 300
    assert sum(len(user["questions"]) for user in users) >= 120
