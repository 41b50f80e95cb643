"""`AsyncClient` against fakeredis; the test itself is the long-term memory that responds."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import fakeredis
import pytest
from keepsake_client.async_client import AsyncClient
from keepsake_client.connections import address
from keepsake_client.context import Context
from keepsake_client.errors import Disabled, InvalidMessage, KeepsakeError, RequestFailed, RequestTimeout, Unavailable
from keepsake_client.protocol import (
    MANAGING,
    UPDATES_STREAM,
    ContextParts,
    LTMResponse,
    Memory,
    parse_request,
    parse_update,
)
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from tests.support import AdvancedLoop, SkippingLoop, eventually
from tests.swallowing_proxy import SwallowingProxy

LONG_MS = 60_000
MEMORY = {"id": "m1", "content": "My cat is Miso", "score": 0.9, "timestamp": 1_712_345_678}


class Keepsake:
    """The other side of the wire: takes requests, and responds as the test tells it."""

    def __init__(self, server: fakeredis.FakeServer) -> None:
        self.server = server
        self.redis: Redis = fakeredis.FakeAsyncRedis(server=server)

    async def request(self, queue: str = "ltm_requests") -> dict[str, Any]:
        async def taken() -> Any:
            return await self.redis.rpop(queue)

        request: dict[str, Any] = json.loads(await eventually(taken, description="a request"))
        return request

    async def answer(self, request: dict[str, Any], **fields: Any) -> None:
        response = {"request_id": request["request_id"], "user_id": request["user_id"], "success": True, **fields}
        await self.redis.publish("ltm_responses", json.dumps(response))


@asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[AsyncClient, Keepsake]]:
    keepsake = Keepsake(fakeredis.FakeServer())
    shared: Redis = fakeredis.FakeAsyncRedis(server=keepsake.server)
    try:
        async with AsyncClient(shared, **options) as client:
            yield client, keepsake
            assert client._pending == {}, "a request was left behind"
    finally:
        await shared.aclose()
        await keepsake.redis.aclose()


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a story that has no real server, so its time need not be real either."""
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(story())


def test_a_search_returns_the_memories_of_its_response() -> None:
    """Given a long-term memory, I expect a request that the contract accepts, and the memories of its response."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "cat?", limit=3, deadline_ms=LONG_MS))
            request = await keepsake.request()
            parse_request(json.dumps(request).encode(), 100)
            assert (request["type"], request["user_id"]) == ("search", "u1")
            assert request["data"] == {"query": "cat?", "limit": 3, "deadline_ms": LONG_MS}
            await keepsake.answer(request, memories=[MEMORY])
            assert await search == [Memory.model_validate(MEMORY)]
            assert client.counts == {"ok": 1}

    run(story)


def test_a_request_is_pushed_after_the_subscription() -> None:
    """Given a request right after the start, I expect the subscription to be up when it arrives."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "cat?", deadline_ms=LONG_MS))
            request = await keepsake.request()
            assert await keepsake.redis.pubsub_numsub("ltm_responses") == [(b"ltm_responses", 1)]
            await keepsake.answer(request)
            assert await search == []

    run(story)


def test_responses_are_matched_in_any_order() -> None:
    """Given ten searches and responses in reverse, I expect each to get its own, over one subscription."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            searches = [asyncio.create_task(client.search(f"u{n}", f"q{n}", deadline_ms=LONG_MS)) for n in range(10)]
            requests = [await keepsake.request() for _ in range(10)]
            assert await keepsake.redis.pubsub_numsub("ltm_responses") == [(b"ltm_responses", 1)]
            for request in reversed(requests):
                await keepsake.answer(request, memories=[{**MEMORY, "content": request["data"]["query"]}])
            found = await asyncio.gather(*searches)
            assert [memories[0].content for memories in found] == [f"q{n}" for n in range(10)]

    run(story)


@pytest.mark.parametrize(
    "foreign",
    [
        {"user_id": "u2"},
        {"request_id": "req-other"},
        {"request_id": ["a", "list"]},
        {"user_id": None},
    ],
    ids=repr,
)
def test_a_response_to_another_request_is_ignored(foreign: dict[str, Any]) -> None:
    """Given that a response to another client comes first, I expect the client to wait for its own."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "cat?", deadline_ms=LONG_MS))
            request = await keepsake.request()
            await keepsake.answer(request, **{"memories": [{**MEMORY, "content": "not yours"}], **foreign})
            for malformed in (b"no json", b"[]", b"\xff", b"[" * 100_000):
                await keepsake.redis.publish("ltm_responses", malformed)
            await keepsake.answer(request, memories=[MEMORY])
            assert [memory.content for memory in await search] == ["My cat is Miso"]

    run(story)


def test_a_search_without_a_response_returns_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Given no response, I expect an empty list at the deadline, a count, and a warning without contents."""

    async def story() -> None:
        async with connected(search_timeout_ms=100) as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "my secret"))
            request = await keepsake.request()
            assert request["data"]["deadline_ms"] == 100
            assert await search == []
            assert client.counts == {"timeout": 1}
            # The response comes late, and twice; the next search is not confused by it.
            for _ in range(2):
                await keepsake.answer(request, memories=[MEMORY])
            search = asyncio.create_task(client.search("u1", "again", deadline_ms=LONG_MS))
            await keepsake.answer(await keepsake.request())
            assert await search == []
            assert client.counts == {"timeout": 1, "ok": 1}

    with caplog.at_level(logging.WARNING):
        run(story)
    assert "timeout" in caplog.text
    assert "secret" not in caplog.text


def test_a_request_that_timed_out_is_removed_from_the_list() -> None:
    """Given that no adapter takes requests, I expect that expired ones do not pile up in the list."""

    async def story() -> None:
        async with connected(search_timeout_ms=30, write_timeout_ms=30) as (client, keepsake):
            await keepsake.redis.lpush("ltm_requests", "of another client")
            assert await client.search("u1", "cat?") == []
            with pytest.raises(RequestTimeout, match="no response to profile_get within 30 ms"):
                await client.profile_get("u1")
            assert await keepsake.redis.lrange("ltm_requests", 0, -1) == [b"of another client"]

    run(story)


UNSERVED = "ltm requests are not answered: asked ltm_requests on Redis "


def test_a_redis_that_no_adapter_serves_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Given a wrong Redis, I expect it named in each error, and in the log once until a request is answered again."""

    async def story() -> None:
        async with connected(search_timeout_ms=30, write_timeout_ms=30) as (client, keepsake):
            nothing = r"asked ltm_requests on Redis [^ ]+:6379/0, and nothing seems to serve it there"
            for _ in range(2):
                assert await client.search("u1", "cat?") == []
                with pytest.raises(RequestTimeout, match=f"no response to profile_get within 30 ms; {nothing}"):
                    await client.profile_get("u1")
            assert caplog.text.count(UNSERVED) == 1

            answered = asyncio.create_task(client.search("u1", "cat?", deadline_ms=LONG_MS))
            await keepsake.answer(await keepsake.request())
            await answered
            await client.search("u1", "cat?")
            assert caplog.text.count(UNSERVED) == 2
            assert await keepsake.redis.llen("ltm_requests") == 0

    run(story)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://anna:secret@wrong:6380/2", "wrong:6380/2"),
        ("redis://wrong", "wrong:6379/0"),
        ("unix://anna:secret@/run/redis.sock?db=3", "/run/redis.sock/3"),
    ],
)
def test_a_redis_is_named_without_its_password(url: str, shown: str) -> None:
    """Given a URL, I expect host, port and database, and no credentials."""
    assert address(AsyncClient(url)._redis) == shown


