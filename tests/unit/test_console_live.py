"""The live page, as a viewer sees it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from keepsake_client.protocol import TRACE_FIELD, TRACES_STREAM, clean
from nicegui.testing.user_interaction import UserInteraction

from services.gateway.access import ALL_RIGHTS, Caller, Right
from services.gateway.console import feed
from services.gateway.console.pages import live
from services.gateway.console.passed import KINDS, OUTCOMES
from services.gateway.console.texts import read_texts
from services.runtime.queues import QueueKeys
from tests.unit.console_app import ConsoleApp, look
from tests.unit.console_records import HOSTILE, Pipeline


def test_where_nothing_passes_it_says_so() -> None:
    """Given an empty Redis, I expect the command that makes something happen."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/")
        await app.user.should_see("Nothing has passed within the last hour")
        await app.user.should_see("ltm demo")

    look(story)


def test_it_shows_turns_first_and_all_on_demand() -> None:
    """Given a turn, I expect what was said and replied; its search by the filter, in time for its budget."""

    async def story(app: ConsoleApp) -> None:
        await Pipeline(app.redis).whole("Where is Anna?", "In Lisbon.")
        await app.user.open("/console/")
        await app.user.should_see("In Lisbon.")
        await app.user.should_not_see("context")
        await app.user.open("/console/?kind=search")
        await app.user.should_see("context")
        await app.user.should_see("120 ms of 600 ms")
        await app.user.should_see("on time")

    look(story)


def test_what_comes_later_is_shown_without_a_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an open page, I expect the words of a message that are known only then, with the next poll."""
    monkeypatch.setattr(feed, "POLL_S", 0.05)

    async def story(app: ConsoleApp) -> None:
        await Pipeline(app.redis).message("m0")
        await app.user.open("/console/")
        await app.user.should_see("m0")
        await Pipeline(app.redis).turn("reply", message_id="m0", text="Where is Anna?")
        await app.user.should_see("Where is Anna?", retries=100)

    look(story)


def test_a_pause_holds_the_rows_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a page that is paused, I expect what comes then to be counted, and shown when it goes on."""
    monkeypatch.setattr(feed, "POLL_S", 0.05)

    async def story(app: ConsoleApp) -> None:
        await Pipeline(app.redis).message("m0")
        await app.user.open("/console/")
        await app.user.should_see("m0")
        app.user.find("Pause").click()
        await Pipeline(app.redis).message("m1")
        await app.user.should_see("Go on (1 new)", retries=100)
        await app.user.should_not_see("m1")
        app.user.find("Go on").click()
        await app.user.should_see("m1", retries=30)

    look(story)


def test_a_forgotten_user_leaves_an_open_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a page that is paused while its user is forgotten, I expect what was said and replied to go."""
    monkeypatch.setattr(feed, "POLL_S", 0.05)

    async def story(app: ConsoleApp) -> None:
        await Pipeline(app.redis).whole("Where is Anna?", "In Lisbon.")
        await app.user.open("/console/")
        await app.user.should_see("In Lisbon.")
        app.user.find("Pause").click()
        await Pipeline(app.redis).forget()
        await app.user.should_not_see("In Lisbon.", retries=100)
        await app.user.should_not_see("Where is Anna?")

    look(story)


def test_the_words_of_a_deleted_memory_leave_an_open_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an open page, and a memory that is deleted, I expect the turn without what was said and replied."""
    monkeypatch.setattr(feed, "POLL_S", 0.05)
    monkeypatch.setattr(feed, "RENEW_S", 0.05)

    async def story(app: ConsoleApp) -> None:
        await Pipeline(app.redis).whole("Where is Anna?", "In Lisbon.")
        await app.user.open("/console/")
        await app.user.should_see("In Lisbon.")
        await Pipeline(app.redis).delete()
        await app.user.should_not_see("In Lisbon.", retries=100)
        await app.user.should_not_see("Where is Anna?")
        await app.user.should_see("m1")

    look(story)


def test_rows_wait_for_the_time_zone_of_the_browser() -> None:
    """Given rows that are read already, I expect none in a page whose browser has not yet connected."""

    async def story(app: ConsoleApp) -> None:
        await Pipeline(app.redis).message("m-known")
        await app.user.open("/console/")
        await app.user.should_see("m-known")
        assert "m-known" not in (await app.http.get("/console/")).text

    look(story)


def test_the_rate_names_the_time_that_it_is_of() -> None:
    """Given records of the last seconds, I expect seconds; with one of half an hour ago, minutes."""

    async def seconds(app: ConsoleApp) -> None:
        await Pipeline(app.redis).message()
        await app.user.open("/console/")
        await app.user.should_see(" s, ")

    async def minutes(app: ConsoleApp) -> None:
        await app.redis.xadd(TRACES_STREAM, {TRACE_FIELD: "{}"}, id=f"{time.time() - 1_800:.0f}000-0")
        await app.user.open("/console/")
        await app.user.should_see("in the last 30 min")

    look(seconds)
    look(minutes)


def test_dead_letters_do_not_wait() -> None:
    """Given a dead letter, I expect it named, and not counted among what waits in the workers' queues."""

    async def story(app: ConsoleApp) -> None:
        keys = QueueKeys("index")
        await app.redis.zadd(keys.dead_ids, {"letter": time.time() * 1000})
        await app.redis.hset(keys.dead_messages, "letter", "{}")
        await app.user.open("/console/")
        await app.user.should_see("1 failed for good")
        await app.user.should_see("0 in the workers' queues")

    look(story)


