"""An add of Mem0's as events: what is published, and what is answered while they are not indexed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from keepsake_client import AsyncClient
from keepsake_client.errors import InvalidMessage, MessageTooLarge, Unavailable
from keepsake_client.protocol import UPDATES_STREAM, LTMResponse, Memory, RequestType

from services.gateway.access import ALL_RIGHTS, Caller, NotPermitted
from services.gateway.app import Gateway, OpenDoor
from services.gateway.mem0_api.adding import Adder
from services.gateway.mem0_api.bodies import AddBody
from services.gateway.mem0_api.ids import EventId
from services.runtime.settings import Settings

ANYONE = Caller("any", ALL_RIGHTS)


class Stack(AsyncClient):
    """A client of the wire whose other side has indexed, at each list, one event more than at the one before.

    Args:
        stuck: whether it answers nothing.
    """

    def __init__(self, redis: FakeAsyncRedis, *, stuck: bool = False) -> None:
        super().__init__(redis)
        self._stack = redis
        self._stuck = stuck
        self.lists: list[dict[str, Any]] = []

    async def events(self) -> list[dict[str, Any]]:
        """The events of the stream, oldest first."""
        entries: Any = await self._stack.xrange(UPDATES_STREAM)
        return [json.loads(fields[b"event"]) for _, fields in entries]

    async def request(
        self,
        request_type: RequestType,
        user_id: str,
        data: Mapping[str, Any],
        *,
        deadline_ms: int | None = None,
        request_id: str | None = None,
    ) -> LTMResponse:
        assert request_type == "memory_list"
        self.lists.append(dict(data))
        if self._stuck:
            raise Unavailable("nothing answers")
        memories = [
            Memory(
                id=f"5d1c0000-0000-8000-8000-{number:012}",
                content=event["content"],
                timestamp=event["timestamp"],
                user_id=event["user_id"],
                metadata={**event["meta"], "message_id": event["message_id"]},
            )
            for number, event in enumerate((await self.events())[: len(self.lists)])
        ]
        return LTMResponse(request_id="r", user_id=user_id, success=True, memories=memories[::-1])


def adding(body: dict[str, Any], caller: Caller = ANYONE, **options: Any) -> tuple[dict[str, Any], Stack, Any]:
    """The answer to an add, the stack, and the events that were published."""

    async def add() -> tuple[dict[str, Any], Stack, Any]:
        async with FakeAsyncRedis() as redis:
            stack = Stack(redis, stuck=options.pop("stuck", False))
            adder = Adder(Gateway(Settings(ltm_max_content_chars=100), stack, redis, OpenDoor()), **options)
            answer = await adder.add(caller, AddBody.model_validate(body))
            return answer, stack, await stack.events()

    return asyncio.run(add())


CONVERSATION = {
    "messages": [{"role": "user", "content": "I like tea"}, {"role": "assistant", "content": "So do I"}],
    "user_id": "u1",
    "agent_id": "luna",
    "app_id": "shop",
    "run_id": "s1",
    "metadata": {"topic": "tea"},
    "timestamp": 1_712_318_400,
}


def test_messages_are_published_in_their_order() -> None:
    """Given a conversation, I expect an event for each message, dated one after the other, which asks for no reply."""
    answer, _, (first, second) = adding(CONVERSATION)

    assert [(event["source"], event["content"]) for event in (first, second)] == [
        ("user", "I like tea"),
        ("ai", "So do I"),
    ]
    assert [event["timestamp"] for event in (first, second)] == [1_712_318_400, 1_712_318_400.001]
    assert (first["user_id"], first["agent_id"], first["require_ai_response"]) == ("u1", "luna", False)
    assert first["meta"] == {"topic": "tea", "app_id": "shop", "session_id": "s1"}
    assert answer["status"] == "SUCCEEDED"


def test_an_add_waits_until_all_its_messages_are_indexed() -> None:
    """Given messages that are indexed one after the other, I expect the answer to have the memories of both."""
    answer, stack, _ = adding(CONVERSATION)

    assert len(stack.lists) == 2
    assert [(each["memory"], each["event"]) for each in answer["results"]] == [
        ("I like tea", "ADD"),
        ("So do I", "ADD"),
    ]
    between = stack.lists[0]["filters"]
    assert between["since"] < 1_712_318_400
    assert between["until"] > 1_712_318_400.001


@pytest.mark.parametrize("options", [{"wait_s": 0}, {"max_waiting": 0}, {"stuck": True}])
def test_what_is_not_seen_in_time_is_pending(options: dict[str, Any]) -> None:
    """Given no time, too many that wait, or lists that fail, I expect what is published to be pending, and no error."""
    answer, _, events = adding(CONVERSATION, **options)

    assert (answer["status"], answer["results"], len(events)) == ("PENDING", [], 2)
    event = EventId.read(answer["event_id"], ANYONE)
    assert event.message_ids == tuple(each["message_id"] for each in events)


def test_adds_that_have_their_answers_wait_no_more() -> None:
    """Given one add after the other where one at a time may wait, I expect each to wait until it is indexed."""

    async def add() -> list[str]:
        async with FakeAsyncRedis() as redis:
            adder = Adder(Gateway(Settings(), Stack(redis), redis, OpenDoor()), max_waiting=1)
            body = AddBody(messages="I like tea", user_id="u1")
            return [(await adder.add(ANYONE, body))["status"] for _ in range(2)]

    assert asyncio.run(add()) == ["SUCCEEDED", "SUCCEEDED"]


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "x" * 101}], MessageTooLarge),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "\0"}], InvalidMessage),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "x", "name": "n" * 201}], InvalidMessage),
    ],
)
def test_nothing_is_published_of_an_add_that_cannot_be_indexed_whole(messages: Any, error: type[Exception]) -> None:
    """Given a message that the adapters would reject, I expect an error before the first one is published."""

    async def add() -> None:
        async with FakeAsyncRedis() as redis:
            stack = Stack(redis)
            adder = Adder(Gateway(Settings(ltm_max_content_chars=100), stack, redis, OpenDoor()))
            with pytest.raises(error, match=r"messages\.1"):
                await adder.add(ANYONE, AddBody(messages=messages, user_id="u1"))
            assert await stack.events() == []

    asyncio.run(add())


def test_the_user_is_named_or_the_key_s() -> None:
    """Given a key that is bound to a user, I expect that user's memory; given neither, the question for one."""
    _, _, (event,) = adding({"messages": "I like tea"}, Caller("bound", ALL_RIGHTS, user="u1", agent="luna"))

    assert (event["user_id"], event["agent_id"]) == ("u1", "luna")
    with pytest.raises(InvalidMessage, match="whose memories"):
        adding({"messages": "I like tea", "agent_id": "luna"})
    with pytest.raises(NotPermitted):
        adding({"messages": "I like tea", "user_id": "u2"}, Caller("bound", ALL_RIGHTS, user="u1"))
