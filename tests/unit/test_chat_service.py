"""The chat service on a fake Redis: what it reads of a conversation before it replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC
from typing import Any

import fakeredis
import pytest
from keepsake_client import AsyncClient
from keepsake_client.errors import RequestFailed
from keepsake_client.protocol import (
    ContextParts,
    LTMResponse,
    Memory,
    MemoryUpdateMessage,
    RequestType,
    conversation_key,
)
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM, TurnRecord
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from services.chat_ai.asking import SEARCHES_FOR_S
from services.chat_ai.prompt import Prompt
from services.chat_ai.replies import QuotingReplier, Replier, Reply
from services.chat_ai.service import ChatService
from services.runtime.id_matcher import decoded
from services.runtime.turns import NO_TURNS, Turns


class NotingReplier:
    """A replier that notes the prompts it gets."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []

    async def reply(self, message: MemoryUpdateMessage, prompt: Prompt) -> Reply:
        self.prompts.append(prompt)
        return Reply("yes", "a-model")


def chat_service(
    redis: Redis, replier: Replier, ltm: AsyncClient | None = None, turns: Turns = NO_TURNS
) -> ChatService:
    """The chat service, by default without a long-term memory."""
    return ChatService(
        redis,
        ltm or AsyncClient(redis, enabled=False),
        replier,
        updates_channel="memory_updates",
        ai_channel="ai_responses",
        tts_queue=None,
        memory_limit=5,
        history_messages=5,
        prompt_max_chars=5_000,
        max_content_chars=1_000,
        zone=UTC,
        turns=turns,
    )


def test_an_earlier_message_with_the_same_id_is_part_of_the_conversation() -> None:
    """Given a publisher that gives two messages one id, I expect the first in the prompt of the reply to the second."""

    async def story() -> None:
        redis: Redis = fakeredis.FakeAsyncRedis()
        first, second = (
            MemoryUpdateMessage(
                user_id="u", content=content, source="user", timestamp=1.0, message_id="u_1795913599901"
            )
            for content in ("我喜欢蓝色", "我哥哥叫志强")
        )
        for message in (first, second):
            await redis.rpush(conversation_key("u"), json.dumps(message.model_dump()))
        replier = NotingReplier()
        service = chat_service(redis, replier)

        await service.answer(second)

        [prompt] = replier.prompts
        assert [shown["content"] for shown in prompt.messages[1:]] == [first.content, second.content]
        await redis.aclose()

    asyncio.run(story())


def test_a_characters_reply_knows_no_other_characters_conversation() -> None:
    """Given messages to two characters, I expect of them its own and the shared ones, and its id in the reply."""

    async def story() -> None:
        redis: Redis = fakeredis.FakeAsyncRedis()
        for number, agent_id in enumerate(["luna", "sol", None, "luna"]):
            said = MemoryUpdateMessage(
                user_id="u", content=f"to {agent_id} {number}", source="user", timestamp=1.0, agent_id=agent_id
            )
            await redis.rpush(conversation_key("u"), said.to_wire())
        replier = NotingReplier()
        async with redis.pubsub() as heard:
            await heard.subscribe("ai_responses")
            await heard.get_message(timeout=60)
            for agent_id in ("luna", None):
                await chat_service(redis, replier).answer(
                    MemoryUpdateMessage(user_id="u", content="hello", source="user", agent_id=agent_id)
                )
            replies = [json.loads((await heard.get_message(timeout=60) or {})["data"]) for _ in range(2)]

        shown = [[one["content"] for one in prompt.messages[1:]] for prompt in replier.prompts]
        assert shown == [["to luna 0", "to None 2", "to luna 3", "hello"], ["to None 2", "hello"]]
        assert [reply.get("agent_id") for reply in replies] == ["luna", None]
        await redis.aclose()

    asyncio.run(story())


class Asked(AsyncClient):
    """A long-term memory that notes what it is asked for, and knows the types that it is given.

    Args:
        known: types of requests.
    """

    def __init__(self, redis: Redis, *known: str) -> None:
        super().__init__(redis)
        self._known = known
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def request(self, request_type: RequestType, user_id: str, data: Any, **_: Any) -> LTMResponse:
        self.asked.append((request_type, data))
        if request_type not in self._known:
            raise RequestFailed(f"unknown_type: type is {request_type}; it must be one of {self._known}")
        memory = Memory(id="m1", content="My cat is Miso", timestamp=1.0, score=0.9)
        response = LTMResponse(request_id="r1", user_id=user_id, success=True, memories=[memory])
        parts = ContextParts(profile={"name": "Anna"})
        return response.model_copy(update={"context_parts": parts}) if request_type == "context" else response


