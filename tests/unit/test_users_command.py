"""`ltm users`: what it asks for, and what it prints."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from services.cli import users
from services.cli.app import build_app

USER = {"user_id": "an na", "memories": 10_000, "facts": 3, "superseded": 0, "at_least": True, "agents": ["mira"]}


class LongTermMemory:
    """Answers requests from a list, and notes them."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.responses: list[dict[str, Any]] = []

    def ask(self, _: Any, kind: str, user: str, data: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert (kind, user) == ("user_list", "operator")
        self.asked.append({name: value for name, value in data.items() if value is not None})
        return self.responses.pop(0)


@pytest.fixture
def ltm(monkeypatch: pytest.MonkeyPatch) -> LongTermMemory:
    ltm = LongTermMemory()
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setattr(users, "ask", ltm.ask)
    return ltm


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), ["users", *arguments])


def test_users_are_listed_up_to_the_limit(ltm: LongTermMemory) -> None:
    """Given more users than the limit on two pages, I expect a line for each, controls escaped, and a hint."""
    hostile = {"user_id": "\x1b[2Jben", "memories": 0, "facts": 0, "superseded": 0, "at_least": False, "agents": []}
    ltm.responses = [
        {"users": [{**USER, "last_at": 1_712_345_678}], "next_cursor": "a"},
        {"users": [{**hostile, "last_at": None}], "next_cursor": "b"},
    ]

    lines = run("an", "--limit", "2").output.splitlines()

    assert lines[0] == f"{'an na':<20}  2024-04-05 19:34  10,000 memories or more, 3 facts  [mira]"
    assert "\x1b" not in lines[1]
    assert lines[1].endswith("0 memories")
    assert lines[2] == "there are more: --limit N, or --all"
    assert ltm.asked == [{"prefix": "an", "limit": 2}, {"prefix": "an", "limit": 1, "cursor": "a"}]


def test_all_users_are_one_response_in_json(ltm: LongTermMemory) -> None:
    """Given two pages, I expect all users in one JSON object, without a cursor."""
    ltm.responses = [{"users": [USER], "next_cursor": "a"}, {"users": [USER]}]

    response = json.loads(run("--all", "--json").output)

    assert (len(response["users"]), response.get("next_cursor")) == (2, None)


def test_no_users_are_said(ltm: LongTermMemory) -> None:
    """Given none, I expect words."""
    ltm.responses = [{"users": []}]

    assert run("zz").output == "no users\n"
