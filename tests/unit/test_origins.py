"""`ltm profile USER --why SLOT`: the values of a slot, newest first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from keepsake_client.protocol import LTMResponse
from typer.testing import CliRunner

from services.cli import origins
from services.cli.app import build_app

LISBON = {"value": "Lisbon", "evidence": ["m2"], "said_at": 2}
OSLO = {"value": "Oslo", "evidence": ["m1"], "said_at": 1}


class StandIn:
    """A client of a profile whose history has two pages."""

    def __init__(self) -> None:
        self.cursors: list[str | None] = []

    def profile_get(
        self, user: str, *, agent_id: str | None, deadline_ms: int, history: bool = False, cursor: str | None = None
    ) -> LTMResponse:
        fields: dict[str, Any] = {"user_profile": {"known": {"home": LISBON}}}
        if history:
            self.cursors.append(cursor)
            fields |= {"profile_history": OLDER if cursor else NEWER, "next_cursor": None if cursor else "2"}
        return LTMResponse.model_validate({"request_id": "r", "user_id": user, "success": True, **fields})

    def memory_get(self, user: str, memory_id: str, *, deadline_ms: int) -> LTMResponse:
        memory = {"id": memory_id, "content": f"words of {memory_id}", "timestamp": 1}
        return LTMResponse.model_validate({"request_id": "r", "user_id": user, "success": True, "memories": [memory]})


def change(version: int, patch: dict[str, Any], source: str = "extraction") -> dict[str, Any]:
    return {"version": version, "changed_at": version, "source": source, "patch": patch}


NEWER = [change(4, {"known": {"home": LISBON}}), change(3, {"name": "Lin"}, "service")]
OLDER = [change(2, {"known": {"home": LISBON}}), change(1, {"known": {"home": OSLO}})]


def test_the_values_of_a_slot_come_from_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a history of two pages, in which one value holds again, I expect each value once, newest first, with the
    words that it comes from."""
    client = StandIn()

    @contextmanager
    def client_of(_: Any) -> Iterator[StandIn]:
        yield client

    monkeypatch.setattr(origins, "client_of", client_of)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    result = CliRunner().invoke(build_app(), ["profile", "u1", "--why", "home", "--json"])

    values = json.loads(result.output)["values"]
    assert [(value["version"], value["value"]) for value in values] == [(4, "Lisbon"), (1, "Oslo")]
    assert [value["words"][0]["content"] for value in values] == ["words of m2", "words of m1"]
    assert client.cursors == [None, "2"]
