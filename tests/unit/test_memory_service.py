"""The memory service, one message at a time, on a fake Redis; its loops are tested on a real one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import fakeredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keepsake_client.protocol import (
    COUNTERS,
    REJECTED_STREAM,
    STREAM_EVENT_FIELD,
    UPDATES_STREAM,
    Speaker,
    conversation_key,
    parse_update,
)
from keepsake_client.tolerance import DEFAULTS, MessageDefaults
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from services.memory.conversations import Conversations, Destination
from services.memory.service import MemoryService
from services.runtime.process import LoopConnection

PROCESSING = "user_input_queue:processing"


class Rig:
    """A memory service, its Redis, and what it published."""

    def __init__(
        self,
        *,
        max_messages: int = 200,
        publishes: bool = True,
        max_content_chars: int = 100,
        defaults: MessageDefaults = DEFAULTS,
        redis: Redis | None = None,
    ) -> None:
        self.redis: Redis = redis or fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
        self.service = MemoryService(
            self.redis,
            Conversations(
                self.redis,
                max_messages=max_messages,
                ttl_hours=24,
                destination=Destination("memory_updates", UPDATES_STREAM, 1_000) if publishes else None,
            ),
            input_queue="user_input_queue",
            ai_channel="ai_responses",
            max_content_chars=max_content_chars,
            defaults=defaults,
        )

    async def say(self, raw: bytes | None = None, **fields: Any) -> None:
        """Have the service process one message that BLMOVE has just moved to the processing list."""
        raw = json.dumps(fields).encode() if raw is None else raw
        await self.redis.lpush(PROCESSING, raw)
        await self.service.process_user_input(raw)

    async def reply(self, **fields: Any) -> None:
        await self.service.process_ai_response(json.dumps(fields).encode(), uuid4().hex)

    async def conversation(self, user_id: str = "u1") -> list[dict[str, Any]]:
        return [json.loads(entry) for entry in await self.redis.lrange(conversation_key(user_id), 0, -1)]

    async def logged(self) -> list[dict[str, Any]]:
        entries: Any = await self.redis.xrange(UPDATES_STREAM)
        return [json.loads(fields[STREAM_EVENT_FIELD.encode()]) for _, fields in entries]

    async def rejected(self) -> list[dict[bytes, bytes]]:
        entries: Any = await self.redis.xrange(REJECTED_STREAM)
        return [fields for _, fields in entries]


def on_rig(story: Callable[[Rig], Awaitable[None]], **options: Any) -> None:
    async def tell() -> None:
        rig = Rig(**options)
        try:
            await story(rig)
        finally:
            await rig.redis.aclose()

    asyncio.run(tell())


def test_a_stored_message_is_published_in_the_contracts_form() -> None:
    """Given a user's message, I expect the stored entry on memory_updates, in the form of the contract."""

    async def story(rig: Rig) -> None:
        async with rig.redis.pubsub() as pubsub:
            await pubsub.subscribe("memory_updates")
            await pubsub.get_message(timeout=60)
            await rig.say(
                task_id="t1", type="text", user_id="u1", content="hello", source="mic", meta={"session_id": "s1"}
            )
            published = await pubsub.get_message(timeout=60)

        [entry] = await rig.conversation()
        assert published is not None
        assert json.loads(published["data"]) == entry
        update = parse_update(published["data"], 100)
        assert (update.user_id, update.content, update.source, update.task_id) == ("u1", "hello", "user", "t1")
        assert update.meta == {"session_id": "s1", "origin": "mic"}
        assert rig.service.counts == {"stored": 1, "published": 1}

    on_rig(story)


@pytest.mark.parametrize(
    ("sent", "passed_on"), [({}, True), ({"require_ai_response": True}, True), ({"require_ai_response": False}, False)]
)
def test_whether_a_reply_is_wanted_is_passed_on(sent: dict[str, Any], passed_on: bool) -> None:
    """Given a message with true, false or nothing, I expect it wherever the message goes; true for nothing."""

    async def story(rig: Rig) -> None:
        async with rig.redis.pubsub() as pubsub:
            await pubsub.subscribe("memory_updates")
            await pubsub.get_message(timeout=1)
            await rig.say(user_id="u1", content="hello", meta={"require_ai_response": "mine"}, **sent)
            published = await pubsub.get_message(timeout=1)

        assert published is not None
        events = [*await rig.conversation(), *await rig.logged(), json.loads(published["data"])]
        assert [event["require_ai_response"] for event in events] == [passed_on] * 3
        assert [event["meta"] for event in events] == [{"require_ai_response": "mine"}] * 3

    on_rig(story)


