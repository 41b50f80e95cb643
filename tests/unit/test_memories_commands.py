"""`ltm memories`, `memory`, `correct` and `forget`: what they ask for, and what they print."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from services.cli import forget, memories
from services.cli.app import build_app

MOMENT = 1_712_345_678


def memory(number: int = 1, content: str = "tea", **more: Any) -> dict[str, Any]:
    base = {"id": f"id-{number}", "content": content, "source": "user", "timestamp": MOMENT, "metadata": {}}
    return {**base, "agent_id": None, "speaker": None, **more}


class LongTermMemory:
    """Answers requests from a list, and notes them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.responses: list[dict[str, Any]] = []

    def ask(self, _: Any, kind: str, user: str, data: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert user == "u1"
        self.asked.append((kind, {name: value for name, value in data.items() if value is not None}))
        return {"memories": [], **self.responses.pop(0)}


@pytest.fixture
def ltm(monkeypatch: pytest.MonkeyPatch) -> LongTermMemory:
    ltm = LongTermMemory()
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("LTM_TIMEZONE", "Asia/Shanghai")
    for module in (memories, forget):
        monkeypatch.setattr(module, "ask", ltm.ask)
    return ltm


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), arguments)


def test_memories_are_listed_over_pages_up_to_the_limit(ltm: LongTermMemory) -> None:
    """Given more memories than the limit on two pages, I expect them in lines with ids and local times, and a hint."""
    ltm.responses = [{"memories": [memory(1)], "next_cursor": "a"}, {"memories": [memory(2)], "next_cursor": "b"}]

    result = run("memories", "u1", "--limit", "2", "--contains", "te", "--since", "2024", "--agent", "anna", "--oldest")

    assert result.output.splitlines() == [
        "id-1  2024-04-06 03:34  user  tea",
        "id-2  2024-04-06 03:34  user  tea",
        "there are more: --limit N, or --all",
    ]
    data = {"filters": {"contains": "te", "since": "2024"}, "agent_id": "anna", "order": "oldest"}
    assert ltm.asked == [
        ("memory_list", {**data, "limit": 2}),
        ("memory_list", {**data, "limit": 1, "cursor": "a"}),
    ]


def test_all_memories_are_one_response_in_json(ltm: LongTermMemory) -> None:
    """Given three pages, one of them empty, I expect all memories in one JSON object, without a cursor."""
    ltm.responses = [
        {"memories": [memory(1)], "next_cursor": "a"},
        {"memories": [], "next_cursor": "b"},
        {"memories": [memory(2)]},
    ]

    response = json.loads(run("memories", "u1", "--all", "--json", "--all-agents").output)

    assert ([found["id"] for found in response["memories"]], response.get("next_cursor")) == (["id-1", "id-2"], None)
    assert ltm.asked[2] == ("memory_list", {"all_agents": True, "order": "newest", "limit": 100, "cursor": "b"})


def test_no_memories_are_said(ltm: LongTermMemory) -> None:
    """Given none, I expect words."""
    ltm.responses = [{}]

    assert run("memories", "u1").output == "no memories\n"


def test_facts_are_listed_apart(ltm: LongTermMemory) -> None:
    """Given the list of replaced facts, I expect their kind asked for, and in each line when, and by which."""
    superseded = {"superseded_at": MOMENT, "superseded_by": "id-2"}
    ltm.responses = [{"memories": [memory(1, kind="fact", when="2024-04", metadata=superseded)]}]

    shown = run("memories", "u1", "--superseded").output

    assert shown == "id-1  2024-04-06 03:34  fact  tea  (of 2024-04, replaced 2024-04-06 by id-2)\n"
    assert ltm.asked[0][1]["filters"] == {"kind": "superseded"}


HOSTILE = "\x1b[2J\x07\u202etea\r\nsecond line"