def test_an_outage_of_redis_is_said_and_outlived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an open page while Redis goes away, I expect it to say so, and to go on when Redis is back."""
    monkeypatch.setattr(feed, "POLL_S", 0.05)

    async def story(app: ConsoleApp) -> None:
        await Pipeline(app.redis).message("m0")
        await app.user.open("/console/")
        await app.user.should_see("m0")
        app.server.connected = False
        await app.user.should_see("does not answer", retries=100)
        await app.user.should_see("m0")
        app.server.connected = True
        await Pipeline(app.redis).message("m1")
        await app.user.should_see("m1", retries=100)
        await app.user.should_not_see("does not answer")

    look(story)


def test_a_filter_of_outcomes_finds_the_late_one() -> None:
    """Given a search in time and a late one, I expect the late one alone; of none, that none matches."""

    async def story(app: ConsoleApp) -> None:
        await Pipeline(app.redis).search("in-time")
        await Pipeline(app.redis).search("too-late", deadline_ms=100)
        await app.user.open("/console/?outcome=late")
        await app.user.should_see("late by 20 ms")
        await app.user.should_not_see("in-time")
        await app.user.open("/console/?outcome=expired")
        await app.user.should_see("Nothing of the last hour matches")

    look(story)


def test_what_is_chosen_and_typed_is_not_set_back() -> None:
    """Given an outcome that is chosen, I expect the page, which a browser draws anew with each change, to have it too.

    A text field has the text that it begins with alone: what is typed is the browser's.
    """

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/?user=an")
        elements = list(app.user.client.elements.values()) if app.user.client else []
        [_, outcome] = [element for element in elements if element.tag == "select"]
        UserInteraction(app.user, {outcome}, None).trigger("change", "late")
        assert outcome.props["value"] == "late"
        [user] = [element.props for element in elements if element.tag == "input"]
        assert (user["defaultValue"], user.get("value")) == ("an", None)

    look(story)


def test_a_key_sees_its_own_users_alone() -> None:
    """Given a key of one user, I expect that user's turn, and nothing of another's."""

    async def story(app: ConsoleApp) -> None:
        await Pipeline(app.redis).whole("Where is Anna?")
        await Pipeline(app.redis, "bert").whole("Where is Bert?")
        app.keys.of = Caller("k", ALL_RIGHTS, user="anna")
        await app.user.open("/console/")
        await app.user.should_see("Where is Anna?")
        await app.user.should_not_see("bert")
        await app.user.should_not_see("Where is Bert?")

    look(story)


def test_contents_are_hidden_from_a_key_without_the_right_to_read() -> None:
    """Given a key that may only trace, I expect the turn by its id, without what was said."""

    async def story(app: ConsoleApp) -> None:
        await Pipeline(app.redis).whole("Where is Anna?", "In Lisbon.")
        app.keys.of = Caller("operator", frozenset({Right.TRACE, Right.METRICS}))
        await app.user.open("/console/")
        await app.user.should_see("m1")
        await app.user.should_not_see("Where is Anna?")
        await app.user.should_not_see("In Lisbon.")

    look(story)


def test_a_key_that_is_revoked_gets_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a page whose key loses the right, I expect it to end with the reason."""
    monkeypatch.setattr(live, "CHECK_EVERY", 1)
    monkeypatch.setattr(feed, "POLL_S", 0.05)

    async def story(app: ConsoleApp) -> None:
        await Pipeline(app.redis).message("m0")
        await app.user.open("/console/")
        await app.user.should_see("m0")
        app.keys.of = Caller("k", frozenset())
        await app.user.should_see("does not permit", retries=100)

    look(story)


def test_hostile_words_are_text() -> None:
    """Given words and user ids of every kind, I expect them as JSON that a browser reads, cut, and never as HTML."""

    async def story(app: ConsoleApp) -> None:
        for words in HOSTILE:
            await Pipeline(app.redis, user=words[:100]).whole(words, words)
        await app.user.open("/console/")
        for words in HOSTILE:
            await app.user.should_see(str(clean(words))[:100])
        html = (await app.http.get("/console/")).text
        assert not [words for words in HOSTILE if "<" in words and words in html]
        assert "x" * 1_000 not in html

    look(story)


def test_ids_that_turn_text_around_are_shown_with_their_escapes() -> None:
    """Given a user, messages and outcomes with controls and overrides in their names, I expect their escapes."""

    async def story(app: ConsoleApp) -> None:
        pipeline = Pipeline(app.redis, "ann\u202egnp.exe")
        await pipeline.message("m\u2066\x1b[31m")
        await pipeline.message("m2", outcome="odd\u202e")
        await app.user.open("/console/?kind=message")
        for shown in (r"ann\u202egnp.exe", r"m\u2066\u001b[31m", r"odd\u202e"):
            await app.user.should_see(shown)

    look(story)


def test_every_row_has_its_words_in_both_languages() -> None:
    """Given the kinds, outcomes and stages that rows may have, I expect a text for each."""
    texts: dict[str, Any] = read_texts("live")
    stages = ("queue", "embed", "database", "rank", "publish", "wait", "index", "search", "reply")
    needed = [
        *(f"outcome_{name}" for name in (*OUTCOMES, "ok_message", "ok_reply", "ok_change", "late_by", "failed_as")),
        *(f"kinds_{name}" for name in KINDS),
        *(f"stage_{name}" for name in stages),
    ]
    assert {name: {"en", "zh"} for name in needed} == {name: set(texts.get(name, ())) for name in needed}