def test_a_slow_pipeline_is_not_taken_for_a_wrong_redis(caplog: pytest.LogCaptureFixture) -> None:
    """Given a living adapter, I expect the time-out to say where it asked, and no more; given a failed one, more."""

    async def story() -> None:
        async with connected(write_timeout_ms=30) as (client, keepsake):
            seconds, _ = await keepsake.redis.time()
            await keepsake.redis.zadd("ltm:adapters", {"failed": seconds - 60, "alive": seconds - 1})
            with pytest.raises(RequestTimeout, match=r"; asked ltm_requests on Redis [^ ,]+$"):
                await client.profile_get("u1")
            assert UNSERVED not in caplog.text

            await keepsake.redis.zrem("ltm:adapters", "alive")
            with pytest.raises(RequestTimeout, match="nothing seems to serve it there"):
                await client.profile_get("u1")

    run(story)


def test_a_client_without_the_right_to_look_asks_once(caplog: pytest.LogCaptureFixture) -> None:
    """Given an ACL that refuses the look, I expect no claim that nothing serves the list, and no second refusal."""
    refused: list[str] = []

    async def story() -> None:
        async def refuse() -> None:
            refused.append("TIME")
            raise NoPermissionError("no permissions to run the 'time' command")

        redis: Any = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
        redis.time = refuse
        async with AsyncClient(redis, write_timeout_ms=30) as client:
            for _ in range(2):
                with pytest.raises(RequestTimeout, match=r"; asked ltm_requests on Redis [^ ,]+$"):
                    await client.profile_get("u1")
        await redis.aclose()

    run(story)
    assert refused == ["TIME"]


def test_a_search_sends_the_options_that_are_set() -> None:
    """Given every option, I expect each in `data` under its name; the other test shows that unset ones are absent."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            options: dict[str, Any] = {
                "limit": 2,
                "min_score": 0.0,
                "filters": {"source": "user", "since": 1},
                "exclude_session": "s1",
                "recency_half_life_days": 30,
                "agent_id": "luna",
                "all_agents": True,
                "also": ["u2"],
                "speaker": {"id": "7", "name": "Anna"},
                "include_superseded": True,
                "explain": True,
                "deadline_ms": LONG_MS,
            }
            search = asyncio.create_task(client.search("u1", "cat?", **options))
            request = await keepsake.request()
            parse_request(json.dumps(request).encode(), 100)
            assert request["data"] == {"query": "cat?", **options}
            await keepsake.answer(request)
            await search

    run(story)


def test_a_search_without_options_asks_for_five_memories_within_the_clients_timeout() -> None:
    """Given a query alone, I expect the default limit, the client's timeout as deadline, and no other option."""

    async def story() -> None:
        async with connected(search_timeout_ms=LONG_MS) as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "cat?"))
            request = await keepsake.request()
            assert request["data"] == {"query": "cat?", "limit": 5, "deadline_ms": LONG_MS}
            await keepsake.answer(request)
            await search

    run(story)


def test_a_failed_search_returns_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Given an error response, I expect an empty list, and its code counted, and logged with the user and without its
    reason."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "cat?", deadline_ms=LONG_MS))
            await keepsake.answer(await keepsake.request(), success=False, error="too_large: my secret is too long")
            assert await search == []
            assert client.counts == {"too_large": 1}

    run(story)
    (record,) = caplog.records
    assert record.getMessage() == "ltm search failed: 'too_large'"
    assert record.__dict__["user_id"] == "u1"


def test_a_context_is_the_text_of_its_response_with_its_parts() -> None:
    """Given a context, I expect the request of a search and what bounds it, within a search's time; and the text, the
    parts, the memories and whether something is missing."""
    parts = {"profile": {"name": "Anna"}, "memories": [{"quote": "My cat is Miso"}], "recap": [], "of_later": 1}

    async def story() -> None:
        async with connected(search_timeout_ms=LONG_MS, write_timeout_ms=1) as (client, keepsake):
            asked = asyncio.create_task(
                client.context("u1", "cat?", session="s1", max_chars=900, max_tokens=300, agent_id="luna", also=["u2"])
            )
            request = await keepsake.request()
            parse_request(json.dumps(request).encode(), 100)
            assert (request["type"], request["user_id"]) == ("context", "u1")
            assert request["data"] == {
                "query": "cat?",
                "limit": 5,
                "session_id": "s1",
                "max_chars": 900,
                "max_tokens": 300,
                "agent_id": "luna",
                "also": ["u2"],
                "deadline_ms": LONG_MS,
            }
            await keepsake.answer(
                request, memories=[MEMORY], context="the text", context_parts=parts, partial=True, of_later=1
            )
            context = await asked
            assert (context.text, context.partial) == ("the text", True)
            assert list(context.memories) == [Memory.model_validate(MEMORY)]
            assert context.parts == ContextParts.model_validate(parts)
            assert context.parts.profile == {"name": "Anna"}

    run(story)


