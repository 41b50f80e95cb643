"""How long `ltm up` waits for what it started."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from services.runtime.errors import StackError
from services.stack import launch
from services.stack.launch import Addresses, Launch, LaunchOptions, StopRequest
from services.stack.processes import WORKER
from services.stack.supervisor import Supervisor

ADDRESSES = Addresses("redis://nowhere", "postgresql://nowhere", [], None)


class OneSilentWorker:
    """A supervisor whose worker starts and does not answer."""

    names = (WORKER,)

    def last_lines(self, _: str) -> list[str]:
        return ["still at it"]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def late(said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launch:
    """A launch whose time is up."""
    monkeypatch.setattr(launch, "START_WITHIN_S", -1.0)
    return Launch(LaunchOptions(tmp_path), {}, said.append, StopRequest(), lambda _: None)


def test_a_worker_that_never_answers_is_given_up_on(
    late: Launch, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a silent worker and no time left, I expect its last lines, and an end."""
    monkeypatch.setattr(launch, "migrating", lambda _: False)

    with pytest.raises(StackError, match="still at it"):
        late._check_time(cast(Supervisor, OneSilentWorker()), [WORKER], ADDRESSES)
    assert said == []


def test_a_worker_that_brings_the_database_up_to_date_is_waited_for(
    late: Launch, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a migration under way and no time left, I expect to be told once, and as much time again."""
    monkeypatch.setattr(launch, "migrating", lambda _: True)
    monkeypatch.setattr(launch, "START_WITHIN_S", 60.0)

    for _ in range(3):
        late._check_time(cast(Supervisor, OneSilentWorker()), [WORKER], ADDRESSES)

    assert said == ["the database is being brought up to date, which may take minutes"]