def test_a_stored_message_leaves_the_processing_list() -> None:
    """Given that a message was stored, I expect a restart not to find it in the processing list."""

    async def story(rig: Rig) -> None:
        await rig.say(user_id="u1", content="hello")
        assert await rig.redis.llen(PROCESSING) == 0

    on_rig(story)


def test_two_messages_of_one_millisecond_have_ids_of_their_own() -> None:
    """Given the same content twice at the same time, I expect two messages."""

    async def story(rig: Rig) -> None:
        for _ in range(2):
            await rig.say(user_id="u1", content="again", timestamp=1_712_345_678)
        first, second = await rig.conversation()
        assert first.pop("message_id") != second.pop("message_id")
        assert first == second

    on_rig(story)


def test_the_smallest_message_is_enough() -> None:
    """Given only a user and a content, nulls elsewhere, an unknown field, I expect it stored with the current time."""

    async def story(rig: Rig) -> None:
        await rig.say(user_id=7, content="hi", type=None, meta=None, timestamp=None, task_id="", mood="good")
        [entry] = await rig.conversation("7")
        assert entry.pop("message_id")
        assert entry.pop("timestamp") > 1_700_000_000
        assert entry == {
            "user_id": "7",
            "content": "hi",
            "source": "user",
            "meta": {},
            "require_ai_response": True,
            "logged": True,
        }

    on_rig(story)


def test_a_conversation_keeps_its_newest_messages_for_a_time() -> None:
    """Given a bound of three messages and 24 hours, I expect the last three, newest last, and a time to live."""

    async def story(rig: Rig) -> None:
        for number in range(5):
            await rig.say(user_id="u1", content=f"message {number}")
        assert [entry["content"] for entry in await rig.conversation()] == ["message 2", "message 3", "message 4"]
        assert 24 * 3600 - 60 < await rig.redis.ttl(conversation_key("u1")) <= 24 * 3600

    on_rig(story, max_messages=3)


def test_the_stream_holds_a_message_as_it_is_published() -> None:
    """Given a user's message, I expect the stored entry in the stream, marked as logged."""

    async def story(rig: Rig) -> None:
        await rig.say(user_id="u1", content="hello")
        [entry] = await rig.conversation()
        assert entry["logged"] is True
        assert await rig.logged() == [entry]

    on_rig(story)


def test_a_stream_that_refuses_does_not_lose_the_message() -> None:
    """Given a stream's key of another type, I expect messages stored and published, failures counted, one line."""

    async def story(rig: Rig) -> None:
        await rig.redis.set(UPDATES_STREAM, "not a stream")
        with capture_logs() as lines:
            for content in ("keep me", "me too"):
                await rig.say(user_id="u1", content=content)
            await rig.redis.delete(UPDATES_STREAM)
            await rig.say(user_id="u1", content="and me")
        assert [entry["content"] for entry in await rig.conversation()] == ["keep me", "me too", "and me"]
        assert await rig.redis.llen(PROCESSING) == 0
        assert rig.service.counts == {"stored": 3, "publish_failed": 2, "published": 1}
        assert [line["event"] for line in lines] == ["stream_refused", "stream_accepted"]

    on_rig(story)


class Killed(BaseException):
    """Like kill -9: no handler of the service runs after it."""


@pytest.mark.parametrize("executed", [False, True], ids=["before", "after"])
def test_a_kill_during_the_transaction_neither_loses_nor_duplicates_a_message(
    monkeypatch: pytest.MonkeyPatch, executed: bool
) -> None:
    """Given "ok" twice and a kill around the first one's transaction, I expect two messages after the restart."""

    async def story(rig: Rig) -> None:
        execute = Pipeline.execute

        async def killed(pipeline: Pipeline, *args: Any, **options: Any) -> list[Any]:
            if executed:
                await execute(pipeline, *args, **options)
            raise Killed

        raw = json.dumps({"user_id": "u1", "content": "ok"}).encode()
        await rig.redis.lpush(PROCESSING, raw, raw)
        with monkeypatch.context() as patch:
            patch.setattr(Pipeline, "execute", killed)
            with pytest.raises(Killed):
                await rig.service.process_user_input(raw)
        restarted = Rig(redis=rig.redis)
        while await rig.redis.llen(PROCESSING):  # as a process does first
            await restarted.service.process_user_input(raw)

        both = await rig.conversation()
        assert len({entry["message_id"] for entry in both}) == len(both) == 2
        assert await rig.logged() == both

    on_rig(story)


