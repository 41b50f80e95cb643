"""The page of queues: what waits, what failed, extraction and counters."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
import structlog
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import COUNTERS, REQUESTS_QUEUE
from nicegui import ui

from services.gateway.access import ALL_RIGHTS, Caller, Right
from services.gateway.console.pages import queues
from services.runtime.dead_letters import DeadLetter
from services.runtime.extraction_figures import EXTRACTION_KEY, ExtractionFigures, SetAsideMessage
from services.runtime.queues import QueueKeys
from services.runtime.rejected import Reject
from tests.management_api import management_api, queue
from tests.support import free_port
from tests.unit.console_app import ConsoleApp, look

HOSTILE = "<script>alert(1)</script> \u202egnp\ud800 " + "x" * 30_000
VIEWER = frozenset({Right.SEARCH, Right.TRACE, Right.METRICS})


def letter(number: int = 1, content: str = "My cat is Mochi") -> DeadLetter:
    options = {"retries": 3, "error": "unavailable: PostgreSQL does not answer", "traceback": f"Trace of {content}"}
    message = {"actor_name": "memory.index", "args": [], "kwargs": {"update": content}, "options": options}
    return DeadLetter(f"letter-{number}", "index", time.time() - number, json.dumps(message).encode(), message)


class Failed:
    """FailedMessages whose dead letters and rejects the test sets."""

    def __init__(self, *letters: DeadLetter) -> None:
        self.letters = list(letters)
        self.found: list[Reject] = []
        self.error: Exception | None = None
        self.done: list[str] = []

    def __call__(self, _: Any) -> Failed:
        return self

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        if self.error:
            raise self.error
        return self.letters[:limit]

    async def rejects(self, limit: int) -> list[Reject]:
        return self.found[:limit]

    async def replay(self, letter_id: str) -> bool:
        return self._take("replay", letter_id)

    async def drop(self, letter_id: str) -> bool:
        return self._take("drop", letter_id)

    async def replay_all(self, queue: str) -> int:
        self.done.append(f"replay all of {queue}")
        number, self.letters = len(self.letters), []
        return number

    def _take(self, what: str, letter_id: str) -> bool:
        found = [one for one in self.letters if one.id == letter_id]
        self.letters = [one for one in self.letters if one.id != letter_id]
        self.done += [f"{what} {letter_id}"] if found else []
        return bool(found)


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch) -> Failed:
    failed = Failed()
    monkeypatch.setattr(queues, "FailedMessages", failed)
    return failed


async def opened(app: ConsoleApp) -> None:
    await app.user.open("/console/queues")
    await app.user.should_see("Extraction of facts")


def shown(app: ConsoleApp, kind: type[ui.element] = ui.element) -> list[str]:
    """The texts on the page."""
    with app.user:
        return [text for element in app.user.find(kind).elements if (text := getattr(element, "text", ""))]


def test_each_list_and_queue_has_its_depth_in_figures_and_words(failed: Failed) -> None:
    """Given two requests and three index messages that wait, I expect both as figures and as the words of a chart."""

    async def story(app: ConsoleApp) -> None:
        await app.redis.lpush(REQUESTS_QUEUE, "a", "b")
        await app.redis.rpush(QueueKeys("index").ids, "1", "2", "3")
        await app.user.open("/console/queues")
        charts = {e.props.get("aria-label") for e in app.user.find(ui.element).elements if e.tag == "svg"}
        assert {
            "Requests over the last hour: now 2, at most 2",
            "index over the last hour: now 3, at most 3",
            "Backlog over the last hour: now 0, at most 0",
        } <= charts

    look(story)


def test_where_nothing_failed_the_page_says_so(failed: Failed) -> None:
    """Given a stack at rest, I expect words in the place of each list."""

    async def story(app: ConsoleApp) -> None:
        await opened(app)
        for words in ("No message has failed", "Every message was understood", "No extractor", "Nothing was counted"):
            await app.user.should_see(words)

    look(story)


def test_a_dead_letter_is_shown_with_its_error_and_contents_only_where_they_may_be_seen(failed: Failed) -> None:
    """Given a hostile dead letter, I expect its text as text; without the right to read, its error and length alone."""
    failed.letters = [letter(content=HOSTILE)]

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/queues")
        await app.user.should_see("unavailable: PostgreSQL does not answer")
        await app.user.should_see("<script>alert(1)</script>")
        app.keys.of = Caller("ops", VIEWER)
        await app.user.open("/console/queues")
        await app.user.should_see("unavailable: PostgreSQL does not answer")
        await app.user.should_see("characters, hidden")
        await app.user.should_not_see("<script>")

    look(story)


def test_replay_and_drop_need_the_right_and_are_logged_with_the_name_of_the_key(failed: Failed) -> None:
    """Given an operator, I expect a replay to be done and logged; given a key without the right, no button."""
    failed.letters = [letter()]

    async def story(app: ConsoleApp) -> None:
        app.keys.of = Caller("ann", VIEWER | {Right.OPERATE})
        await app.user.open("/console/queues")
        await app.user.should_see("Replay")
        with structlog.testing.capture_logs() as logs:
            app.user.find("Replay").click()
            await app.user.should_see("No message has failed")
        changes = [line for line in logs if line["event"] == "console_change"]
        assert [(line["what"], line["key"], line["letter_id"]) for line in changes] == [
            ("dead_letter_replayed", "ann", "letter-1")
        ]
        assert failed.done == ["replay letter-1"]
        failed.letters = [letter()]
        app.keys.of = Caller("bob", VIEWER)
        await app.user.open("/console/queues")
        await app.user.should_see("memory.index")
        await app.user.should_not_see("Replay")

    look(story)


def test_a_replay_that_redis_does_not_answer_is_logged(failed: Failed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Redis that goes away in the midst, I expect the log to name who asked, as it may be done all the same."""
    failed.letters = [letter()]

    async def lost(letter_id: str) -> bool:
        raise redis.ConnectionError(letter_id)

    async def story(app: ConsoleApp) -> None:
        monkeypatch.setattr(failed, "replay", lost)
        await app.user.open("/console/queues")
        await app.user.should_see("Replay")
        with structlog.testing.capture_logs() as logs:
            app.user.find("Replay").click()
            await app.user.should_see("Redis, or the memory")
        assert [line["outcome"] for line in logs if line["event"] == "console_change"] == ["unavailable"]

    look(story)


