"""The chats of the retrieval benchmarks: consistent, and large enough."""

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


def test_a_memory_of_the_user_answers_every_question(users: list[dict[str, Any]]) -> None:
    """Given a question, I expect at least one memory that answers it, and all of them to be of its user."""
    for user in users:
        known = {memory["id"] for memory in user["memories"]}
        assert all(question["answers"] and known.issuperset(question["answers"]) for question in user["questions"])


def test_memories_have_unique_ids_and_are_in_chronological_order(users: list[dict[str, Any]]) -> None:
    """Given a user's memories, I expect no id twice and no step back in time: they are stored in this order."""
    ids = [memory["id"] for user in users for memory in user["memories"]]
    assert len(set(ids)) == len(ids)
    for user in users:
        times = [memory["timestamp"] for memory in user["memories"]]
        assert times == sorted(times)


def test_each_file_is_large_enough(users: list[dict[str, Any]]) -> None:
    """Given a file, I expect at least six users, 300 memories and 120 questions."""
    assert len(users) >= 6
    assert sum(len(user["memories"]) for user in users) >= 300
    assert sum(len(user["questions"]) for user in users) >= 120
