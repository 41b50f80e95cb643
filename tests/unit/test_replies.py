"""Replies: built in, or from a provider that may fail."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from keepsake_client.protocol import Memory, MemoryUpdateMessage
from openai import AsyncOpenAI

from services.chat_ai.prompt import Prompt
from services.chat_ai.replies import REPLY_CHARS, OpenAIReplier, QuotingReplier, is_chinese


def said(content: str) -> MemoryUpdateMessage:
    return MemoryUpdateMessage(user_id="u1", content=content, source="user")


def prompt(*memories: tuple[str, str]) -> Prompt:
    found = [
        Memory.model_validate({"id": str(number), "content": content, "source": source, "timestamp": 1_712_345_678})
        for number, (source, content) in enumerate(memories)
    ]
    return Prompt(messages=[{"role": "user", "content": "hello"}], memories=found)


def built_in(question: str, *memories: tuple[str, str]) -> str:
    return asyncio.run(QuotingReplier().reply(said(question), prompt(*memories)))


def test_an_english_question_is_answered_with_quotes() -> None:
    """Given a memory, I expect it word for word, with who said it and when."""
    reply = built_in("What is my cat called?", ("user", "My cat is called Miso."))
    assert reply == 'Here is what I remember:\n- 2024-04-05 19:34 UTC, you said: "My cat is called Miso."'


def test_a_chinese_question_is_answered_in_chinese() -> None:
    """Given a question in Chinese, I expect the same in Chinese, quotes in whatever language they were."""
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
    """Given nothing found, I expect it to say that in the user's language."""
    assert built_in(question) == answer


def test_the_users_own_words_come_before_its_own() -> None:
    """Given memories of both, I expect the user's quoted; given only its own, I expect those."""
    assert "parrot" not in built_in("Who?", ("ai", "parrot"), ("user", "fact"))
    assert 'I said: "parrot"' in built_in("Who?", ("ai", "parrot"))


def test_a_reply_does_not_grow_without_end() -> None:
    """Given a hundred long memories, I expect a reply of a bounded length."""
    assert len(built_in("Who?", *[("user", "long " * 1_000)] * 100)) < REPLY_CHARS + 100


@pytest.mark.parametrize(
    ("text", "chinese"),
    [("你好", True), ("hello 你好", True), ("hello", False), ("東京タワー", False), ("안녕", False)],
)
def test_the_language_of_a_message(text: str, chinese: bool) -> None:
    """Given a text, I expect Chinese where it has Han characters and no kana."""
    assert is_chinese(text) is chinese


class Provider:
    """An OpenAI-compatible endpoint that answers each request as told."""

    def __init__(self, status: int = 200, body: Any = None, hangs: bool = False) -> None:
        self.status = status
        self.body = body
        self.hangs = hangs
        self.requests: list[dict[str, Any]] = []

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(json.loads(request.content))
        if self.hangs:
            await asyncio.Event().wait()
        return httpx2.Response(self.status, json=self.body, headers={"retry-after-ms": "1"})

    def ask(self, seconds: float = 10) -> str:
        async def conversation() -> str:
            transport = httpx2.AsyncClient(transport=httpx2.MockTransport(self.answer))
            async with AsyncOpenAI(
                base_url="http://chat/v1", api_key="none", max_retries=1, http_client=transport
            ) as client:
                replier = OpenAIReplier(client, "a-model", fallback=QuotingReplier(), seconds=seconds)
                return await replier.reply(said("Who?"), prompt(("user", "fact")))

        return asyncio.run(conversation())


def completion(text: str | None) -> dict[str, Any]:
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "a-model",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
    }


def test_a_provider_is_sent_the_prompt_and_its_answer_is_the_reply() -> None:
    """Given an endpoint that answers, I expect its words, for our model and messages."""
    provider = Provider(body=completion("It is Miso."))
    assert provider.ask() == "It is Miso."
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
    ],
    ids=["bad key", "blank", "null", "no choices", "nonsense"],
)
def test_a_provider_that_fails_is_replaced_by_the_built_in(provider: Provider) -> None:
    """Given an endpoint that gives no usable answer, I expect the built-in reply."""
    assert '"fact"' in provider.ask()


def test_a_provider_in_trouble_is_asked_once_more() -> None:
    """Given an endpoint that answers 503, I expect a second try and then the built-in reply."""
    provider = Provider(status=503, body={})
    assert '"fact"' in provider.ask()
    assert len(provider.requests) == 2


def test_a_provider_that_hangs_is_given_up() -> None:
    """Given an endpoint that never answers, I expect the built-in reply after the time limit."""
    provider = Provider(hangs=True)
    assert '"fact"' in provider.ask(seconds=0.2)
