"""The live feed: what passes, read once for all viewers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import fakeredis
import pytest
from redis.exceptions import ConnectionError as RedisDown

from services.gateway.app import Gateway
from services.gateway.console import feed as feed_module
from services.gateway.console.feed import MAX_WORDS, LiveFeed
from services.gateway.console.passed import Passed
from services.gateway.visibility import Visibility
from services.runtime.settings import load_settings
from tests.served_gateway import OneCaller
from tests.support import eventually
from tests.unit.console_records import Pipeline
from tests.unit.gateway_app import Memory

ALL = Visibility(sees_all=True)


def run(story: Callable[[LiveFeed, Pipeline, fakeredis.FakeServer], Awaitable[None]]) -> None:
    """Run what a test does with a feed over fakeredis."""

    async def played() -> None:
        server = fakeredis.FakeServer()
        redis: Any = fakeredis.FakeAsyncRedis(server=server)
        try:
            await story(LiveFeed(Gateway(load_settings(), Memory(redis), redis, OneCaller())), Pipeline(redis), server)
        finally:
            await redis.aclose()

    asyncio.run(played())


def kinds(rows: list[Passed]) -> list[str]:
    return [row.kind for row in rows]


def test_the_last_hour_is_read_at_first_and_then_what_is_new() -> None:
    """Given a message before the first poll and a search after it, I expect each once, and both kept newest first."""

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        await pipeline.message()
        assert kinds(await feed.poll()) == ["message"]
        assert await feed.poll() == []
        await pipeline.search()
        assert kinds(await feed.poll()) == ["search"]
        assert kinds(list(feed.newest())) == ["search", "message"]

    run(story)


def test_more_than_a_page_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given pages of two records, I expect five before the first poll and five after it, all in order."""
    monkeypatch.setattr(feed_module, "PAGE", 2)
    monkeypatch.setattr(feed_module, "_PAGES", (("ltm:trace", 2), ("ltm:turns", 2)))

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        for number in range(5):
            await pipeline.message(f"m{number}")
        assert [row.message_id for row in await feed.poll()] == ["m0", "m1", "m2", "m3", "m4"]
        for number in range(5, 10):
            await pipeline.message(f"m{number}")
        assert [row.message_id for row in await feed.poll()] == ["m5", "m6", "m7", "m8", "m9"]

    run(story)


def test_rows_have_the_words_of_their_turn_records() -> None:
    """Given the records of a turn, I expect the query, the text, and the reply at the rows that they belong to."""

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        await pipeline.whole("Where is Anna?", "In Lisbon.")
        rows = await feed.poll()
        assert [(row.kind, row.words, row.reply, row.by_ai) for row in rows] == [
            ("message", "Where is Anna?", None, False),
            ("search", "Where is Anna?", None, False),
            ("reply", "Where is Anna?", "In Lisbon.", False),
            ("message", "In Lisbon.", None, True),
        ]

    run(story)


def test_a_turn_record_that_comes_later_completes_its_row() -> None:
    """Given a search whose turn record comes after it, I expect the row again, with its query."""

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        entry_id = await pipeline.search()
        await feed.poll()
        await pipeline.turn("search", request_id="r1", query="x" * 30_000)
        [row] = await feed.poll()
        assert row.entry_id == entry_id
        assert row.words == "x" * MAX_WORDS + "…"

    run(story)


def test_a_turn_shows_the_budget_and_the_outcome_of_its_search() -> None:
    """Given a reply whose search was late, I expect the turn to be late, of the budget of the search."""

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        await pipeline.search(deadline_ms=100)
        await pipeline.reply()
        row = (await feed.poll())[-1]
        assert (row.kind, row.outcome, row.deadline_ms) == ("reply", "late", 100)

    run(story)


def test_words_of_another_user_are_never_shown() -> None:
    """Given two users whose messages have one id, I expect each to have its own words."""

    async def story(feed: LiveFeed, pipeline: Pipeline, server: fakeredis.FakeServer) -> None:
        other = Pipeline(fakeredis.FakeAsyncRedis(server=server), "bert")
        await pipeline.turn("reply", message_id="m1", text="of anna")
        await other.turn("reply", message_id="m1", text="of bert")
        await pipeline.message()
        await other.message()
        assert [row.words for row in await feed.poll()] == ["of anna", "of bert"]

    run(story)


def test_a_forgotten_user_has_no_words_any_more() -> None:
    """Given a user who is forgotten after a turn, I expect no row to have that turn's words."""

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        await pipeline.whole()
        await feed.poll()
        await pipeline.forget()
        await feed.poll()
        assert [row.type for row in feed.newest()] == ["user_forget"]
        await pipeline.message("m9")
        assert [row.user for row in await feed.poll()] == ["anna"]

    run(story)


