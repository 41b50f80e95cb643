"""The page Ask: what a search finds by one or two settings, and why, and cases for the benchmarks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import structlog
from keepsake_client.errors import InvalidMessage, RequestTimeout
from keepsake_client.turns import Candidate, Verdict
from nicegui import ui

from bench.retrieval.chats import read_users, updates
from services.gateway.access import Caller, Right
from services.gateway.console import feed
from services.gateway.console.cases import MAX_MEMORIES, case_of, language_of, line_of
from services.gateway.console.recall import Asked, local_minute, moves, options_of, verdicts_at, with_zone
from tests.support import eventually
from tests.unit.console_app import ConsoleApp, look
from tests.unit.console_records import Pipeline
from tests.unit.gateway_app import Memory

HOSTILE = "<script>alert(1)</script> \u202egnp " + "x" * 30_000
SHANGHAI = timezone(timedelta(hours=8))
READER = frozenset({Right.SEARCH, Right.READ})


def candidate(number: int, score: float, verdict: Verdict = "returned", content: str = "", **fields: Any) -> Candidate:
    content = content or f"memory {number}"
    parts = {"meaning": 2.0, "words": -1.0}
    return Candidate(
        id=f"m{number}", content=content, score=score, parts=parts, verdict=verdict, timestamp=1.0, **fields
    )


FOUND = [candidate(1, 0.9), candidate(2, 0.5), candidate(3, 0.2, "over_limit"), candidate(4, 0.05, "below_min_score")]


def answer(candidates: list[Candidate]) -> dict[str, Any]:
    cut = {"min_score": 0.09, "limit": 2, "ranked": 1_234}
    return {"candidates": candidates, "cut": cut, "timings": {"embed_ms": 14.0, "database_ms": 3.0, "rank_ms": 1.0}}


# What is asked


def test_the_url_holds_the_whole_question() -> None:
    """Given two settings with filters, I expect the URL to say both, and to be read as the same question."""
    first = {"limit": "3", "min_score": "0.2", "since": "2024-03-01T10:00+08:00"}
    asked = Asked("u 1", "我的猫?", (first, {"agent_id": "luna", "all_agents": "1"}))

    assert Asked.of(dict(parse_qsl(urlsplit(asked.url).query))) == asked


def test_any_text_in_a_url_is_a_question() -> None:
    """Given a user id with a lone surrogate, I expect a URL all the same."""
    assert Asked("\ud800", "q").url.startswith("/console/ask?user=")


def test_options_are_those_of_the_wire() -> None:
    """Given options as a form has them, I expect numbers, filters, and times with the viewer's zone."""
    setting = {"limit": "3", "min_score": "0.2", "session_id": "s1", "since": "2024-03-01T10:00"}

    assert options_of(setting | {"include_superseded": "1"}, SHANGHAI) == {
        "limit": 3,
        "min_score": 0.2,
        "filters": {"session_id": "s1", "since": "2024-03-01T10:00:00+08:00"},
        "include_superseded": True,
    }


def test_what_is_no_number_is_refused_in_words() -> None:
    """Given a limit that is none, I expect its name in the reason."""
    with pytest.raises(InvalidMessage, match="limit: must be a number"):
        options_of({"limit": "three"}, UTC)


def test_a_time_is_shown_in_the_zone_of_the_viewer() -> None:
    """Given a shared URL with a time of another zone, I expect the same moment; of what is no time, nothing."""
    assert local_minute("2024-03-01T10:00+08:00", UTC) == "2024-03-01T02:00"
    assert (local_minute("yesterday", UTC), with_zone("yesterday", UTC)) == ("", "yesterday")


# What is made of the answer


@pytest.mark.parametrize(
    ("min_score", "verdicts"),
    [
        (0.0, ["returned", "returned", "over_limit", "over_limit"]),
        (0.3, ["returned", "returned", "below_min_score", "below_min_score"]),
        (0.95, ["below_min_score"] * 4),
    ],
)
def test_another_min_score_is_judged_by_the_candidates_alone(min_score: float, verdicts: list[Verdict]) -> None:
    """Given candidates and a limit of two, I expect what each would become."""
    assert verdicts_at(FOUND, min_score, 2) == verdicts


def test_what_was_left_out_for_another_reason_stays_out() -> None:
    """Given one with the words of a better one, I expect it to take no place."""
    found = [candidate(1, 0.9), candidate(2, 0.8, "same_text"), candidate(3, 0.7)]

    assert verdicts_at(found, 0.0, 2) == ["returned", "same_text", "returned"]


def test_places_are_compared_with_those_of_the_other_setting() -> None:
    """Given a candidate that moved up by one, one that moved down, and a new one, I expect 1, -1 and none."""
    others = [candidate(2, 0.9), candidate(1, 0.8), candidate(3, 0.7)]

    assert moves([candidate(1, 0.9), candidate(2, 0.8), candidate(9, 0.7)], others) == [1, -1, None]


