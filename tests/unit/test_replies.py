"""Repliers: the built-in one, and that of a provider that may fail."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import fakeredis
import httpx2
import pytest
from keepsake_client.protocol import COUNTERS, Memory, MemoryUpdateMessage, Speaker
from openai import AsyncOpenAI

from services.chat_ai.openai_replier import OpenAIReplier
from services.chat_ai.prompt import Prompt
from services.chat_ai.replies import MAX_REPLY_CHARS, QuotingReplier, is_chinese


def message(content: str) -> MemoryUpdateMessage:
    return MemoryUpdateMessage(user_id="u1", content=content, source="user")


def prompt(*memories: tuple[str, str]) -> Prompt:
    found = [
        Memory.model_validate({"id": str(number), "content": content, "source": source, "timestamp": 1_712_345_678})
        for number, (source, content) in enumerate(memories)
    ]
    return Prompt(messages=[{"role": "user", "content": "hello"}], memories=found)


def built_in(question: str, *memories: tuple[str, str], zone: tzinfo = UTC) -> str:
    return asyncio.run(QuotingReplier(zone).reply(message(question), prompt(*memories))).text


def test_an_english_question_is_answered_with_quotes() -> None:
    """Given a memory, I expect it verbatim, with speaker and time."""
    reply = built_in("What is my cat called?", ("user", "My cat is called Miso."))
    assert reply == 'Here is what I remember:\n- 2024-04-05 19:34 UTC, you said: "My cat is called Miso."'


@pytest.mark.parametrize(
    ("said", "asks", "who"),
    [
        (None, None, "you"),
        (None, Speaker(name="Ben"), "you"),
        (Speaker(name="Ben"), None, "Ben"),
        (Speaker(name="Ben"), Speaker(name="Ben"), "you"),
        (Speaker(id="1", name="Ben"), Speaker(id="1", name="Benny"), "you"),
        (Speaker(id="1", name="Ben"), Speaker(id="2", name="Ben"), "Ben"),
        (Speaker(id="1", name="Ben"), Speaker(name="Anna"), "Ben"),
        (Speaker(id="1"), Speaker(id="2", name="Anna"), "you"),
    ],
)
def test_in_a_room_it_is_said_who_said_it(said: Speaker | None, asks: Speaker | None, who: str) -> None:
    """Given a memory of a speaker, I expect the name in the quote, unless the same person asks."""
    memory = Memory(id="1", content="My cat is Miso.", timestamp=1_712_345_678, speaker=said)
    asked = message("What is the cat called?").model_copy(update={"speaker": asks})

    reply = asyncio.run(QuotingReplier(UTC).reply(asked, Prompt(messages=[], memories=[memory]))).text

    assert f", {who} said: " in reply


@pytest.mark.parametrize(
    ("question", "line"),
    [
        ("Where do I live?", "- 2024-04-05 19:34 UTC: The user lives in Lisbon."),
        ("我住在哪里？", "- 2024-04-05 19:34 UTC：The user lives in Lisbon."),
    ],
)
def test_a_fact_is_not_quoted_as_what_was_said(question: str, line: str) -> None:
    """Given a fact, I expect it with its date, and not as the user's words."""
    fact = Memory(id="1", content="The user lives in Lisbon.", timestamp=1_712_345_678, kind="fact")

    reply = asyncio.run(QuotingReplier(UTC).reply(message(question), Prompt(messages=[], memories=[fact]))).text

    assert reply.splitlines()[1:] == [line]


def test_the_dates_of_quotes_are_in_the_zone() -> None:
    """Given another zone, I expect the date of the user's day."""
    reply = built_in("What is my cat called?", ("user", "My cat is called Miso."), zone=ZoneInfo("Asia/Shanghai"))
    assert "- 2024-04-06 03:34 UTC+08:00, you said" in reply


def test_a_chinese_question_is_answered_in_chinese() -> None:
    """Given a question in Chinese, I expect a reply in Chinese, and each quote in its own language."""
    reply = built_in("我的猫叫什么？", ("user", "我的猫叫米索。"), ("user", "Miso is three."))
    assert reply.startswith("我记得：\n- 2024-04-05 19:34 UTC，你说过：“我的猫叫米索。”")
    assert "Miso is three." in reply


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Where do I live?", "I do not remember anything about that yet."),
        ("我住在哪里？", "关于这件事，我还没有任何记忆。"),
    ],
)
def test_without_memories_it_says_so(question: str, answer: str) -> None:
    """Given no memories, I expect a reply that says so in the language of the question."""
    assert built_in(question) == answer


def test_memories_of_the_user_are_preferred_to_those_of_the_ai() -> None:
    """Given memories of both, I expect the user's alone; given only the AI's, I expect those."""
    assert "parrot" not in built_in("Who?", ("ai", "parrot"), ("user", "fact"))
    assert 'I said: "parrot"' in built_in("Who?", ("ai", "parrot"))


def scored(*scores: float) -> Prompt:
    """A prompt with a memory of each score, which is its content."""
    found = [
        Memory(id=str(score), content=f"fact {score}", score=score, source="user", timestamp=1_712_345_678)
        for score in scores
    ]
    return Prompt(messages=[{"role": "user", "content": "hello"}], memories=found)


