"""Our memory and chat services with the services of the upstream pipeline, as docs/upstream.md describes these."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any, TypeVar

import pytest
import redis
from keepsake_client import Client
from keepsake_client.protocol import conversation_key

from tests.integration.responder import responding
from tests.integration.service_process import serving
from tests.support import wait_until


@pytest.fixture
def valkey(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
        yield client


class Subscriber:
    """The objects published on a channel since it was made."""

    def __init__(self, client: redis.Redis, channel: str) -> None:
        self._pubsub = client.pubsub()  # type: ignore[no-untyped-call]  # redis-py left it out
        self._pubsub.subscribe(channel)
        wait_until(lambda: self._pubsub.get_message(timeout=0.1), description="the subscription")

    def next(self) -> dict[str, Any] | None:
        message = self._pubsub.get_message(timeout=0.02)
        return None if message is None else dict(json.loads(message["data"]))

    def wait(self) -> dict[str, Any]:
        message = wait_until(self.next, description="a message on the channel")
        assert message is not None
        return message


class UpstreamService(threading.Thread):
    """A service of upstream: a loop until `end`."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.client = redis.Redis.from_url(url)
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            self.run_once()

    def run_once(self) -> None:
        raise NotImplementedError

    def publish(self, channel: str, **fields: Any) -> None:
        self.client.publish(channel, json.dumps(fields, ensure_ascii=False))


class SpeechOutput(UpstreamService):
    """Upstream's tts: takes `tts_requests` from the end that they are pushed to, and publishes text and audio file."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.requests: list[dict[str, Any]] = []

    def run_once(self) -> None:
        popped: Any = self.client.blpop(["tts_requests"], timeout=0.1)
        if popped is None:
            return
        request = json.loads(popped[1])
        self.requests.append(request)
        self.publish(
            request["response_channel"],
            message_id=request["message_id"],
            task_id=request["task_id"],
            status="success",
            text=request["text"],
            audio_file="output.mp3",
        )


class UpstreamChat(UpstreamService):
    """Upstream's chat-ai: replies to a user's event only if it says `require_ai_response: true`."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._updates = Subscriber(self.client, "memory_updates")

    def run_once(self) -> None:
        event = self._updates.next()
        if event is None or not event.get("require_ai_response", False) or event["source"] != "user":
            return
        text = f"upstream heard {event['content']}"
        reply = {"text": text, "original_message_id": event["message_id"], "timestamp": time.monotonic()}
        self.publish("ai_responses", user_id=event["user_id"], **reply)
        request = {"message_id": event["message_id"], "task_id": event["task_id"], "text": text}
        channel = f"task_response:{event['task_id']}"
        self.client.lpush("tts_requests", json.dumps({**request, "response_channel": channel}))


class UpstreamMemory(UpstreamService):
    """Upstream's memory service: publishes what arrives, with ids of user and millisecond, and local times."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._replies = Subscriber(self.client, "ai_responses")

    def run_once(self) -> None:
        popped: Any = self.client.brpop(["user_input_queue"], timeout=0.1)
        if popped is not None:
            task = json.loads(popped[1])
            audio = task["type"] == "audio"
            content = f"[Audio file: {task['input_file']}]" if audio else task["content"]
            self._update(task["user_id"], "user", content, wants_reply=not audio, task_id=task["task_id"])
        if reply := self._replies.next():
            self._update(reply["user_id"], "ai", reply["text"], wants_reply=False, task_id=None)

    def _update(self, user_id: str, source: str, content: str, *, wants_reply: bool, task_id: str | None) -> None:
        self.publish(
            "memory_updates",
            event_type="memory_update",
            user_id=user_id,
            message_id=f"{user_id}_{int(time.time() * 1000)}",
            source=source,
            content=content,
            require_ai_response=wants_reply,
            timestamp=datetime.now().isoformat(),
            task_id=task_id,
        )


Service = TypeVar("Service", bound=UpstreamService)


@contextlib.contextmanager
def started(service: Service) -> Iterator[Service]:
    service.start()
    try:
        yield service
    finally:
        service.ended.set()
        service.join()
        service.client.close()


class Gateway:
    """Upstream's input and output handlers: pushes what the user sends as a task, and shows what comes for the task."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def push(self, kind: str, **fields: Any) -> tuple[str, Subscriber]:
        """The task's id and a subscription to its results."""
        task_id = str(uuid.uuid4())
        shown = Subscriber(self._client, f"task_response:{task_id}")
        task = {"task_id": task_id, "type": kind, "user_id": "anonymous", "source": "user", "timestamp": time.time()}
        meta = {"trace_id": None, "from_channel": "input_handler", "provider": "direct_upload"}
        self._client.lpush("user_input_queue", json.dumps({**task, "meta": meta, **fields}))
        return task_id, shown

    def say(self, content: str) -> tuple[str, dict[str, Any]]:
        """The task's id and what the user is shown."""
        task_id, shown = self.push("text", content=content, input_file="/tmp/input.txt")
        return task_id, shown.wait()