def test_a_message_has_the_same_id_in_each_attempt_to_store_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a transaction that a broken connection holds, and that reaches Redis after the next attempt, I expect one
    message_id, by which both are one memory; and another one for an equal message that is said later."""

    async def story(rig: Rig) -> None:
        execute, held = Pipeline.execute, list[Any]()

        async def broken(pipeline: Pipeline, *args: Any, **options: Any) -> list[Any]:
            if held:
                return await execute(pipeline, *args, **options)
            held.extend(pipeline.command_stack)
            raise RedisConnectionError("gone")

        monkeypatch.setattr(Pipeline, "execute", broken)
        raw = b'{"user_id": "u1", "content": "hi"}'
        stop = asyncio.Event()
        with pytest.raises(RedisConnectionError):
            await rig.say(raw)
        await rig.service._process_leftovers(LoopConnection("user_input_queue", stop), stop)
        await rig.say(raw)

        [late] = [json.loads(command[0][2]) for command in held if command[0][0] == "RPUSH"]
        first, second = [entry["message_id"] for entry in await rig.conversation()]
        assert first == late["message_id"]
        assert second != first

    on_rig(story)


def test_an_equal_message_is_another_one_once_the_first_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a connection that breaks after Redis stored "hi", I expect a second "hi" to be a message of its own."""

    async def story(rig: Rig) -> None:
        execute, tries = Pipeline.execute, []

        async def broken(pipeline: Pipeline, *args: Any, **options: Any) -> list[Any]:
            results = await execute(pipeline, *args, **options)
            tries.append(results)
            if len(tries) == 1:
                raise RedisConnectionError("gone")
            return results

        monkeypatch.setattr(Pipeline, "execute", broken)
        raw, stop = b'{"user_id": "u1", "content": "hi"}', asyncio.Event()
        with pytest.raises(RedisConnectionError):
            await rig.say(raw)
        await rig.service._process_leftovers(LoopConnection("user_input_queue", stop), stop)
        await rig.say(raw)

        first, second = [entry["message_id"] for entry in await rig.conversation()]
        assert first != second

    on_rig(story)


def test_storing_a_reply_is_idempotent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a connection that breaks after Redis stored a reply, I expect the retry to find it there."""

    async def story(rig: Rig) -> None:
        execute, tries = Pipeline.execute, []

        async def broken(pipeline: Pipeline, *args: Any, **options: Any) -> list[Any]:
            results = await execute(pipeline, *args, **options)
            tries.append(results)
            if len(tries) == 1:
                raise RedisConnectionError("gone")
            return results

        monkeypatch.setattr(Pipeline, "execute", broken)
        raw = b'{"user_id": "u1", "text": "hi"}'
        with pytest.raises(RedisConnectionError):
            await rig.service.process_ai_response(raw, "m1")
        await rig.service.process_ai_response(raw, "m1", retry=True)

        assert [entry["message_id"] for entry in await rig.conversation()] == ["m1"]
        assert len(await rig.logged()) == 1

    on_rig(story)


def test_a_reply_that_waited_for_redis_says_when_it_was_heard() -> None:
    """Given a reply that is stored later than it was heard, I expect the time of its hearing in the stream: what is
    said before its user is forgotten is forgotten. A message of a user has arrived when it is written."""

    async def story(rig: Rig) -> None:
        begun = time.time()
        await rig.service._put(b'{"user_id": "u1", "text": "hi"}')
        waiting = rig.service._waiting.popleft()
        assert begun <= waiting.at <= time.time()
        await rig.service._store_ai_response(waiting._replace(at=1_780_000_000.25), asyncio.Event())
        await rig.say(user_id="u1", content="hello")

        entries: Any = await rig.redis.xrange(UPDATES_STREAM)
        assert [fields.get(b"arrived_at") for _, fields in entries] == [b"1780000000.250000", None]

    on_rig(story)


def test_messages_are_stored_when_publishing_is_disabled() -> None:
    """Given ENABLE_LTM_PUBLISH=false, I expect messages of both sides stored, none published, and no stream."""

    async def story(rig: Rig) -> None:
        async with rig.redis.pubsub() as pubsub:
            await pubsub.subscribe("memory_updates")
            await pubsub.get_message(timeout=60)
            await rig.say(user_id="u1", content="hello")
            await rig.reply(user_id="u1", text="hi there")
            assert await pubsub.get_message(timeout=0) is None
        assert [entry.get("logged") for entry in await rig.conversation()] == [None, None]
        assert await rig.redis.exists(UPDATES_STREAM) == 0
        assert rig.service.counts == {"stored": 2}

    on_rig(story, publishes=False)


def test_a_reply_gets_the_session_of_the_message_it_answers() -> None:
    """Given a reply to a message of session s1, I expect it stored as the AI's, in s1, extra fields ignored."""

    async def story(rig: Rig) -> None:
        await rig.say(user_id="u1", content="question", meta={"session_id": "s1"})
        for number in range(60):
            await rig.say(user_id="u1", content=f"later {number}", meta={"session_id": "s2"})
        question = (await rig.conversation())[0]["message_id"]
        await rig.reply(
            user_id="u1", text="answer", original_message_id=question, timestamp=1_712_345_678.5, memories=[{"id": "m"}]
        )
        reply = (await rig.conversation())[-1]
        assert reply.pop("message_id") != question
        assert reply == {
            "user_id": "u1",
            "content": "answer",
            "source": "ai",
            "timestamp": 1_712_345_678.5,
            "meta": {"original_message_id": question, "session_id": "s1"},
            "require_ai_response": False,
            "logged": True,
        }

    on_rig(story)