# Cases


class Kept(Memory):
    """A memory with this many messages of the user, the newest first, in pages of a hundred."""

    def __init__(self, number: int) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # no request leaves it
        self.messages = [message(at) for at in range(number, 0, -1)]
        self.answer = self._answer

    def _answer(self, request_type: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        if request_type == "memory_get" and data["id"] == "fact":
            evidence = {"metadata": {"evidence": ["m1", "m2"]}}
            return {"memories": [{"id": "fact", "content": "has a cat", "timestamp": 5, "kind": "fact", **evidence}]}
        if request_type == "memory_get":
            return {"memories": [one for one in self.messages if one["id"] == data["id"]]}
        first = int(data.get("cursor", 0))
        following = {"next_cursor": str(first + 100)} if first + 100 < len(self.messages) else {}
        return {"memories": self.messages[first : first + 100], **following}


def message(at: int) -> dict[str, Any]:
    return {"id": f"m{at}", "content": f"我说了 {at}", "timestamp": at, "metadata": {"session_id": "s1"}}


def case(memory: Kept, wanted: Candidate) -> dict[str, Any]:
    question = {"id": "req-1", "question": "我的猫?", "asked_at": 9.0, "options": {"limit": 3}}
    return asyncio.run(case_of(memory, "u1", {"all_agents": True}, question, wanted))


def test_a_saved_case_is_read_by_the_benchmarks(tmp_path: Path) -> None:
    """Given a case as it is saved, I expect bench.chats to read it as a user with its messages and the question."""
    path = tmp_path / "case.jsonl"
    path.write_bytes(line_of(case(Kept(3), candidate(2, 0.5))) * 2)

    [user, _] = read_users(path)

    assert [update.message_id for update in updates(user)] == ["m1", "m2", "m3"]
    assert (user["language"], user["questions"][0]["answers"], user["questions"][0]["kind"]) == ("zh", ["m2"], "case")


def test_a_case_has_the_newest_messages_and_the_answer() -> None:
    """Given more messages than a case may have, and the oldest as the answer, I expect the newest ones and it."""
    found = case(Kept(MAX_MEMORIES + 50), candidate(1, 0.5))

    assert len(found["memories"]) == MAX_MEMORIES + 1
    assert [found["memories"][place]["id"] for place in (0, 1)] == ["m1", "m51"]


def test_a_fact_is_answered_by_the_messages_that_it_was_found_in() -> None:
    """Given a fact that should have been first, I expect the messages of its evidence as answers."""
    found = case(Kept(3), Candidate(id="fact", score=0.5, verdict="returned", timestamp=5, kind="fact"))

    assert found["questions"][0]["answers"] == ["m1", "m2"]


def test_messages_in_the_same_words_answer_as_well() -> None:
    """Given an answer that was said twice, I expect both: a search returns only one of them."""
    memory = Kept(3)
    memory.messages[0]["content"] = "我说了 1 "

    assert case(memory, candidate(1, 0.5))["questions"][0]["answers"] == ["m1", "m3"]


def test_chats_are_grouped_by_language() -> None:
    """Given chats in Chinese, in English, and in both, I expect the groups of the benchmarks."""
    assert [language_of(said) for said in (["你好"], ["hi"], ["你好", "hi"], [])] == ["zh", "en", "mixed", "en"]


# The page


def test_the_page_shows_what_would_come_and_what_just_missed() -> None:
    """Given four candidates and a limit of two, I expect each with its verdict, and the slider to judge them anew."""

    async def story(app: ConsoleApp) -> None:
        app.memory.answer = lambda *_: answer(FOUND)
        await app.user.open("/console/ask?user=u1&q=cat&limit=2&since=2024-03-01T10:00%2B08:00")
        await app.user.should_see("2 of the best 4 would come, with min_score 0.09")
        await app.user.should_see("over the limit")
        [(request, user, data)] = app.memory.requests
        assert (request, user, data["limit"], data["explain"]) == ("search", "u1", 2, True)
        assert data["filters"] == {"since": "2024-03-01T10:00:00+08:00"}
        [slider] = app.user.find(ui.slider).elements
        slider.set_value(0.6)
        await app.user.should_see("1 of the best 4 would come, with min_score 0.60")
        assert len(app.memory.requests) == 1

    look(story)


@pytest.mark.parametrize("is_kept", [False, True])
def test_an_open_page_loses_the_words_of_a_user_who_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    """Given an open page while someone is forgotten elsewhere, I expect the answers to go if it is their user."""
    monkeypatch.setattr(feed, "POLL_S", 0.05)

    async def story(app: ConsoleApp) -> None:
        users = [{"user_id": "u1", "memories": 4}] if is_kept else []
        app.memory.answer = lambda kind, _: {"users": users} if kind == "user_list" else answer(FOUND)
        await app.user.open("/console/ask?user=u1&q=cat")
        await app.user.should_see("memory 1")
        await Pipeline(app.redis).forget()
        await eventually(lambda: [kind for kind, _, _ in app.memory.requests] == ["search", "user_list"])
        if is_kept:
            await app.user.should_see("memory 1")
        else:
            await app.user.should_see("Memories were deleted since", retries=100)
            await app.user.should_not_see("memory 1")
            assert [kind for kind, _, _ in app.memory.requests].count("search") == 1  # which would be recorded

    look(story)


def test_two_settings_are_asked_and_compared() -> None:
    """Given a second setting that finds another order, I expect both asked, and what moved marked in words."""

    async def story(app: ConsoleApp) -> None:
        def by_limit(_: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
            return answer(FOUND if data["limit"] == 2 else FOUND[1::-1])

        app.memory.answer = by_limit
        await app.user.open("/console/ask?user=u1&q=cat&limit=2&compare=1&b_limit=9")
        await app.user.should_see("Setting B")
        await app.user.should_see("▲ 1 better than in the other")
        await app.user.should_see("not among the best of the other")
        assert sorted(data["limit"] for _, _, data in app.memory.requests) == [2, 9]

    look(story)


def test_a_setting_that_fails_says_why_beside_the_other() -> None:
    """Given a second setting that is refused, I expect the reason in its place, and the results of the first."""

    async def story(app: ConsoleApp) -> None:
        app.memory.answer = lambda *_: answer(FOUND)
        await app.user.open("/console/ask?user=u1&q=cat&compare=1&b_limit=many")
        await app.user.should_see("limit: must be a number")
        await app.user.should_see("2 of the best 4")
        app.memory.fails(RequestTimeout("no response"))
        await app.user.open("/console/ask?user=u1&q=cat")
        await app.user.should_see("No answer came in time")

    look(story)


def test_contents_are_text_and_hidden_from_keys_that_may_not_read() -> None:
    """Given a hostile memory, I expect its text as text; without the right to read, its length, and no case to save."""

    async def story(app: ConsoleApp) -> None:
        app.memory.answer = lambda *_: answer([candidate(1, 0.9, content=HOSTILE)])
        await app.user.open("/console/ask?user=u1&q=cat")
        await app.user.should_see("<script>alert(1)</script>")
        app.keys.of = Caller("ops", frozenset({Right.SEARCH, Right.EXPORT}))
        await app.user.open("/console/ask?user=u1&q=cat")
        await app.user.should_see("characters, hidden")
        await app.user.should_not_see("<script>")
        await app.user.should_not_see("Should have been first")

    look(story)


def test_a_key_for_one_user_asks_of_no_other() -> None:
    """Given a key for u1, I expect its user in the form, and a refusal of u2 without a request."""

    async def story(app: ConsoleApp) -> None:
        app.keys.of = Caller("mine", READER, user="u1")
        await app.user.open("/console/ask")
        assert "u1" in [element.value for element in app.user.find(ui.input).elements]
        await app.user.open("/console/ask?user=u2&q=cat")
        await app.user.should_see("this key is not for this user")
        assert app.memory.requests == []

    look(story)


def test_the_form_asks_by_the_url() -> None:
    """Given a question that is typed in, I expect this page with its URL."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/ask?user=u1")
        opened: list[str] = []
        app.user.navigate.to = opened.append  # type: ignore[assignment,method-assign]
        app.user.find("Query").type("cat")
        app.user.find(ui.slider).elements.pop().set_value(0.3)
        form = app.user.find(ui.element)
        form.elements = {element for element in form.elements if element.tag == "form" and "ask" in element.classes}
        form.trigger("submit.prevent")
        assert opened == ["?user=u1&q=cat&min_score=0.3"]

    look(story)


def test_a_case_is_downloaded_and_logged() -> None:
    """Given a memory that should have been first, I expect a line of JSON, and a line in the log without contents."""

    async def story(app: ConsoleApp) -> None:
        def found(request_type: str, _: Mapping[str, Any]) -> Mapping[str, Any]:
            return answer(FOUND[1:2]) if request_type == "search" else {"memories": [message(2)]}

        app.memory.answer = found
        await app.user.open("/console/ask?user=u1&q=cat&limit=2")
        await app.user.should_see("Should have been first")
        with structlog.testing.capture_logs() as logs:
            app.user.find("Should have been first").click()
            downloaded = await app.user.download.next()
        [user] = [json.loads(line) for line in downloaded.content.splitlines()]
        [question] = user["questions"]
        assert (question["question"], question["answers"], question["options"]) == ("cat", ["m2"], {"limit": 2})
        [change] = [line for line in logs if line["event"] == "console_change"]
        assert (change["what"], change["user_id"], change["memories"]) == ("case_saved", "u1", 1)
        app.keys.of = Caller("ann", frozenset({Right.SEARCH}))  # the key has lost the right meanwhile
        app.user.find("Should have been first").click()
        await app.user.should_see("this key does not permit export")

    look(story)