def test_a_context_is_asked_for_as_who_asks_and_for_the_character() -> None:
    """Given a message of a speaker to a character, I expect both in the request; without them, neither."""

    async def story() -> None:
        redis: Redis = fakeredis.FakeAsyncRedis()
        ltm, replier = Asked(redis, "context"), NotingReplier()
        service = chat_service(redis, replier, ltm)
        for fields in ({"agent_id": "luna", "speaker": {"name": "Anna"}, "meta": {"session_id": "s1"}}, {}):
            event = {"user_id": "room", "content": "hello", "source": "user", **fields}
            await service.answer(MemoryUpdateMessage.model_validate(event))
        await redis.aclose()

        query = {"query": "hello", "limit": 5, "max_chars": 5_000}
        first = {**query, "session_id": "s1", "agent_id": "luna", "speaker": {"name": "Anna"}}
        assert ltm.asked == [("context", first), ("context", query)]
        assert '{"name": "Anna"}' in replier.prompts[0].messages[0]["content"]

    asyncio.run(story())


def test_a_reply_is_recorded_with_its_prompt() -> None:
    """Given a reply, I expect what was said, the prompt and the reply in one turn record, with the ids of all three."""

    async def story() -> None:
        redis: Redis = fakeredis.FakeAsyncRedis()
        replier = NotingReplier()
        service = chat_service(redis, replier, Asked(redis, "context"), Turns(100, contents=True))
        said = {"user_id": "u", "content": "猫?", "source": "user", "message_id": "m1", "task_id": "t1"}
        await service.answer(MemoryUpdateMessage.model_validate(said))

        [record] = await _recorded(redis)
        await redis.aclose()
        [prompt] = replier.prompts
        assert (record.kind, record.user, record.text, record.reply) == ("reply", "u", "猫?", "yes")
        assert (record.message_id, record.task_id, record.model, record.remember) == ("m1", "t1", "a-model", True)
        assert [message.model_dump() for message in record.prompt or ()] == prompt.messages
        assert (record.request_id or "").startswith("req-")

    asyncio.run(story())


def test_where_contexts_are_unknown_searches_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given adapters of an earlier release, I expect a search in place of the context, from then on searches alone, and
    after a while a context again."""
    now = [100.0]
    monkeypatch.setattr("services.chat_ai.asking.time.monotonic", lambda: now[0])

    async def story() -> None:
        redis: Redis = fakeredis.FakeAsyncRedis()
        ltm, replier = Asked(redis, "search"), NotingReplier()
        service = chat_service(redis, replier, ltm)
        for _ in range(3):
            await service.answer(MemoryUpdateMessage(user_id="u", content="hello", source="user"))
        now[0] += SEARCHES_FOR_S
        await service.answer(MemoryUpdateMessage(user_id="u", content="hello", source="user"))
        await redis.aclose()

        kinds = [kind for kind, _ in ltm.asked]
        assert kinds == ["context", "search", "search", "search", "context", "search"]
        assert ltm.asked[1][1] == {"query": "hello", "limit": 5}
        assert [[memory.content for memory in prompt.memories] for prompt in replier.prompts] == [
            ["My cat is Miso"]
        ] * 4

    asyncio.run(story())


@pytest.mark.parametrize(
    ("content", "replier", "meta"),
    [
        ("What is my cat called?", QuotingReplier(UTC), {"remember": False}),
        ("我的猫叫什么名字？", QuotingReplier(UTC), {"remember": False}),
        ("What is my cat called?", NotingReplier(), None),
    ],
)
def test_what_is_said_without_a_memory_is_not_to_be_remembered(
    content: str, replier: Replier, meta: dict[str, bool] | None
) -> None:
    """Given no memory, I expect the built-in reply and its record marked, in both its languages, and another's not."""

    async def story() -> None:
        redis: Redis = fakeredis.FakeAsyncRedis()
        subscription = redis.pubsub()
        await subscription.subscribe("ai_responses")
        message = MemoryUpdateMessage(user_id="u", content=content, source="user", timestamp=1.0, message_id="m1")

        await chat_service(redis, replier, turns=Turns(100)).answer(message)

        replies = [message async for message in _published(subscription)]
        assert [reply.get("meta") for reply in replies] == [meta]
        [record] = await _recorded(redis)
        assert record.remember is (meta is None)
        await subscription.aclose()  # type: ignore[no-untyped-call]  # redis-py left it out
        await redis.aclose()

    asyncio.run(story())


async def _recorded(redis: Any) -> list[TurnRecord]:
    entries = await redis.xrange(TURNS_STREAM)
    return [TurnRecord.model_validate(decoded(fields[TURN_FIELD.encode()])) for _, fields in entries]


async def _published(subscription: PubSub) -> AsyncIterator[dict[str, Any]]:
    while (message := await subscription.get_message(timeout=1)) is not None:
        if message["type"] == "message":
            yield json.loads(message["data"])
            return