def test_who_and_to_whom_and_for_how_long_go_from_the_input_to_the_event() -> None:
    """Given a message with agent, speaker and expiry, I expect all in the event, the reply to be the agent's, and to
    expire alike, and one with agent and expiry of its own to keep these."""

    async def story(rig: Rig) -> None:
        speaker = {"id": 7, "name": "Anna"}
        await rig.say(user_id="room", content="hello", agent_id="luna", speaker=speaker, ttl_days=2)
        [said] = await rig.conversation("room")
        await rig.reply(user_id="room", text="hi Anna", original_message_id=said["message_id"])
        own = {"agent_id": "sol", "ttl_days": 5}
        await rig.reply(user_id="room", text="from sol", original_message_id=said["message_id"], **own)
        await rig.say(user_id="room", content="hello all", speaker="Ben")

        events = await rig.logged()
        read = [parse_update(json.dumps(event).encode(), 100) for event in events]
        assert [event.agent_id for event in read] == ["luna", "luna", "sol", None]
        assert [event.ttl_days for event in read] == [2, 2, 5, None]
        assert [event.speaker for event in read] == [Speaker(id="7", name="Anna"), None, None, Speaker(name="Ben")]

    on_rig(story)


def test_a_reply_to_what_another_program_has_stored_is_stored() -> None:
    """Given a stored message whose fields have other types, I expect the reply without what cannot be read."""

    async def story(rig: Rig) -> None:
        odd = {"message_id": "m1", "meta": ["s1"], "agent_id": {"a": 1}, "ttl_days": "soon"}
        await rig.redis.rpush(conversation_key("u1"), json.dumps(odd))
        await rig.reply(user_id="u1", text="hi", original_message_id="m1")

        [event] = await rig.logged()
        assert (event["content"], event.get("agent_id"), event.get("ttl_days")) == ("hi", None, None)

    on_rig(story)


def test_a_reply_to_an_unknown_message_is_stored_without_a_session() -> None:
    """Given that the answered message is gone and entries of another program are in the list, I expect it stored."""

    async def story(rig: Rig) -> None:
        await rig.redis.rpush(conversation_key("u1"), "no json", "[]")
        await rig.reply(user_id="u1", text="answer", original_message_id="gone")
        entry = json.loads((await rig.redis.lrange(conversation_key("u1"), -1, -1))[0])
        assert entry["meta"] == {"original_message_id": "gone"}

    on_rig(story)