def test_a_right_that_was_taken_away_stops_a_replay(failed: Failed) -> None:
    """Given a page that was opened with the right to operate, and a key that lost it, I expect nothing to be done."""
    failed.letters = [letter()]

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/queues")
        await app.user.should_see("Replay")
        app.keys.of = Caller("ann", VIEWER)
        app.user.find("Replay").click()
        await app.user.should_see("this key does not permit operate")
        assert failed.done == []

    look(story)


def test_a_dead_letter_is_dropped_once_that_is_confirmed(failed: Failed) -> None:
    """Given a dead letter, I expect a question that says what is lost, and the drop after the answer."""
    failed.letters = [letter()]

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/queues")
        await app.user.should_see("Drop")
        app.user.find(kind=ui.button, content="Drop").click()
        await app.user.should_see("What it was to do will not be done")
        assert failed.done == []
        with app.user.scope(ui.dialog):
            app.user.find(kind=ui.button, content="Drop").click()
        await app.user.should_see("No message has failed")
        assert failed.done == ["drop letter-1"]

    look(story)


def test_of_many_dead_letters_the_newest_are_listed_and_all_can_be_replayed(failed: Failed) -> None:
    """Given 10,000 dead letters, I expect fifty, the command for the others, and one button that replays all."""
    failed.letters = [letter(number) for number in range(50)]

    async def story(app: ConsoleApp) -> None:
        await app.redis.zadd(QueueKeys("index").dead_ids, {str(number): number for number in range(10_000)})
        await app.user.open("/console/queues")
        await app.user.should_see("The newest 50 of 10,000")
        await app.user.should_see("Replay all 10,000 of index")

    look(story)


def test_the_queues_of_rabbitmq_have_rows_as_those_of_redis(failed: Failed) -> None:
    """Given queues on RabbitMQ, I expect their depths from its management API, and the dead letters as ever."""
    failed.letters = [letter()]

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/queues")
        await app.user.should_see("4,711")
        await app.user.should_see("letter-1")

    with management_api() as api:
        api.queues = [queue("index", messages_ready=4_711)]
        look(story, broker_url="amqp://unused", rabbitmq_management_url=api.url)