def test_a_failed_context_is_empty(caplog: pytest.LogCaptureFixture) -> None:
    """Given an error response, as of an earlier release, I expect an empty context, and the code logged and counted."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            asked = asyncio.create_task(client.context("u1", "cat?", deadline_ms=LONG_MS))
            await keepsake.answer(await keepsake.request(), success=False, error="unknown_type: type is my secret")
            assert await asked == Context()
            assert client.counts == {"unknown_type": 1}

    run(story)
    assert [record.getMessage() for record in caplog.records] == ["ltm context failed: 'unknown_type'"]


def test_a_malformed_response_fails_at_once() -> None:
    """Given a response of the wrong shape, I expect an exception before the deadline."""

    async def story() -> None:
        async with connected(write_timeout_ms=LONG_MS) as (client, keepsake):
            get = asyncio.create_task(client.profile_get("u1"))
            await keepsake.answer(await keepsake.request(), memories="none")
            with pytest.raises(RequestFailed, match="invalid_response") as failed:
                await get
            assert failed.value.code == "invalid_response"

    run(story)


Call = Callable[[AsyncClient], Awaitable[LTMResponse]]
CALLS: dict[str, tuple[Call, str, dict[str, Any]]] = {
    "add": (lambda c: c.add("u1", "fact", metadata={"a": 1}), "add", {"content": "fact", "metadata": {"a": 1}}),
    "profile_get": (lambda c: c.profile_get("u1"), "profile_get", {}),
    "profile_update": (lambda c: c.profile_update("u1", {"a": 1}), "profile_update", {"updates": {"a": 1}}),
    "guarded update": (
        lambda c: c.profile_update("u1", {"a": None}, expected_version=2),
        "profile_update",
        {"updates": {"a": None}, "expected_version": 2},
    ),
    "add for a character": (
        lambda c: c.add("u1", "fact", agent_id="luna", speaker="Anna", ttl_days=2),
        "add",
        {"content": "fact", "metadata": {}, "agent_id": "luna", "speaker": "Anna", "ttl_days": 2},
    ),
    "profile_get of a character": (lambda c: c.profile_get("u1", agent_id="luna"), "profile_get", {"agent_id": "luna"}),
    "profile_update of a character": (
        lambda c: c.profile_update("u1", {"a": 1}, agent_id="luna"),
        "profile_update",
        {"updates": {"a": 1}, "agent_id": "luna"},
    ),
    "memory_list": (lambda c: c.memory_list("u1"), "memory_list", {"order": "newest", "limit": 50}),
    "a page": (
        lambda c: c.memory_list(
            "u1", filters={"contains": "tea"}, agent_id="a", all_agents=True, order="oldest", limit=2, cursor="x"
        ),
        "memory_list",
        {
            "filters": {"contains": "tea"},
            "agent_id": "a",
            "all_agents": True,
            "cursor": "x",
            "order": "oldest",
            "limit": 2,
        },
    ),
    "memory_get": (lambda c: c.memory_get("u1", "m1"), "memory_get", {"id": "m1"}),
    "memory_update": (
        lambda c: c.memory_update("u1", "m1", content="tea", metadata={"a": None}),
        "memory_update",
        {"id": "m1", "content": "tea", "metadata": {"a": None}},
    ),
    "memory_delete by ids": (lambda c: c.memory_delete("u1", ids=("m1",)), "memory_delete", {"ids": ["m1"]}),
    "memory_delete by filters": (
        lambda c: c.memory_delete("u1", filters={"source": "ai"}, agent_id="a", all_agents=True, dry_run=True),
        "memory_delete",
        {"filters": {"source": "ai"}, "agent_id": "a", "all_agents": True, "dry_run": True},
    ),
    "a profile with its history": (
        lambda c: c.profile_get("u1", history=True, cursor="7"),
        "profile_get",
        {"history": True, "cursor": "7"},
    ),
    "user_list": (lambda c: c.user_list(), "user_list", {"prefix": "", "limit": 50}),
    "a page of users": (
        lambda c: c.user_list("an", limit=5, cursor="anna"),
        "user_list",
        {"prefix": "an", "limit": 5, "cursor": "anna"},
    ),
    "user_export": (lambda c: c.user_export("u1"), "user_export", {"limit": 100}),
    "next page": (
        lambda c: c.user_export("u1", limit=5, cursor="abc"),
        "user_export",
        {"limit": 5, "cursor": "abc"},
    ),
    "user_import": (
        lambda c: c.user_import("u1", [{"kind": "profile"}]),
        "user_import",
        {"records": [{"kind": "profile"}]},
    ),
    "restoring import": (
        lambda c: c.user_import("u1", [], restore_deleted=True),
        "user_import",
        {"records": [], "restore_deleted": True},
    ),
}


@pytest.mark.parametrize(("call", "kind", "data"), CALLS.values(), ids=CALLS.keys())
def test_the_other_verbs_return_their_response(call: Call, kind: str, data: dict[str, Any]) -> None:
    """Given a long-term memory, I expect the request that the contract specifies, and the response as a model."""

    async def story() -> None:
        async with connected(write_timeout_ms=LONG_MS) as (client, keepsake):
            asked = asyncio.ensure_future(call(client))
            request = await keepsake.request()
            parse_request(json.dumps(request).encode(), 100)
            assert request["type"] == kind
            assert request["data"] == {**data, "deadline_ms": LONG_MS}
            await keepsake.answer(request, user_profile={"a": 1}, profile_version=3)
            response = await asked
            assert (response.user_profile, response.profile_version) == ({"a": 1}, 3)

    run(story)


def test_pages_follow_one_another() -> None:
    """Given three pages, one of them empty, I expect each with the cursor of the one before, and the same options."""

    async def story() -> None:
        async with connected(write_timeout_ms=LONG_MS) as (client, keepsake):
            pages = client.memory_pages("u1", filters={"contains": "tea"}, order="oldest", deadline_ms=LONG_MS)
            found, sent = [], []
            for content, cursor in (("a", "x"), (None, "y"), ("b", None)):
                asked = asyncio.ensure_future(anext(pages))
                request = await keepsake.request()
                sent.append(request["data"])
                memories = [{"id": "m", "content": content, "timestamp": 1}] if content else []
                await keepsake.answer(request, memories=memories, next_cursor=cursor)
                found.append([memory.content for memory in await asked])
            assert await anext(pages, None) is None
            assert found == [["a"], [], ["b"]]
            base = {"filters": {"contains": "tea"}, "order": "oldest", "limit": 100, "deadline_ms": LONG_MS}
            assert sent == [base, {**base, "cursor": "x"}, {**base, "cursor": "y"}]

    run(story)


WITH_DEADLINE: dict[str, Call] = {
    "add": lambda c: c.add("u1", "fact", deadline_ms=LONG_MS),
    "profile_get": lambda c: c.profile_get("u1", deadline_ms=LONG_MS),
    "profile_update": lambda c: c.profile_update("u1", {"a": 1}, deadline_ms=LONG_MS),
    "memory_list": lambda c: c.memory_list("u1", deadline_ms=LONG_MS),
    "memory_get": lambda c: c.memory_get("u1", "m1", deadline_ms=LONG_MS),
    "memory_update": lambda c: c.memory_update("u1", "m1", content="fact", deadline_ms=LONG_MS),
    "memory_delete": lambda c: c.memory_delete("u1", ids=["m1"], deadline_ms=LONG_MS),
    "user_export": lambda c: c.user_export("u1", deadline_ms=LONG_MS),
    "user_import": lambda c: c.user_import("u1", [], deadline_ms=LONG_MS),
    "user_list": lambda c: c.user_list(deadline_ms=LONG_MS),
    "user_forget": lambda c: c.user_forget("u1", deadline_ms=LONG_MS),
    "request": lambda c: c.request("add", "u1", {"content": "fact"}, deadline_ms=LONG_MS),
}


@pytest.mark.parametrize(("options", "data"), [({}, {}), ({"dry_run": True}, {"dry_run": True})])
def test_forgetting_is_waited_for_longer_than_other_requests(options: dict[str, Any], data: dict[str, Any]) -> None:
    """Given no deadline, I expect a minute's, whatever that of other requests is, and the number of memories."""

    async def story() -> None:
        async with connected(write_timeout_ms=1) as (client, keepsake):
            asked = asyncio.create_task(client.user_forget("u1", **options))
            request = await keepsake.request()
            parse_request(json.dumps(request).encode(), 100)
            assert (request["type"], request["data"]) == ("user_forget", {**data, "deadline_ms": 60_000})
            await keepsake.answer(request, count=7)
            assert (await asked).count == 7

    run(story)