def test_with_our_memory_and_chat_the_user_of_upstreams_gateway_sees_the_reply(
    valkey: redis.Redis, valkey_url: str
) -> None:
    """Given upstream's gateway and speech output, I expect the reply in the task's channel and in the conversation."""
    with (
        responding(valkey_url),
        serving("services.memory", "memory", valkey_url),
        serving(
            "services.chat_ai",
            "chat-ai",
            valkey_url,
            CHAT_TTS_QUEUE="tts_requests",
            LTM_SEARCH_TIMEOUT_MS="10000",
        ),
        started(SpeechOutput(valkey_url)) as speech,
    ):
        replies = Subscriber(valkey, "ai_responses")
        task_id, shown = Gateway(valkey).say("我的宠物是什么？")
        reply = replies.wait()
        wait_until(lambda: valkey.llen(conversation_key("anonymous")) == 2, description="message and reply stored")

    assert "anonymous has a cat" in shown["text"]
    assert (reply["task_id"], reply["text"]) == (task_id, shown["text"])
    assert speech.requests == [
        {
            "message_id": reply["original_message_id"],
            "task_id": task_id,
            "text": reply["text"],
            "response_channel": f"task_response:{task_id}",
        }
    ]
    entries: Any = valkey.lrange(conversation_key("anonymous"), 0, -1)
    assert [json.loads(entry)["require_ai_response"] for entry in entries] == [True, False]


def test_with_our_memory_upstreams_chat_replies(valkey: redis.Redis, valkey_url: str) -> None:
    """Given upstream's chat, I expect its reply to a message, none to that reply, and none where none is wanted."""
    gateway = Gateway(valkey)
    with (
        serving("services.memory", "memory", valkey_url),
        started(UpstreamChat(valkey_url)),
        started(SpeechOutput(valkey_url)) as speech,
    ):
        gateway.push("text", content="the door bell rang", require_ai_response=False)
        _, shown = gateway.say("hello")
        assert shown["text"] == "upstream heard hello"
        assert gateway.say("again")[1]["text"] == "upstream heard again"
        wait_until(lambda: valkey.llen(conversation_key("anonymous")) == 5, description="both replies stored")
    assert len(speech.requests) == 2


def test_with_upstreams_memory_our_chat_replies(valkey: redis.Redis, valkey_url: str) -> None:
    """Given upstream's memory service, I expect replies to what users say, and to nothing else it publishes."""
    gateway = Gateway(valkey)
    with (
        serving("services.chat_ai", "chat-ai", valkey_url, CHAT_TTS_QUEUE="tts_requests"),
        started(UpstreamMemory(valkey_url)),
        started(SpeechOutput(valkey_url)) as speech,
    ):
        gateway.push("audio", input_file="/tmp/input.webm")
        tasks = [gateway.say(content)[0] for content in ("hello", "again")]
    assert [request["task_id"] for request in speech.requests] == tasks


def test_an_imported_history_is_not_answered(valkey: redis.Redis, valkey_url: str) -> None:
    """Given a history that wants no replies, then a message, I expect one reply; without a task, no speech."""
    with (
        serving("services.chat_ai", "chat-ai", valkey_url, CHAT_TTS_QUEUE="tts_requests"),
        Client(valkey_url, write_timeout_ms=30_000) as client,
    ):
        replies = Subscriber(valkey, "ai_responses")
        for number in range(5):
            client.remember("u1", f"line {number}", timestamp=1_500_000_000 + number, require_ai_response=False)
        last = client.remember("u1", "Hello!")
        reply = replies.wait()
    assert reply["original_message_id"] == last
    assert "task_id" not in reply
    assert valkey.llen("tts_requests") == 0