BAD = {
    "not JSON": b"hello",
    "not an object": b'["u1"]',
    "object as user": b'{"user_id": {"ne": "x"}, "content": "x"}',
    "too long": json.dumps({"user_id": "u1", "content": "x" * 101}).encode(),
    "too large": b'{"user_id": "u1", "content": "' + b"x" * 20_000_000 + b'"}',
    "not UTF-8": b'{"user_id": "u1", "content": "\xff\xfe"}',
    "too deep": b'{"user_id": "u1", "content": "x", "meta": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    "endless": b"[" * 200_000,
    "NaN": b'{"user_id": "u1", "content": "x", "timestamp": NaN}',
    "meta grows too large": json.dumps(
        {"user_id": "u1", "content": "x", "meta": {"a": "用" * 200_000}}, ensure_ascii=False
    ).encode(),
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
def test_an_invalid_message_is_rejected_and_the_next_is_processed(raw: bytes) -> None:
    """Given an invalid message, I expect its reason and beginning in the rejected stream, and no other trace."""

    async def story(rig: Rig) -> None:
        await rig.say(raw)
        [entry] = await rig.rejected()
        assert entry[b"at"] == b"user_input_queue"
        assert entry[b"reason"].partition(b":")[0] in {b"invalid_request", b"invalid_json", b"too_large"}
        assert entry[b"message"].decode() == raw[:4_000].decode(errors="replace")[:1_000]
        assert await rig.redis.hgetall(COUNTERS) == {b"rejected": b"1"}
        assert await rig.redis.llen(PROCESSING) == 0
        await rig.say(user_id="u1", content="next")
        assert [message["content"] for message in await rig.conversation()] == ["next"]
        assert rig.service.counts == {"rejected": 1, "stored": 1, "published": 1}

    on_rig(story)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type": "audio", "input_file": "/tmp/a.wav"}',
        b'{"user_id": "u1", "content": null}',
        b'{"user_id": "u1", "content": " \\u0000 "}',
        b'{"user_id": "u1", "type": "audio", "content": "", "transcript": null}',
        b"{}",
    ],
)
def test_what_holds_no_text_is_counted_and_skipped(raw: bytes) -> None:
    """Given a recording without its transcript, or nothing at all, I expect it counted, not rejected, and no line."""

    async def story(rig: Rig) -> None:
        with capture_logs() as lines:
            await rig.say(raw)
        assert lines == []
        assert await rig.rejected() == []
        assert await rig.redis.hgetall(COUNTERS) == {b"skipped_without_text": b"1"}
        assert await rig.redis.llen(PROCESSING) == 0
        assert rig.service.counts == {"skipped": 1}

    on_rig(story)


TOLERATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no user": ({"user_id": ...}, {"user_id": "anonymous"}),
    "blank user": ({"user_id": " "}, {"user_id": "anonymous"}),
    "a transcript": (
        {"content": ..., "type": "audio", "input_file": "a.wav", "transcript": "hello"},
        {"meta": {"type": "audio"}},
    ),
    "a caption": ({"type": "image", "meta": {"type": "png"}}, {"meta": {"type": "png"}}),
    "another name": ({"content": ..., "text": "hello"}, {}),
    "meta a list": ({"meta": [1]}, {"meta": {"value": [1]}}),
    "meta a text, and a source": ({"meta": "x", "source": "mic"}, {"meta": {"value": "x", "origin": "mic"}}),
    "task of NUL alone": ({"task_id": "\0"}, {}),
    "task a number": ({"task_id": 7.5}, {"task_id": "7.5"}),
    "task an object": ({"task_id": {}}, {}),
    "bad time": ({"timestamp": "soon"}, {"meta": {"sent_timestamp": "soon"}}),
    "seconds since boot": ({"timestamp": 1061.277}, {"meta": {"sent_timestamp": 1061.277}}),
}


@pytest.mark.parametrize(("sent", "expected"), TOLERATED.values(), ids=TOLERATED)
def test_a_message_in_another_form_is_stored(sent: dict[str, Any], expected: dict[str, Any]) -> None:
    """Given a message of another front end, I expect it stored and published, dated now, as what it means."""

    async def story(rig: Rig) -> None:
        fields = {"user_id": "u1", "content": "hello", **sent}
        await rig.say(**{name: value for name, value in fields.items() if value is not ...})
        [entry] = await rig.logged()
        assert entry.pop("message_id")
        assert abs(entry.pop("timestamp") - time.time()) < 60
        plain = {"user_id": "u1", "content": "hello", "source": "user", "meta": {}, "require_ai_response": True}
        assert entry == {**plain, "logged": True, **expected}
        assert await rig.rejected() == []

    on_rig(story)