@pytest.mark.parametrize("kind", sorted(MANAGING))
def test_requests_that_manage_memories_go_to_their_own_list(kind: Any) -> None:
    """Given a `manage_queue`, I expect the types that it is for to be pushed there, and removed from there after a
    time-out, which names it; and all others to be pushed to the common list."""

    async def story() -> None:
        async with connected(manage_queue="m") as (client, keepsake):
            asked = asyncio.create_task(client.request(kind, "u1", {}, deadline_ms=LONG_MS))
            await keepsake.answer(await keepsake.request("m"))
            assert (await asked).success
            with pytest.raises(RequestTimeout, match="asked m on"):
                await client.request(kind, "u1", {}, deadline_ms=1)
            assert await keepsake.redis.llen("m") == 0
            other = asyncio.create_task(client.profile_get("u1", deadline_ms=LONG_MS))
            await keepsake.answer(await keepsake.request())
            assert (await other).success

    run(story)


@pytest.mark.parametrize("call", WITH_DEADLINE.values(), ids=WITH_DEADLINE.keys())
def test_the_deadline_of_a_call_takes_the_place_of_the_clients(call: Call) -> None:
    """Given a deadline on the call, I expect it to be sent, and waited for."""

    async def story() -> None:
        async with connected(write_timeout_ms=1) as (client, keepsake):
            asked = asyncio.ensure_future(call(client))
            request = await keepsake.request()
            assert request["data"]["deadline_ms"] == LONG_MS
            await keepsake.answer(request)
            assert (await asked).success

    run(story)


@pytest.mark.parametrize("call", [call for call, _, _ in CALLS.values()], ids=CALLS.keys())
def test_the_other_verbs_raise_at_their_deadline(call: Call) -> None:
    """Given no response, I expect RequestTimeout."""

    async def story() -> None:
        async with connected(write_timeout_ms=30) as (client, _):
            with pytest.raises(RequestTimeout):
                await call(client)

    run(story)


def test_a_failed_write_raises_with_the_code_of_its_response() -> None:
    """Given a conflict, I expect its code and its message in the exception."""

    async def story() -> None:
        async with connected(write_timeout_ms=LONG_MS) as (client, keepsake):
            update = asyncio.create_task(client.profile_update("u1", {}, expected_version=1))
            await keepsake.answer(await keepsake.request(), success=False, error="conflict: at version 2")
            with pytest.raises(RequestFailed, match=r"^conflict: at version 2$") as failed:
                await update
            assert (failed.value.code, failed.value.wire) == ("conflict", "conflict: at version 2")
            assert client.counts == {"conflict": 1}

    run(story)


@pytest.mark.parametrize("fields", [{}, {"error": None}, {"error": ""}], ids=repr)
def test_a_failure_without_an_error_is_internal(fields: dict[str, Any]) -> None:
    """Given a response that reports a failure and no error, I expect the code `internal`."""

    async def story() -> None:
        async with connected(write_timeout_ms=LONG_MS) as (client, keepsake):
            get = asyncio.create_task(client.profile_get("u1"))
            await keepsake.answer(await keepsake.request(), success=False, **fields)
            with pytest.raises(RequestFailed, match=r"^internal: the response has no error$"):
                await get
            assert client.counts == {"internal": 1}

    run(story)


class Recording(fakeredis.FakeAsyncRedis):
    """A Redis that keeps the requests that are pushed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.requests: list[dict[str, Any]] = []

    async def lpush(self, *args: Any) -> Any:
        self.requests.append(json.loads(args[1]))
        return await super().lpush(*args)


@pytest.mark.parametrize(("deadline_ms", "sent"), [(-5, 1), (0, 1), (1, 1), (2, 2), (700_000, 600_000)])
def test_a_deadline_is_sent_within_the_range_of_the_contract(deadline_ms: int, sent: int) -> None:
    """Given any deadline, as of a caller that subtracts, I expect the nearest one that the contract permits."""

    async def story() -> None:
        keepsake = Keepsake(fakeredis.FakeServer())
        redis = Recording(server=keepsake.server)
        async with AsyncClient(redis, write_timeout_ms=LONG_MS) as client:
            get = asyncio.create_task(client.profile_get("u1"))
            await keepsake.answer(await keepsake.request())
            await get  # the subscription is up: it costs no time of the next deadline
            get = asyncio.create_task(client.profile_get("u1", deadline_ms=deadline_ms))
            await eventually(lambda: len(redis.requests) == 2, description="the request")
            get.cancel()
            await asyncio.wait([get])
            assert redis.requests[-1]["data"]["deadline_ms"] == sent
        await redis.aclose()
        await keepsake.redis.aclose()

    run(story)


def test_an_invalid_request_is_not_sent() -> None:
    """Given a blank user, I expect an exception before anything is pushed, and an empty list from a search."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            with pytest.raises(InvalidMessage, match="user_id"):
                await client.add(" ", "fact")
            for value in (float("nan"), datetime(2024, 4, 5, tzinfo=UTC), b"bytes"):
                with pytest.raises(InvalidMessage, match="data"):
                    await client.add("u1", "fact", metadata={"a": value})
            assert await client.search("", "cat?") == []
            assert await client.search("u1", "cat?", filters={"since": datetime(2024, 4, 5, tzinfo=UTC)}) == []
            assert await keepsake.redis.exists("ltm_requests") == 0

    run(story)


