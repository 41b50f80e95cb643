"""The memory of the proxy: turns that wait for Redis, what a stop leaves, and the ids that turns get."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import structlog
from fakeredis import FakeAsyncRedis, FakeRedis, FakeServer
from keepsake_client import AsyncClient
from keepsake_client.errors import InvalidMessage, KeepsakeError, Unavailable
from keepsake_client.protocol import COUNTERS
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM, TurnRecord

from services.gateway.proxy.chat_memory import MAX_PENDING, PUBLISH_FOR_S, ChatMemory, Turn
from services.gateway.proxy.chat_request import ChatMessage
from services.runtime.counters import PendingCounts
from services.runtime.id_matcher import decoded
from services.runtime.turns import NO_TURNS, Turns
from tests.support import SkippingLoop, eventually

SAID_AT = 1_712_345_678.0
HELLO = (ChatMessage("user", "Hello"),)


def turn(
    *said: ChatMessage, user: str = "u", session: str | None = None, agent: str | None = None, at: float = 0
) -> Turn:
    return Turn(user, said or HELLO, session, agent, SAID_AT + at)


class Publisher:
    """A client that publishes as it is told: at once, after failures, or never."""

    def __init__(self, *failures: KeepsakeError, hangs: bool = False) -> None:
        self._failures = [*failures]
        self._hangs = hangs
        self.published: list[tuple[str, str, str]] = []
        self.tries = 0

    async def remember(self, user_id: str, content: str, *, source: str, message_id: str, **_: Any) -> str:
        self.tries += 1
        if self._hangs:
            await asyncio.Event().wait()
        if self._failures:
            raise self._failures.pop(0)
        await asyncio.sleep(0.1)
        self.published.append((source, content, message_id))
        return message_id


class Counts(PendingCounts):
    """The counts, of which none is written."""

    def __init__(self) -> None:
        super().__init__(COUNTERS)
        self.counted: Counter[str] = Counter()

    def count(self, name: str, number: int = 1) -> None:
        self.counted[name] += number

    @property
    def not_remembered(self) -> int:
        return self.counted["proxy_not_remembered"]


def run(
    publisher: Publisher,
    work: Callable[[ChatMemory, Counts], Awaitable[None]],
    turns: Turns = NO_TURNS,
    server: FakeServer | None = None,
) -> None:
    """Work with a memory, on a loop that skips every wait."""
    ltm: AsyncClient = publisher  # type: ignore[assignment]  # as far as it is used
    counts = Counts()

    async def inside() -> None:
        redis = FakeAsyncRedis(server=server or FakeServer())
        await work(ChatMemory(ltm, counts, 600, 5, 1_000, redis, turns), counts)

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(inside())


def test_a_stop_waits_for_what_is_being_published() -> None:
    """Given turns that are being published, I expect a stop to wait for them."""
    publisher = Publisher()

    async def work(memory: ChatMemory, counts: Counts) -> None:
        memory.remember(turn(), "Good morning")
        assert publisher.published == []
        await memory.drain()
        assert counts.not_remembered == 0

    run(publisher, work)

    assert [published[:2] for published in publisher.published] == [("user", "Hello"), ("ai", "Good morning")]


def test_a_stop_does_not_wait_for_long() -> None:
    """Given a Redis that takes nothing, I expect the stop to come about, and the turns to be counted."""

    async def work(memory: ChatMemory, counts: Counts) -> None:
        memory.remember(turn(), "Good morning")
        await memory.drain()
        assert counts.not_remembered == 2

    run(Publisher(hangs=True), work)


@pytest.mark.parametrize("answer", ["<think>hm</think>Good morning", ""], ids=["an answer", "a call of a tool"])
def test_a_reply_is_recorded(answer: str) -> None:
    """Given an answer, I expect its prompt and text in one turn record, with the ids of what is published."""
    publisher, server = Publisher(), FakeServer()
    asked = replace(turn(), prompt=(ChatMessage("system", "Be kind"), *HELLO), model="a-model")

    async def work(memory: ChatMemory, counts: Counts) -> None:
        memory.remember(asked, answer)
        await memory.drain()

    run(publisher, work, Turns(100, contents=True), server)

    client: Any = FakeRedis(server=server)
    [(_, fields)] = client.xrange(TURNS_STREAM)
    record = TurnRecord.model_validate(decoded(fields[TURN_FIELD.encode()]))
    ids = [message_id for _, _, message_id in publisher.published]
    assert [record.message_id, *([record.reply_message_id] if answer else [])] == ids
    assert (record.request_id, record.text, record.model) == (asked.request_id, "Hello", "a-model")
    assert record.reply == ("Good morning" if answer else "")
    assert [(message.role, message.content) for message in record.prompt or ()] == [*asked.prompt]


def test_a_record_that_redis_does_not_take_is_counted() -> None:
    """Given a Redis that is away for the record, I expect both turns published all the same, and the record counted."""
    publisher, server = Publisher(), FakeServer()
    server.connected = False

    async def work(memory: ChatMemory, counts: Counts) -> None:
        memory.remember(turn(), "Good morning")
        await memory.drain()
        assert counts.counted == {"turns_not_recorded": 1}

    run(publisher, work, Turns(100), server)

    assert len(publisher.published) == 2


def test_a_turn_waits_for_redis() -> None:
    """Given a Redis that is back after some tries, I expect each turn to be published once, in order."""
    publisher = Publisher(Unavailable("down"), Unavailable("down"))

    async def work(memory: ChatMemory, counts: Counts) -> None:
        memory.remember(turn(), "Good morning")
        await eventually(lambda: len(publisher.published) == 2)
        assert counts.not_remembered == 0

    run(publisher, work)

    assert [published[0] for published in publisher.published] == ["user", "ai"]


@pytest.mark.parametrize("failures", [[Unavailable("down")] * 1_000, [InvalidMessage("user_id: too long")]])
def test_a_turn_that_cannot_be_published_is_counted(failures: list[KeepsakeError]) -> None:
    """Given a Redis that stays away, or a turn that the contract does not allow, I expect both turns to be counted."""
    publisher = Publisher(*failures)

    async def work(memory: ChatMemory, counts: Counts) -> None:
        memory.remember(turn(), "Good morning")
        await eventually(lambda: counts.not_remembered)
        assert counts.not_remembered == 2
        assert asyncio.get_running_loop().time() <= PUBLISH_FOR_S
        assert asyncio.all_tasks() == {asyncio.current_task()}  # nothing is tried again

    run(publisher, work)

    assert publisher.published == []


def test_turns_that_wait_are_bounded() -> None:
    """Given more turns than may wait for Redis, I expect those that are over to be counted at once."""

    async def work(memory: ChatMemory, counts: Counts) -> None:
        for _ in range(MAX_PENDING + 3):
            memory.remember(turn(), "Good morning")
        assert counts.not_remembered == 2 * 3

    run(Publisher(hangs=True), work)


def test_turns_that_are_published_make_room() -> None:
    """Given as many turns as may wait, and as many again once those are published, I expect all to be remembered."""
    publisher = Publisher()

    async def work(memory: ChatMemory, counts: Counts) -> None:
        for _ in range(2):
            for _ in range(MAX_PENDING):
                memory.remember(turn(), "")
            await memory.drain()
        assert counts.not_remembered == 0

    run(publisher, work)

    assert len(publisher.published) == 2 * MAX_PENDING


def test_the_remedy_for_requests_of_no_user_is_logged_once() -> None:
    """Given requests that name no user, I expect each to be counted, and one line in the log for all."""

    async def work(memory: ChatMemory, counts: Counts) -> None:
        memory.without_user()
        memory.without_user()
        assert counts.counted["proxy_without_user"] == 2

    with structlog.testing.capture_logs() as logged:
        run(Publisher(), work)

    assert [line["event"] for line in logged] == ["proxy_without_user"]


def test_what_is_no_answer_is_not_remembered() -> None:
    """Given an answer of reasoning alone, and one that is too long, I expect the user's turns alone."""
    publisher = Publisher()

    async def work(memory: ChatMemory, counts: Counts) -> None:
        memory.remember(turn(), "<think>hm</think>\n")
        memory.remember(turn(), "word " * 1_000)
        await memory.drain()
        assert counts.not_remembered == 1

    run(publisher, work)

    assert [published[:2] for published in publisher.published] == [("user", "Hello")] * 2


def test_the_id_of_a_turn() -> None:
    """Given a request that is sent again, I expect the same id; given any other turn, I expect another one."""
    asked = (ChatMessage("user", "Hi"), ChatMessage("assistant", "Hello"), ChatMessage("user", "Hello"))
    others = [
        turn(),
        turn(user="v"),
        turn(session="s"),
        turn(agent="s"),
        turn(at=86_400),
        turn(*asked),
        turn(asked[0], ChatMessage("assistant", "Hm"), asked[2]),
    ]

    assert turn(at=60).message_id == turn().message_id
    assert turn(*asked).message_id == turn(*asked).message_id
    assert len({other.message_id for other in others}) == len(others)