def test_words_go_with_a_deleted_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a user of whom a memory is deleted after a turn, I expect the rows to stay without its words, however many
    deletions follow; and until it is time to read everything again, each poll to read what is new alone."""

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        await pipeline.whole()
        await feed.poll()
        for _number in range(3):
            await pipeline.delete()
            assert [row.type for row in await feed.poll()] == ["memory_delete"]
        assert feed.loads == 1
        monkeypatch.setattr(feed_module, "RENEW_S", 0)
        await feed.poll()
        assert feed.loads == 2
        assert {(row.words, row.reply) for row in feed.newest()} == {(None, None)}
        assert len(list(feed.newest())) == 4 + 3
        assert await feed.poll() == []

    run(story)


def test_records_of_later_versions_are_left_out() -> None:
    """Given a record that cannot be read, I expect the others."""

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        await pipeline.trace("a kind of tomorrow", {})
        await pipeline.turn("search", request_id={"not": "an id"})
        await pipeline.message()
        assert kinds(await feed.poll()) == ["message"]

    run(story)


def test_an_hour_of_records_of_later_versions_is_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given as many records as are read, none of which can be, I expect no row and no fault."""
    monkeypatch.setattr(feed_module, "MAX_PASSED", 1)

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        await pipeline.trace("a kind of tomorrow", {})
        assert await feed.poll() == []

    run(story)


def test_a_first_reading_that_is_broken_off_leaves_no_row_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Redis that goes away before the last hour is read to its end, I expect each row once when it is back."""

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        async def gone(_: bool) -> float:
            raise RedisDown

        await pipeline.message()
        with monkeypatch.context() as broken:
            broken.setattr(feed, "_known_since", gone)
            with pytest.raises(RedisDown):
                await feed.poll()
        assert kinds(await feed.poll()) == ["message"]

    run(story)


def test_figures_are_of_what_the_caller_sees() -> None:
    """Given searches of two users, I expect the figures of a key of one to count its own alone."""

    async def story(feed: LiveFeed, pipeline: Pipeline, server: fakeredis.FakeServer) -> None:
        await pipeline.search()
        await Pipeline(fakeredis.FakeAsyncRedis(server=server), "bert").search()
        await feed.poll()
        assert feed.figures(ALL).searches.number == 2
        own = feed.figures(Visibility(user="anna")).searches
        assert (own.number, round(own.p50 or 0)) == (1, 120)

    run(story)


def test_watchers_are_told_through_an_outage_of_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Redis that goes away and comes back, I expect viewers to be told of the failure, then of what is new."""
    monkeypatch.setattr(feed_module, "POLL_S", 0.01)

    async def story(feed: LiveFeed, pipeline: Pipeline, server: fakeredis.FakeServer) -> None:
        seen: list[Passed] = []
        stop = feed.watch(seen.extend)
        await eventually(lambda: feed.is_loaded, description="the first poll")
        server.connected = False
        await eventually(lambda: isinstance(feed.failure, RedisDown), description="the failure")
        server.connected = True
        await pipeline.message()
        await eventually(lambda: kinds(seen) == ["message"] and feed.failure is None, description="the message")
        stop()

    run(story)


def test_nothing_is_read_without_a_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a feed whose last viewer has gone, I expect what it had read to be dropped, and its task to end."""
    monkeypatch.setattr(feed_module, "POLL_S", 0.01)
    monkeypatch.setattr(feed_module, "IDLE_S", 0.02)

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        await pipeline.message()
        stop = feed.watch(lambda _: None)
        await eventually(lambda: feed.is_loaded, description="the first poll")
        stop()
        await eventually(lambda: not feed.is_loaded, description="the end of the feed")
        assert list(feed.newest()) == []

    run(story)


def test_a_viewer_that_comes_at_the_end_of_the_idle_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a viewer that comes after the last look at the idle time, which is over, I expect the feed to go on."""
    monkeypatch.setattr(feed_module, "IDLE_S", 0.0)

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        seen: list[Passed] = []
        await pipeline.message()
        feed.watch(seen.extend)
        await eventually(lambda: kinds(seen) == ["message"], 5, "the message")
        await feed.close()

    run(story)


def test_a_viewer_that_fails_leaves_the_others_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a viewer whose page raises, I expect another viewer to be told all the same."""
    monkeypatch.setattr(feed_module, "POLL_S", 0.01)

    async def story(feed: LiveFeed, pipeline: Pipeline, _: fakeredis.FakeServer) -> None:
        seen: list[Passed] = []

        def fail(_: list[Passed]) -> None:
            raise RuntimeError

        feed.watch(fail)
        stop = feed.watch(seen.extend)
        await eventually(lambda: feed.is_loaded, description="the first poll")
        await pipeline.message()
        await eventually(lambda: kinds(seen) == ["message"], description="the message")
        stop()

    run(story)


def test_a_feed_ends_though_a_poll_swallows_the_first_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a page that looks and a poll that goes on when it is cancelled, as redis-py's may, I expect the end."""

    async def story(feed: LiveFeed, _: Pipeline, __: fakeredis.FakeServer) -> None:
        polling = asyncio.Event()

        async def poll() -> list[Passed]:
            polling.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                monkeypatch.undo()
            return []

        monkeypatch.setattr(feed, "poll", poll)
        feed.watch(lambda _: None)
        await polling.wait()
        await asyncio.wait_for(feed.close(), 30)
        assert len(asyncio.all_tasks()) == 1

    run(story)