def test_a_client_that_is_not_started_or_closed_fails_at_once() -> None:
    """Given no subscription, I expect an exception at once; after a start, responses again."""

    async def story() -> None:
        keepsake = Keepsake(fakeredis.FakeServer())
        client = AsyncClient(keepsake.redis, write_timeout_ms=LONG_MS)
        with pytest.raises(Unavailable, match=r"^the client is not started$"):
            await client.profile_get("u1")
        await client.start()
        get = asyncio.create_task(client.profile_get("u1"))
        await keepsake.request()
        await client.close()
        with pytest.raises(Unavailable):
            await get
        await client.start()
        get = asyncio.create_task(client.profile_get("u1"))
        await keepsake.answer(await keepsake.request())
        assert (await get).success
        await client.close()
        await keepsake.redis.aclose()

    run(story)


def test_a_lost_connection_fails_at_once_and_is_restored() -> None:
    """Given that Redis goes down and comes back, I expect pending requests to fail, later ones to fail at once, and
    responses after the reconnect."""

    async def story() -> None:
        async with connected(write_timeout_ms=LONG_MS, ping_interval_s=0.05) as (client, keepsake):
            add = asyncio.create_task(client.add("u1", "fact"))
            await keepsake.request()
            keepsake.server.connected = False
            with pytest.raises(Unavailable):
                await add
            assert await client.search("u1", "cat?", deadline_ms=LONG_MS) == []
            keepsake.server.connected = True

            async def serve() -> None:
                while True:
                    await keepsake.answer(await keepsake.request(), memories=[MEMORY])

            async def found() -> bool:
                return bool(await client.search("u1", "cat?", deadline_ms=LONG_MS))

            serving = asyncio.create_task(serve())
            await eventually(found, description="a search after the reconnect")
            serving.cancel()

    run(story)


def test_a_cancelled_request_leaves_nothing_pending() -> None:
    """Given a cancelled search, I expect no pending entry of it (checked as the client closes)."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "cat?", deadline_ms=LONG_MS))
            request = await keepsake.request()
            search.cancel()
            await asyncio.wait([search])
            await keepsake.answer(request)

    run(story)


class Stubborn(fakeredis.FakeAsyncRedis):
    """A Redis whose push swallows one cancellation, as redis-py's may before Python 3.12."""

    async def lpush(self, *_: Any) -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 1
        raise AssertionError("unreachable")


def test_a_swallowed_cancellation_does_not_extend_the_deadline() -> None:
    """Given a push that swallows the timeout's cancellation, I expect the timeout all the same."""

    async def story() -> None:
        redis: Redis = Stubborn(server=fakeredis.FakeServer())
        async with AsyncClient(redis) as client, asyncio.timeout(5):
            assert await client.search("u1", "cat?", deadline_ms=30) == []
            assert client.counts == {"timeout": 1}
        await redis.aclose()

    run(story)


class Hanging(fakeredis.FakeAsyncRedis):
    """A Redis that does not answer the commands in `hanging`; `commands` counts them."""

    hanging: frozenset[str] = frozenset()
    commands = 0

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] in self.hanging:
            self.commands += 1
            await asyncio.Event().wait()
        redis: Any = super()
        return await redis.execute_command(*args, **options)

    def pubsub(self, **options: Any) -> Any:
        pubsub: Any = super().pubsub(**options)
        subscribe = pubsub.subscribe

        async def hang_or_subscribe(*channels: str) -> None:
            if "SUBSCRIBE" in self.hanging:
                await asyncio.Event().wait()
            await subscribe(*channels)

        pubsub.subscribe = hang_or_subscribe
        return pubsub


@pytest.mark.parametrize("hanging", [["SUBSCRIBE"], ["LPUSH"], ["LREM"], ["LPUSH", "LREM"]], ids=" ".join)
def test_the_deadline_holds_whichever_command_hangs(hanging: list[str]) -> None:
    """Given a Redis that does not answer a command, I expect RequestTimeout soon after the deadline: at the
    subscription, the push, and the removal of the request."""

    async def story() -> None:
        redis = Hanging(server=fakeredis.FakeServer())
        redis.hanging = frozenset(hanging)
        async with AsyncClient(redis) as client, asyncio.timeout(5):
            with pytest.raises(RequestTimeout, match="no response to profile_get within 30 ms"):
                await client.profile_get("u1", deadline_ms=30)
        await redis.aclose()

    run(story)


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), ResponseError("no permissions"), BrokenPipeError()])
def test_a_removal_that_fails_does_not_hide_the_timeout(error: RedisError | OSError) -> None:
    """Given that an expired request cannot be removed, I expect RequestTimeout all the same."""

    async def story() -> None:
        async def refuse(*_: Any) -> None:
            raise error

        redis: Any = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
        redis.lrem = refuse
        async with AsyncClient(redis) as client:
            with pytest.raises(RequestTimeout):
                await client.profile_get("u1", deadline_ms=30)
        await redis.aclose()

    run(story)


def test_a_request_that_fails_twice_leaves_no_unretrieved_exception(caplog: pytest.LogCaptureFixture) -> None:
    """Given that the client is closed while a push hangs, and the deadline passes, I expect RequestTimeout, and
    nothing in the log of asyncio about the other exception."""

    async def story() -> None:
        redis = Hanging(server=fakeredis.FakeServer())
        redis.hanging = frozenset({"LPUSH"})
        client = AsyncClient(redis)
        await client.start()
        get = asyncio.create_task(client.profile_get("u1", deadline_ms=200))
        await eventually(lambda: redis.commands, description="the push")
        await client.close()
        with pytest.raises(RequestTimeout):
            await get
        await redis.aclose()

    run(story)
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


class HalfOpen(fakeredis.FakeAsyncRedis):
    """A Redis whose subscriptions fall silent while `silent` is set, as behind a firewall that drops packets."""

    silent = False
    subscriptions = 0
    pongs = 0

    def pubsub(self, **options: Any) -> Any:
        self.subscriptions += 1
        pubsub: Any = super().pubsub(**options)
        receive = pubsub.get_message

        async def get_message(timeout: float) -> Any:
            message = await receive(timeout=timeout)
            if self.silent and message is not None:
                await asyncio.sleep(timeout)
                return None
            self.pongs += message is not None and message["type"] == "pong"
            return message

        pubsub.get_message = get_message
        return pubsub