def test_without_the_management_api_the_page_says_how_to_have_it(failed: Failed) -> None:
    """Given queues on a RabbitMQ without its management API, I expect the remedy and no password."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/queues")
        await app.user.should_see("rabbitmq-plugins enable rabbitmq_management")
        assert not any("geheim" in text for text in shown(app))

    look(story, broker_url=f"amqp://user:geheim@127.0.0.1:{free_port()}")


def test_while_redis_is_down_the_page_says_so(failed: Failed) -> None:
    """Given a Redis that does not answer, I expect words, and no figure taken for zero."""
    failed.error = Unavailable("Redis does not answer")

    async def story(app: ConsoleApp) -> None:
        app.server.connected = False
        await app.user.open("/console/queues")
        await app.user.should_see("does not answer")
        app.server.connected = True

    look(story)


def test_what_was_not_understood_is_shown_with_the_reason(failed: Failed) -> None:
    """Given a hostile reject, I expect its reason and its text as text."""
    failed.found = [Reject(id="1-0", at="memory_updates", reason="invalid_json", message=HOSTILE, rejected_at=1.0)]

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/queues")
        await app.user.should_see("invalid_json")
        await app.user.should_see("<script>alert(1)</script>")

    look(story)


def test_extraction_is_shown_against_its_bounds_with_what_was_set_aside(failed: Failed) -> None:
    """Given figures of an extractor that is over budget, I expect what waits, the share that was spent, and reasons."""
    aside = SetAsideMessage(user="u1", memory_id="m1", said_at=1.0, reason="no usable answer")
    figures = ExtractionFigures(
        at=datetime.now(UTC), state="over budget", messages=1_200, users=7, tokens=90, tokens_per_day=100,
        set_aside=1, newest_set_aside=[aside],
    )  # fmt: skip

    async def story(app: ConsoleApp) -> None:
        await app.redis.set(EXTRACTION_KEY, figures.model_dump_json())
        await app.user.open("/console/queues")
        for words in ("over budget", "1,200 messages of 7 users", "no usable answer"):
            await app.user.should_see(words)
        bars = [e.props["title"] for e in app.user.find(ui.element).elements if "bar" in e.classes]
        assert bars == ["90% of the bound of a day"]

    look(story)


@pytest.mark.parametrize("may_read", [True, False])
def test_what_was_set_aside_leads_to_the_memory_where_it_may_be_read(failed: Failed, may_read: bool) -> None:
    """Given a message that was set aside, I expect a link to that memory, and none for a key that may not read it."""
    aside = SetAsideMessage(user="u1", memory_id="m1", said_at=1.0, reason="no usable answer")
    figures = ExtractionFigures(at=datetime.now(UTC), state="working", set_aside=1, newest_set_aside=[aside])

    async def story(app: ConsoleApp) -> None:
        await app.redis.set(EXTRACTION_KEY, figures.model_dump_json())
        app.keys.of = Caller("k", VIEWER | {Right.READ} if may_read else VIEWER)
        await app.user.open("/console/queues")
        await app.user.should_see("m1")
        links = [element.props.get("href") for element in app.user.find(ui.element).elements]
        assert ("/console/people?user=u1&memory=m1" in links) is may_read

    look(story)


def test_a_key_for_one_user_sees_no_failed_message_of_others(failed: Failed) -> None:
    """Given a key for one user, I expect depths, and no dead letters, rejects or users of what was set aside."""
    failed.letters = [letter()]
    aside = SetAsideMessage(user="another", memory_id="m1", said_at=1.0, reason="no usable answer")
    figures = ExtractionFigures(at=datetime.now(UTC), state="working", set_aside=1, newest_set_aside=[aside])

    async def story(app: ConsoleApp) -> None:
        await app.redis.set(EXTRACTION_KEY, figures.model_dump_json())
        app.keys.of = Caller("mine", ALL_RIGHTS, user="u1")
        await app.user.open("/console/queues")
        await app.user.should_see("keys that are for all users")
        await app.user.should_see("1 messages that no usable answer")
        for words in ("memory.index", "Every message was understood", "another"):
            await app.user.should_not_see(words)

    look(story)


def test_counters_of_losses_come_first_with_what_they_mean(failed: Failed) -> None:
    """Given a loss and a count of no consequence, I expect both explained, and the other one apart."""

    async def story(app: ConsoleApp) -> None:
        await app.redis.hset(COUNTERS, mapping={"updates_lost": 3, "facts_stored": 1_000, "index_upkeep_failed": 1})
        await app.user.open("/console/queues")
        await app.user.should_see("had no room to wait")
        await app.user.should_see("passes of the upkeep of indexes that failed")
        await app.user.should_see("1 other counters")
        await app.user.should_see("facts that were found and stored")

    look(story)