def test_hostile_texts_are_escaped(ltm: LongTermMemory) -> None:
    """Given controls in every text of a memory, I expect their escapes, and a line a memory in a list."""
    ltm.responses = [
        {"memories": [memory(1, HOSTILE, agent_id=HOSTILE, speaker={"id": None, "name": HOSTILE})]},
        {
            "memories": [memory(1, HOSTILE, metadata={HOSTILE: HOSTILE})],
            "history": [
                {"event": "ADD", "old_content": None, "new_content": "a", "changed_at": "2024"},
                {"event": "UPDATE", "old_content": HOSTILE, "new_content": HOSTILE, "changed_at": HOSTILE},
            ],
        },
    ]
    shown = "\\u001b[2J\\u0007\\u202etea"

    listed, one = run("memories", "u1").output, run("memory", "u1", "id-1").output

    line = f"id-1  2024-04-06 03:34  user  [{shown} second line] {shown} second line> {shown} second line"
    assert listed == f"{line}\n"
    assert one.count(shown) == 5
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(listed + one)


def test_a_memory_is_shown_with_its_earlier_contents(ltm: LongTermMemory) -> None:
    """Given one that was corrected twice, I expect what it was, newest first."""
    changes = [("ADD", None, "a", "1"), ("UPDATE", "a", "b", "2"), ("UPDATE", "b", "c", "3")]
    history = [dict(zip(("event", "old_content", "new_content", "changed_at"), one, strict=True)) for one in changes]
    ltm.responses = [{"memories": [memory(1, "c", metadata={"k": "é"})], "history": history}]

    assert run("memory", "u1", "id-1").output.splitlines() == [
        "id-1  2024-04-06 03:34  user  c",
        '    {"k": "é"}',
        "  until 3: b",
        "  until 2: a",
    ]
    assert ltm.asked == [("memory_get", {"id": "id-1"})]


def test_a_correction_is_sent(ltm: LongTermMemory) -> None:
    """Given a text and metadata, I expect one request with both."""
    ltm.responses = [{"memories": [memory(1, "coffee")]}]

    result = run("correct", "u1", "id-1", "coffee", "--meta", '{"a": null}')

    assert result.output == "id-1  2024-04-06 03:34  user  coffee\n"
    assert ltm.asked == [("memory_update", {"id": "id-1", "content": "coffee", "metadata": {"a": None}})]


@pytest.mark.parametrize(
    "arguments",
    [
        ["correct", "u1", "id-1"],
        ["correct", "u1", "id-1", "--meta", "[1]"],
        ["correct", "u1", "id-1", "--meta", "{"],
        ["forget", "u1"],
        ["forget", "u1", "--all-agents"],
        ["forget", "u1", "--id", "id-1", "--contains", "tea"],
    ],
)
def test_what_says_too_little_or_too_much_asks_for_nothing(ltm: LongTermMemory, arguments: list[str]) -> None:
    """Given no change, no JSON object, nothing to delete or two ways to say what, I expect a usage error."""
    assert run(*arguments).exit_code == 2
    assert ltm.asked == []


def test_ids_and_filters_together_are_told_apart_from_neither(ltm: LongTermMemory) -> None:
    """Given --id beside a filter, I expect the error to say so, not to ask for one of them."""
    output = run("forget", "u1", "--id", "id-1", "--contains", "tea").output

    assert "--id: goes with no filter" in output
    assert "say which" not in output


def test_a_deletion_is_counted_before(ltm: LongTermMemory) -> None:
    """Given --yes, I expect a count and the deletion; with --dry-run the count alone."""
    ltm.responses = [{"count": 3}, {"count": 2}, {"count": 1}]

    assert run("forget", "u1", "--source", "ai", "--yes").output == "2 memories of u1 deleted\n"
    assert run("forget", "u1", "--id", "a", "--id", "b", "--dry-run").output == "1 memory of u1; none was deleted\n"
    assert ltm.asked == [
        ("memory_delete", {"filters": {"source": "ai"}, "dry_run": True}),
        ("memory_delete", {"filters": {"source": "ai"}}),
        ("memory_delete", {"ids": ["a", "b"], "dry_run": True}),
    ]


def test_without_a_terminal_nothing_is_deleted_unasked(ltm: LongTermMemory) -> None:
    """Given no terminal and no --yes, I expect the count alone to be asked for, and a hint."""
    ltm.responses = [{"count": 3}]

    result = run("forget", "u1", "--contains", "tea")

    assert (result.exit_code, [data.get("dry_run") for _, data in ltm.asked]) == (2, [True])
    assert "--yes" in result.output