def test_a_silent_subscription_is_replaced() -> None:
    """Given that nothing arrives any more, not even answers to pings, I expect requests to fail at once until the
    client has subscribed anew, and responses then."""

    async def story() -> None:
        keepsake = Keepsake(fakeredis.FakeServer())
        redis = HalfOpen(server=keepsake.server)
        async with AsyncClient(redis, write_timeout_ms=LONG_MS, ping_interval_s=0.02, max_silence_s=0.1) as client:
            get = asyncio.create_task(client.profile_get("u1"))
            await keepsake.request()
            redis.silent = True
            with pytest.raises(Unavailable):
                await get
            redis.silent = False

            async def responds() -> bool:
                get = asyncio.create_task(client.profile_get("u1"))
                await asyncio.wait([get, asyncio.create_task(asyncio.sleep(0.05))], return_when="FIRST_COMPLETED")
                if get.done():
                    return get.exception() is None
                await keepsake.answer(await keepsake.request())
                return (await get).success

            await eventually(responds, description="a response over the new subscription")
            assert redis.subscriptions >= 2
        await redis.aclose()
        await keepsake.redis.aclose()

    run(story)


def test_an_idle_subscription_is_kept() -> None:
    """Given no traffic but answered pings for longer than the silence that is allowed, I expect it to stay."""

    async def story() -> None:
        redis = HalfOpen(server=fakeredis.FakeServer())
        async with AsyncClient(redis, ping_interval_s=0.02, max_silence_s=0.1):
            await eventually(lambda: redis.pongs >= 20, description="the answers to twenty pings")
            assert redis.subscriptions == 1
        await redis.aclose()

    run(story)


class Failing(fakeredis.FakeAsyncRedis):
    """A Redis on which every push fails with `error`."""

    error: RedisError | OSError

    async def lpush(self, *_: Any) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RedisConnectionError("gone"), "Redis does not answer: gone"),
        (RedisConnectionError(), "Redis does not answer: ConnectionError"),
        (BrokenPipeError(), "Redis does not answer: BrokenPipeError"),
        (ResponseError("wrong type: LPUSH my secret"), "Redis refused the command: ResponseError"),
        (
            ResponseError("Command # 1 (LPUSH my secret) of pipeline caused error: NOREPLICAS Not enough"),
            "Redis refuses writes: too few of its replicas are up to date",
        ),
        (ResponseError("MISCONF Redis is configured to"), "Redis refuses writes: it cannot write to its disk"),
        (ResponseError("UNBLOCKED force unblock from"), "Redis refuses writes: it becomes a replica"),
        (ReadOnlyError("You can't write"), "Redis refuses writes: it is a read-only replica"),
        (OutOfMemoryError("command not allowed"), "Redis refuses writes: it is full"),
    ],
    ids=repr,
)
def test_unavailable_names_the_cause_without_contents(error: RedisError | OSError, reason: str) -> None:
    """Given that a push fails, I expect its cause by message or else by type, and nothing of a quoted command."""

    async def story() -> None:
        redis = Failing(server=fakeredis.FakeServer())
        redis.error = error
        async with AsyncClient(redis) as client:
            with pytest.raises(Unavailable) as failed:
                await client.add("u1", "my secret")
            assert str(failed.value) == reason
            assert client.counts == {"unavailable": 1}
        await redis.aclose()

    run(story)


@asynccontextmanager
async def over_tcp() -> AsyncIterator[tuple[str, SwallowingProxy, Keepsake]]:
    """A Redis for clients made from a URL, behind a network that can swallow traffic; every request is answered."""
    server = fakeredis.TcpFakeServer(("127.0.0.1", 0))
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    keepsake = Keepsake(server.fake_server)

    async def answer_all() -> None:
        while True:
            await keepsake.answer(await keepsake.request())

    answering = asyncio.create_task(answer_all())
    try:
        async with SwallowingProxy(server.server_address[1]) as proxy:
            yield f"redis://127.0.0.1:{proxy.port}/0", proxy, keepsake
    finally:
        while not answering.done():  # redis-py may swallow a cancellation, see `AsyncClient.close`
            answering.cancel()
            await asyncio.wait([answering], timeout=0.1)
        server.shutdown()
        serving.join()
        server.server_close()
        await keepsake.redis.aclose()


async def silence(caplog: pytest.LogCaptureFixture) -> None:
    """Let the silence that is allowed pass until the client notices it; an answer may be on its way when it begins."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, AdvancedLoop)

    def noticed() -> bool:
        if "nothing received" in caplog.text:
            return True
        loop.ahead += 10
        return False

    await eventually(noticed, description="the silence")


def test_no_connection_from_before_a_silence_is_used_again(caplog: pytest.LogCaptureFixture) -> None:
    """Given that every open connection becomes half-open while new ones work, I expect every request to succeed once
    the client has subscribed anew: those of the pool are replaced as well."""

    async def story() -> None:
        async with (
            over_tcp() as (url, proxy, _),
            AsyncClient(url, write_timeout_ms=LONG_MS, ping_interval_s=0.05) as client,
        ):
            await asyncio.gather(*(client.profile_get("u1") for _ in range(5)))  # fills the pool of connections
            proxy.swallow()
            proxy.forward()
            await silence(caplog)
            await eventually(lambda: "reconnected" in caplog.text, description="the new subscription")
            await asyncio.gather(*(client.profile_get("u1") for _ in range(5)))
            assert client.counts == {"ok": 10}

    with caplog.at_level(logging.INFO), asyncio.Runner(loop_factory=AdvancedLoop) as runner:
        runner.run(story())
    assert [record.getMessage() for record in caplog.records if record.name.startswith("keepsake_client")] == [
        "ltm responses: Redis does not answer: nothing received for 10 s",
        "ltm responses: reconnected",
    ]


def test_half_open_connections_that_do_not_close_do_not_delay_the_subscription(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given that the closing of half-open connections hangs, I expect the client to subscribe anew without it."""
    close = Redis.aclose

    async def hang(redis: Redis) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await close(redis)

    async def story() -> None:
        async with (
            over_tcp() as (url, proxy, _),
            AsyncClient(url, write_timeout_ms=LONG_MS, ping_interval_s=0.05) as client,
        ):
            await client.profile_get("u1")
            with monkeypatch.context() as patched:
                patched.setattr(Redis, "aclose", hang)
                proxy.swallow()
                proxy.forward()
                await silence(caplog)
                await eventually(lambda: "reconnected" in caplog.text, description="the new subscription")
            assert (await client.profile_get("u1")).success

    with caplog.at_level(logging.INFO), asyncio.Runner(loop_factory=AdvancedLoop) as runner:
        runner.run(story())


