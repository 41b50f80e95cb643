"""`ltm extract`: what it prints, asks and does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from services.cli import extract
from services.cli.app import build_app
from services.long_term_memory.extraction import rebuilding
from services.long_term_memory.extraction.operations import Cost, SetAside, Waiting
from services.runtime.settings import Settings

MOMENT = datetime(2024, 4, 5, 19, 30, tzinfo=UTC)


class Operations:
    """An operator's view that notes what is done."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.waits: list[Waiting] = []
        self.aside: list[SetAside] = []
        self.connection = self

    def waiting(self) -> list[Waiting]:
        return self.waits

    def set_aside(self) -> list[SetAside]:
        return self.aside

    def retry(self, user_id: str | None) -> int:
        self.done.append(("retry", user_id))
        return 1_234

    def pause(self) -> None:
        self.done.append("pause")

    def resume(self) -> None:
        self.done.append("resume")

    def cost(self, user_id: str) -> Cost:
        return Cost(facts=1_200, messages=4_000, calls=290, tokens=580_000)

    def rebuild(self, user_id: str) -> int:
        self.done.append(("rebuild", user_id))
        return 4_000


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Operations:
    operations = Operations()

    @contextmanager
    def opened(_: Settings) -> Iterator[Operations]:
        yield operations

    monkeypatch.setenv("DATABASE_URL", "postgresql://nowhere/keepsake")
    monkeypatch.setenv("LTM_TIMEZONE", "Asia/Shanghai")
    monkeypatch.setattr(extract, "open_operations", opened)
    monkeypatch.setattr(rebuilding, "rebuild", lambda connection, user_id: connection.rebuild(user_id))
    return operations


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), ["extract", *arguments])


def test_what_waits_and_what_was_set_aside_is_listed(operations: Operations) -> None:
    """Given owners that wait, and a long message of hostile text that was set aside, I expect a line for each owner
    with local times, and the reason, the id and the first characters of the message."""
    operations.waits = [Waiting("anna", None, 12, MOMENT, MOMENT), Waiting("ben", "luna", 1, MOMENT, None)]
    operations.aside = [SetAside("anna", None, "id-1", MOMENT, "no JSON\x1b", "first\nline \x1b[31m" + "x" * 100)]

    assert run("list").output.splitlines() == [
        "anna                  12 messages since 2024-04-06 03:30, due 2024-04-06 03:30",
        "ben @luna             1 message since 2024-04-06 03:30, due with the next words of the user",
        "set aside: no JSON\\u001b",
        "  id-1  anna  2024-04-06 03:30  first line \\u001b[31m" + "x" * 39 + "…",
    ]


def test_nothing_to_list_is_said(operations: Operations) -> None:
    """Given that nothing waits, I expect one line."""
    assert run("list").output == "nothing waits, and nothing was set aside\n"


@pytest.mark.parametrize(("arguments", "user"), [(("anna",), "anna"), (("--all",), None)])
def test_what_was_set_aside_is_tried_again(
    operations: Operations, arguments: tuple[str, ...], user: str | None
) -> None:
    """Given a user, or --all, I expect theirs tried again, and how many."""
    assert run("retry", *arguments).output == "1,234 messages will be read again\n"

    assert operations.done == [("retry", user)]


@pytest.mark.parametrize("arguments", [(), ("anna", "--all")])
def test_a_retry_names_a_user_or_all(operations: Operations, arguments: tuple[str, ...]) -> None:
    """Given neither, or both, I expect a usage error, and nothing done."""
    assert run("retry", *arguments).exit_code == 2

    assert operations.done == []


def test_a_pause_ends_with_resume(operations: Operations) -> None:
    """Given both commands, I expect both done."""
    assert run("pause").output == "paused: what is said waits\n"
    assert run("resume").output == "resumed\n"

    assert operations.done == ["pause", "resume"]


def test_a_rebuild_says_what_it_costs(operations: Operations) -> None:
    """Given --yes, I expect the cost, over how many days the budget of a user spreads it, and what waits then."""
    assert run("rebuild", "anna", "--yes").output.splitlines() == [
        "1,200 facts are deleted, with the slots that extraction filled; 4,000 messages are read again in about 290"
        " calls and 580,000 tokens. LTM_EXTRACT_TOKENS_PER_USER spreads them over 12 days.",
        "4,000 messages wait to be read again",
    ]

    assert operations.done == [("rebuild", "anna")]


def test_a_rebuild_without_a_terminal_wants_yes(operations: Operations) -> None:
    """Given no terminal to ask on, I expect the cost, a usage error, and nothing done."""
    result = run("rebuild", "anna")

    assert "about 290 calls" in result.output
    assert (result.exit_code, operations.done) == (2, [])