def test_a_reply_in_another_form_is_stored() -> None:
    """Given a reply with its text as `content`, no user, no time and an id that is none, I expect it stored, with what
    was sent in `meta`."""

    async def story(rig: Rig) -> None:
        await rig.reply(content="hello", original_message_id={}, timestamp="soon", meta=["x"])
        [entry] = await rig.conversation("anonymous")
        assert (entry["content"], entry["source"]) == ("hello", "ai")
        assert entry["meta"] == {"value": ["x"], "sent_timestamp": "soon"}
        assert abs(entry["timestamp"] - time.time()) < 60

    on_rig(story)


def test_a_message_is_read_by_the_settings() -> None:
    """Given a zone and a name for users without one, I expect messages and replies read by both."""
    defaults = MessageDefaults(ZoneInfo("Asia/Shanghai"), "访客")

    async def story(rig: Rig) -> None:
        await rig.say(content="hello", timestamp="2024-04-05 20:00")
        await rig.reply(text="hi", timestamp="2024年4月5日 20:00")
        assert [entry["timestamp"] for entry in await rig.conversation("访客")] == [1_712_318_400] * 2

    on_rig(story, defaults=defaults)


def test_an_invalid_reply_is_rejected_with_its_channel() -> None:
    """Given a reply without a text, I expect it in the rejected stream with the channel's name."""

    async def story(rig: Rig) -> None:
        await rig.reply(user_id="u1")
        [entry] = await rig.rejected()
        assert entry[b"at"] == b"ai_responses"

    on_rig(story)


def test_a_message_that_raises_an_internal_error_is_rejected() -> None:
    """Given a conversation's key of another type, I expect its message rejected and others processed."""

    async def story(rig: Rig) -> None:
        await rig.redis.set(conversation_key("broken"), "not a list")
        await rig.say(user_id="broken", content="x")
        await rig.say(user_id="u1", content="next")
        [entry] = await rig.rejected()
        assert entry[b"reason"].startswith(b"internal: ")
        assert await rig.redis.llen(PROCESSING) == 0
        assert rig.service.counts["failed"] == 1
        assert len(await rig.conversation()) == 1

    on_rig(story)


def test_a_message_stays_in_the_processing_list_while_redis_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given that Redis goes away before the message is stored, I expect the error, and the message still there."""

    async def story(rig: Rig) -> None:
        async def refuse(*_: Any, **__: Any) -> None:
            raise RedisConnectionError("gone")

        monkeypatch.setattr(Conversations, "append", refuse)
        with pytest.raises(RedisConnectionError):
            await rig.say(user_id="u1", content="keep me")
        assert await rig.redis.llen(PROCESSING) == 1
        assert rig.service.counts == {}

    on_rig(story)


HOSTILE = ["*", " u1 ", "anna lee", "用户一", '{"ne": "x"}', "x" * 500, "'; drop table", "a\nb", "\0", "\ud800", "ä%41"]


@pytest.mark.parametrize("user_id", HOSTILE)
def test_a_hostile_user_id_is_data(user_id: str) -> None:
    """Given any id, I expect its own conversation, and the id unchanged."""

    async def story(rig: Rig) -> None:
        await rig.say(user_id=user_id, content="mine")
        await rig.say(user_id="u1", content="not yours")
        [entry] = await rig.conversation(user_id)
        assert (entry["user_id"], entry["content"]) == (user_id, "mine")

    on_rig(story)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(
    st.binary(max_size=200)
    | st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("user_id", "content", "source", "timestamp", "meta", "task_id", "type"), json_values),
    ).map(lambda fields: json.dumps(fields).encode())
)
def test_any_input_is_stored_skipped_or_rejected(raw: bytes) -> None:
    """Given any bytes, I expect exactly one of the three, an empty processing list, and no exception."""

    async def story(rig: Rig) -> None:
        await rig.say(raw)
        assert sum(rig.service.counts[outcome] for outcome in ("stored", "skipped", "rejected")) == 1
        assert rig.service.counts["failed"] == 0
        assert await rig.redis.llen(PROCESSING) == 0

    on_rig(story)