def test_a_command_that_breaks_its_connection_is_not_repeated() -> None:
    """Given a Redis that closes the connection at a transaction, I expect one attempt, and an exception: redis-py's
    retries would cost the deadline, and could publish an event twice."""

    async def story() -> None:
        attempts = 0

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal attempts
            while data := await reader.read(65_536):
                if b"PUBLISH" in data:
                    attempts += 1
                    break
                writer.write(b"+OK\r\n" * data.count(b"*"))  # to each command of the connection's set-up
            writer.close()

        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
            client = AsyncClient(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0?protocol=2")
            with pytest.raises(Unavailable):
                await client.remember("u1", "tea")
            assert attempts == 1
            await client.close()

    asyncio.run(story())


def test_a_connection_that_never_answers_fails_after_the_silence_that_is_allowed() -> None:
    """Given a Redis that accepts connections and never answers, I expect Unavailable long before a late deadline."""

    async def story() -> None:
        async with over_tcp() as (url, proxy, _):
            proxy.swallow()
            client = AsyncClient(url, write_timeout_ms=LONG_MS, max_silence_s=0.1)
            with pytest.raises(Unavailable, match="Redis does not answer"):
                await client.remember("u1", "tea")
            await client.close()

    asyncio.run(story())


async def stream_entries(keepsake: Keepsake) -> list[dict[str, Any]]:
    entries: Any = await keepsake.redis.xrange("memory_updates:log")
    return [json.loads(fields[b"event"]) for _, fields in entries]


@asynccontextmanager
async def subscribed(keepsake: Keepsake) -> AsyncIterator[Callable[[], Awaitable[dict[str, Any]]]]:
    async with keepsake.redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("memory_updates")
        await pubsub.get_message(timeout=60)

        async def published() -> dict[str, Any]:
            message = await pubsub.get_message(timeout=60)
            assert message is not None, "nothing was published"
            return dict(json.loads(message["data"]))

        yield published


def test_a_remembered_message_is_in_the_stream_and_on_the_channel() -> None:
    """Given a message, I expect one event that the contract accepts in both places, with `logged` and an id."""

    async def story() -> None:
        async with connected() as (client, keepsake), subscribed(keepsake) as published:
            message_id = await client.remember(
                "u1", "我的猫叫豆包", source="ai", session="s1", timestamp=1_712_345_678, meta={"a": 1}, task_id="t1"
            )
            event = await published()
            assert event == {
                "user_id": "u1",
                "content": "我的猫叫豆包",
                "source": "ai",
                "timestamp": 1_712_345_678,
                "meta": {"a": 1, "session_id": "s1"},
                "message_id": message_id,
                "task_id": "t1",
                "logged": True,
            }
            assert await stream_entries(keepsake) == [event]
            assert parse_update(json.dumps(event).encode(), 100).message_id == message_id
            assert client.counts == {"ok": 1}

    run(story)


def test_a_time_without_a_zone_is_left_to_the_pipeline() -> None:
    """Given a time as a text, I expect it published as it is, stream or not: the pipeline knows the zone."""

    async def story() -> None:
        for refuses in (False, True):
            async with connected() as (client, keepsake), subscribed(keepsake) as published:
                if refuses:
                    await keepsake.redis.set(UPDATES_STREAM, "no stream")
                await client.remember("u1", "tea", timestamp="2024-04-05 20:00")
                event = await published()
                if refuses:  # the transaction had published it as logged
                    event = await published()
                assert (event["timestamp"], event.get("logged")) == ("2024-04-05 20:00", None if refuses else True)

    run(story)


def test_a_remembered_message_says_who_said_it_to_whom_and_for_how_long() -> None:
    """Given agent, speaker and expiry, I expect them in the event; a speaker may be a name alone."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            await client.remember("room", "tea", agent_id="luna", speaker={"id": "7"}, ttl_days=2)
            await client.remember("room", "tea", speaker="Anna")
            first, second = await stream_entries(keepsake)
            assert (first["agent_id"], first["speaker"]["id"], first["ttl_days"]) == ("luna", "7", 2)
            assert second["speaker"]["name"] == "Anna"
            assert "agent_id" not in second

    run(story)


def test_a_remembered_message_needs_only_user_and_content() -> None:
    """Given the least, I expect the user as source, the time of the call, and a new id for each message."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            ids = [await client.remember("u1", "tea"), await client.remember("u1", "tea")]
            assert await client.remember("u1", "tea", message_id="m1") == "m1"
            events = await stream_entries(keepsake)
            assert [event["message_id"] for event in events] == [*ids, "m1"]
            assert len(set(ids)) == 2
            assert {event["source"] for event in events} == {"user"}
            assert abs(events[0]["timestamp"] - time.time()) < 60
            assert "task_id" not in events[0]

    run(story)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"user_id": " "}, "user_id"),
        ({"content": ""}, "content"),
        ({"source": "system"}, "source"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"meta": {"x": float("inf")}}, "meta"),
        ({"meta": {"x": {1, 2}}}, "meta: set is not a JSON type"),
        ({"content": "长" * 200_000}, "bytes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_message_that_readers_would_reject_is_not_published(message: dict[str, Any], field: str) -> None:
    """Given an invalid message, I expect an exception that names the field and not its value, and nothing written."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            with pytest.raises(InvalidMessage, match=field) as invalid:
                await client.remember(**{"user_id": "u1", "content": "tea", **message})
            assert "yesterday" not in str(invalid.value)
            assert await stream_entries(keepsake) == []

    run(story)


class NoStream(fakeredis.FakeAsyncRedis):
    """A Redis that refuses XADD, and with it the transaction, as an ACL does or a full memory."""

    error: ResponseError = NoPermissionError("no permissions to run the 'xadd' command")

    def pipeline(self, *args: Any, **options: Any) -> Any:
        pipeline: Any = super().pipeline(*args, **options)

        async def execute(**_: Any) -> None:
            raise self.error

        pipeline.execute = execute
        return pipeline


def test_without_the_right_to_the_stream_a_message_is_published_without_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Given an ACL that lacks XADD, I expect the event on the channel alone, for the adapters to take it from there,
    and one warning for any number of messages."""

    async def story() -> None:
        keepsake = Keepsake(fakeredis.FakeServer())
        redis = NoStream(server=keepsake.server)
        client = AsyncClient(redis)
        async with subscribed(keepsake) as published:
            for content in ("tea", "coffee"):
                message_id = await client.remember("u1", content)
                event = await published()
                assert (event["content"], event["message_id"], "logged" in event) == (content, message_id, False)
        assert client.counts == {"unlogged": 2, "ok": 2}
        await redis.aclose()
        await keepsake.redis.aclose()

    with caplog.at_level(logging.WARNING):
        run(story)
    assert len(caplog.records) == 1
    assert "NoPermissionError" in caplog.text


@pytest.mark.parametrize(
    "error", [OutOfMemoryError("command not allowed"), ReadOnlyError("replica"), ResponseError("MISCONF no disk")]
)
def test_a_redis_that_refuses_every_write_is_unavailable(error: ResponseError) -> None:
    """Given a Redis that is full, I expect an exception: the adapters could not keep an event from the channel."""

    async def story() -> None:
        keepsake = Keepsake(fakeredis.FakeServer())
        redis = NoStream(server=keepsake.server)
        redis.error = error
        client = AsyncClient(redis)
        with pytest.raises(Unavailable, match="Redis refuses writes: it"):
            await client.remember("u1", "tea")
        assert client.counts == {"unavailable": 1}
        await redis.aclose()
        await keepsake.redis.aclose()

    run(story)


def test_a_stream_key_of_another_type_publishes_without_logged() -> None:
    """Given that XADD fails while PUBLISH works, I expect an unlogged event for the adapters, and a count."""

    async def story() -> None:
        async with connected() as (client, keepsake), keepsake.redis.pubsub() as channel:
            await channel.subscribe("memory_updates")
            await keepsake.redis.set("memory_updates:log", "not a stream")

            await client.remember("u1", "my secret")

            assert client.counts == {"unlogged": 1, "ok": 1}
            events: list[dict[str, Any]] = []
            while len(events) < 2:
                if (message := await channel.get_message(timeout=60)) and message["type"] == "message":
                    events.append(json.loads(message["data"]))
            assert ["logged" in event for event in events] == [True, False]
            assert events[0]["message_id"] == events[1]["message_id"]

    run(story)


@pytest.mark.parametrize(
    "arguments",
    [
        {"metadata": {"n": 10**5_000}},
        {"metadata": {"a": {(1, 2): 3}}},
        {"deadline_ms": "5"},
        {"deadline_ms": float("inf")},
        {"deadline_ms": float("nan")},
    ],
    ids=["a number of 5,000 digits", "a key that is a tuple", "text", "infinity", "no number"],
)
def test_arguments_that_are_no_json_are_invalid(arguments: dict[str, Any]) -> None:
    """Given arguments that JSON or the contract does not have, I expect InvalidMessage, counted, and nothing sent."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            with pytest.raises(InvalidMessage):
                await client.add("u1", "tea", **arguments)
            assert client.counts == {"invalid_request": 1}
            assert await keepsake.redis.llen("ltm_requests") == 0

    run(story)


@pytest.mark.parametrize("filters", [5, "ab", {"since": 10**5_000}], ids=["a number", "text", "5,000 digits"])
def test_a_search_with_wrong_filters_does_not_raise(filters: Any) -> None:
    """Given filters that are no object or no JSON, I expect no memories, and the cause in the counts."""

    async def story() -> None:
        async with connected() as (client, _):
            assert await client.search("u1", "tea?", filters=filters, deadline_ms=50) == []
            assert client.counts.total() == 1

    run(story)


def test_meta_that_is_no_object_is_invalid() -> None:
    async def story() -> None:
        async with connected() as (client, _):
            with pytest.raises(InvalidMessage):
                await client.remember("u1", "tea", meta=[1])  # type: ignore[arg-type]
            assert client.counts == {"invalid_request": 1}

    run(story)


def test_a_fraction_of_a_millisecond_is_rounded() -> None:
    """Given a computed remainder as deadline, I expect the contract's whole number on the wire."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "tea?", deadline_ms=600.4))  # type: ignore[arg-type]
            request = await keepsake.request()
            await keepsake.answer(request)
            await search
            assert request["data"]["deadline_ms"] == 600

    run(story)


def test_closing_twice_at_once_is_closing_once() -> None:
    async def story() -> None:
        async with connected() as (client, _):
            await asyncio.gather(client.close(), client.close())

    run(story)


def test_remember_without_redis_raises() -> None:
    """Given that Redis is down, I expect Unavailable, whether or not the client was started."""

    async def story() -> None:
        client = AsyncClient("redis://127.0.0.1:1/0")
        with pytest.raises(Unavailable, match="Redis does not answer"):
            await client.remember("u1", "tea")
        await client.close()

    asyncio.run(story())


def test_other_names_are_arguments() -> None:
    """Given other names of list, channels and stream, I expect those to be used."""

    async def story() -> None:
        names = {"updates_channel": "c", "updates_stream": "s", "requests_queue": "q", "responses_channel": "r"}
        async with connected(**names) as (client, keepsake):
            await client.remember("u1", "tea")
            assert await keepsake.redis.xlen("s") == 1
            search = asyncio.create_task(client.search("u1", "cat?", deadline_ms=LONG_MS))
            request = await keepsake.request("q")
            response = {"request_id": request["request_id"], "user_id": "u1", "success": True, "memories": [MEMORY]}
            await keepsake.redis.publish("r", json.dumps(response))
            assert len(await search) == 1

    run(story)


class Exploding:
    """A Redis on which every access is an error."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"Redis was touched: {name}")


def test_a_disabled_client_touches_nothing() -> None:
    """Given ENABLE_LTM=false and a Redis that raises on use, I expect an empty list from searches, and Disabled."""

    async def story() -> None:
        off: Any = Exploding()
        async with AsyncClient(off, enabled=False) as client:
            assert await client.search("u1", "cat?") == []
            for call, _, _ in CALLS.values():
                with pytest.raises(Disabled) as refused:
                    await call(client)
                assert isinstance(refused.value, KeepsakeError)
            with pytest.raises(Disabled):
                await client.remember("u1", "tea")

    run(story)


def test_an_unexpected_error_of_the_subscriber_is_counted_and_survived() -> None:
    """Given a shared client that decodes, and bytes that are no UTF-8, I expect a count and a new subscription."""

    async def story() -> None:
        server = fakeredis.FakeServer()
        keepsake = Keepsake(server)
        shared: Redis = fakeredis.FakeAsyncRedis(server=server, decode_responses=True)
        async with AsyncClient(shared) as client:
            await eventually(client._attempted.is_set, description="the subscription")
            await keepsake.redis.publish("ltm_responses", b"\xff")
            await eventually(lambda: client.counts["subscriber_failed"] == 1, description="the failure")
            await eventually(lambda: client._error is None, description="the next subscription")

            search = asyncio.create_task(client.search("u1", "tea?", deadline_ms=5_000))
            await keepsake.answer(await keepsake.request())
            assert await search == []
            assert client.counts["ok"] == 1
        await shared.aclose()
        await keepsake.redis.aclose()

    run(story)