@pytest.mark.parametrize(
    ("scores", "quoted"),
    [
        ((0.84, 0.73, 0.71, 0.52), [0.84, 0.73]),  # half the odds of 0.84 are those of 0.724
        ((0.2, 0.16), [0.2, 0.16]),
        ((0.16, 0.14), [0.16]),
        ((0.14,), []),
    ],
)
def test_memories_far_behind_the_best_are_not_quoted(scores: tuple[float, ...], quoted: list[float]) -> None:
    """Given scores, I expect quotes of what has 0.15 and half the odds of the best, and no others."""
    reply = asyncio.run(QuotingReplier(UTC).reply(message("Who?"), scored(*scores))).text

    assert [score for score in scores if f"fact {score}" in reply] == quoted


def test_the_length_of_a_reply_is_bounded() -> None:
    """Given a hundred long memories, I expect a reply of a bounded length."""
    assert len(built_in("Who?", *[("user", "long " * 1_000)] * 100)) < MAX_REPLY_CHARS + 100


@pytest.mark.parametrize(
    ("text", "chinese"),
    [("你好", True), ("hello 你好", True), ("hello", False), ("東京タワー", False), ("안녕", False)],
)
def test_the_language_of_a_message(text: str, chinese: bool) -> None:
    """Given a text, I expect Chinese where it has Han characters and no kana."""
    assert is_chinese(text) is chinese


class Provider:
    """An OpenAI-compatible endpoint that gives each request the same response."""

    def __init__(self, status: int = 200, body: Any = None, hangs: bool = False) -> None:
        self.status = status
        self.body = body
        self.hangs = hangs
        self.requests: list[dict[str, Any]] = []
        self.failures = 0

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(json.loads(request.content))
        if self.hangs:
            await asyncio.Event().wait()
        return httpx2.Response(self.status, json=self.body, headers={"retry-after-ms": "1"})

    def ask(self, timeout_s: float = 60) -> str:
        async def conversation() -> str:
            transport = httpx2.AsyncClient(transport=httpx2.MockTransport(self.answer))
            async with AsyncOpenAI(
                base_url="http://chat/v1", api_key="none", max_retries=1, http_client=transport
            ) as client:
                redis = fakeredis.FakeAsyncRedis()
                replier = OpenAIReplier(client, "a-model", QuotingReplier(UTC), redis, timeout_s=timeout_s)
                reply = await replier.reply(message("Who?"), prompt(("user", "fact")))
                self.failures = int(await redis.hget(COUNTERS, "chat_model_failed") or 0)
                return reply.text

        return asyncio.run(conversation())


def completion(text: Any) -> dict[str, Any]:
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "a-model",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
    }


def test_the_reply_is_the_providers_response_to_the_prompt() -> None:
    """Given an endpoint that responds, I expect its text, and in its request the model and the messages."""
    provider = Provider(body=completion("It is Miso."))
    assert (provider.ask(), provider.failures) == ("It is Miso.", 0)
    [request] = provider.requests
    assert request["model"] == "a-model"
    assert request["messages"] == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "provider",
    [
        Provider(status=401, body={"error": {"message": "bad key"}}),
        Provider(status=200, body=completion("  ")),
        Provider(status=200, body=completion(None)),
        Provider(status=200, body={**completion("x"), "choices": []}),
        Provider(status=200, body="not a completion"),
        Provider(status=200, body=completion("<think>They ask who.</think>")),
        Provider(status=200, body=completion("<think>They ask who, and max_tokens")),
    ],
    ids=["bad key", "blank", "null", "no choices", "malformed", "reasoning alone", "reasoning cut"],
)
def test_a_failed_provider_falls_back_to_the_built_in_reply(provider: Provider) -> None:
    """Given an endpoint without a usable response, I expect the built-in reply, and the failure counted."""
    assert '"fact"' in provider.ask()
    assert provider.failures == 1


def test_the_reasoning_of_a_model_is_not_part_of_the_reply() -> None:
    """Given an answer after its reasoning, I expect the answer alone."""
    provider = Provider(body=completion("<think>\nThe user asks about a fact.\n</think>\n\nIt is Miso."))
    assert (provider.ask(), provider.failures) == ("It is Miso.", 0)


def test_the_reasoning_may_be_a_part_of_its_own() -> None:
    """Given an answer in parts, as Mistral's models give it, I expect the text alone."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Who?"}]}
    provider = Provider(
        body=completion([thinking, {"type": "text", "text": "It is "}, {"type": "text", "text": "Miso."}])
    )
    assert (provider.ask(), provider.failures) == ("It is Miso.", 0)


def test_a_provider_error_is_retried_once() -> None:
    """Given an endpoint that responds 503, I expect a second attempt and then the built-in reply."""
    provider = Provider(status=503, body={})
    assert '"fact"' in provider.ask()
    assert len(provider.requests) == 2


def test_a_provider_that_hangs_is_abandoned_at_the_timeout() -> None:
    """Given an endpoint that never responds, I expect the built-in reply after the timeout."""
    provider = Provider(hangs=True)
    assert '"fact"' in provider.ask(timeout_s=0.2)
