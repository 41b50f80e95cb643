"""The long-term memory's client, against an answerer that the test plays itself, on a fake Redis."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import fakeredis
import pytest
from keepsake_client.async_client import AsyncClient
from keepsake_client.errors import Disabled, InvalidMessage, KeepsakeError, RequestFailed, RequestTimeout, Unavailable
from keepsake_client.protocol import LTMResponse, Memory, parse_request
from redis.asyncio import Redis

from tests.support import eventually

LONG_MS = 10_000
MEMORY = {"id": "m1", "content": "My cat is Miso", "score": 0.9, "timestamp": 1_712_345_678}


class Keepsake:
    """The other side: sees requests and answers as the test says."""

    def __init__(self, server: fakeredis.FakeServer) -> None:
        self.server = server
        self.redis: Redis = fakeredis.FakeAsyncRedis(server=server)

    async def request(self) -> dict[str, Any]:
        async def taken() -> Any:
            return await self.redis.rpop("ltm_requests")

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


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def redact() -> None:
        await story()

    asyncio.run(redact())


def test_a_search_finds_what_the_response_holds() -> None:
    """Given an answerer, I expect a request the contract accepts, and the memories of its response."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "cat?", limit=3, timeout_ms=LONG_MS, hint="x"))
            request = await keepsake.request()
            parse_request(json.dumps(request).encode(), 100)
            assert (request["type"], request["user_id"]) == ("search", "u1")
            assert request["data"] == {"query": "cat?", "limit": 3, "deadline_ms": LONG_MS, "hint": "x"}
            await keepsake.answer(request, memories=[MEMORY])
            assert await search == [Memory.model_validate(MEMORY)]
            assert client.counts == {"ok": 1}

    run(story)


def test_nothing_is_asked_before_somebody_listens() -> None:
    """Given a request at once, I expect that the subscription stood when it arrived."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "cat?", timeout_ms=LONG_MS))
            request = await keepsake.request()
            assert await keepsake.redis.pubsub_numsub("ltm_responses") == [(b"ltm_responses", 1)]
            await keepsake.answer(request)
            assert await search == []

    run(story)


def test_answers_find_their_askers_whatever_their_order() -> None:
    """Given ten askers and answers in reverse, I expect each to get its own, over one subscription."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            searches = [asyncio.create_task(client.search(f"u{n}", f"q{n}", timeout_ms=LONG_MS)) for n in range(10)]
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
def test_an_answer_to_somebody_else_is_ignored(foreign: dict[str, Any]) -> None:
    """Given that another asker's answer comes first, I expect our own."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "cat?", timeout_ms=LONG_MS))
            request = await keepsake.request()
            await keepsake.answer(request, **{"memories": [{**MEMORY, "content": "not yours"}], **foreign})
            for noise in (b"no json", b"[]", b"\xff", b"[" * 100_000):
                await keepsake.redis.publish("ltm_responses", noise)
            await keepsake.answer(request, memories=[MEMORY])
            assert [memory.content for memory in await search] == ["My cat is Miso"]

    run(story)


def test_a_search_without_an_answer_finds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Given that nobody answers, I expect no memories after the wait, a count, a warning without the words said."""

    async def story() -> None:
        async with connected(search_timeout_ms=30) as (client, keepsake):
            assert await client.search("u1", "my secret") == []
            assert client.counts == {"timeout": 1}
            request = await keepsake.request()
            assert request["data"]["deadline_ms"] == 30
            # Its answer comes late, and twice; the next search is not confused by it.
            for _ in range(2):
                await keepsake.answer(request, memories=[MEMORY])
            search = asyncio.create_task(client.search("u1", "again", timeout_ms=LONG_MS))
            await keepsake.answer(await keepsake.request())
            assert await search == []
            assert client.counts == {"timeout": 1, "ok": 1}

    with caplog.at_level(logging.WARNING):
        run(story)
    assert "timeout" in caplog.text
    assert "secret" not in caplog.text


def test_a_search_answered_by_an_error_finds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Given an error response, I expect no memories, and the error's code in the log without its words."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "cat?", timeout_ms=LONG_MS))
            await keepsake.answer(await keepsake.request(), success=False, error="too_large: my secret is too long")
            assert await search == []
            assert client.counts == {"request_failed": 1}

    run(story)
    assert "too_large" in caplog.text
    assert "secret" not in caplog.text


def test_a_response_that_cannot_be_read_is_a_failure_at_once() -> None:
    """Given our answer in a broken shape, I expect a typed error instead of the whole wait."""

    async def story() -> None:
        async with connected(write_timeout_ms=LONG_MS) as (client, keepsake):
            get = asyncio.create_task(client.profile_get("u1"))
            await keepsake.answer(await keepsake.request(), memories="none")
            with pytest.raises(RequestFailed, match="invalid_response"):
                await get

    run(story)


Call = Callable[[AsyncClient], Awaitable[LTMResponse]]
CALLS: dict[str, tuple[Call, str, dict[str, Any]]] = {
    "add": (lambda c: c.add("u1", "fact", {"a": 1}), "add", {"content": "fact", "metadata": {"a": 1}}),
    "profile_get": (lambda c: c.profile_get("u1"), "profile_get", {}),
    "profile_update": (lambda c: c.profile_update("u1", {"a": 1}), "profile_update", {"updates": {"a": 1}}),
    "guarded update": (
        lambda c: c.profile_update("u1", {"a": None}, expected_version=2),
        "profile_update",
        {"updates": {"a": None}, "expected_version": 2},
    ),
}


@pytest.mark.parametrize(("call", "kind", "data"), CALLS.values(), ids=CALLS.keys())
def test_the_other_requests_return_their_response(call: Call, kind: str, data: dict[str, Any]) -> None:
    """Given an answerer, I expect the request as the contract has it, and the response as a model."""

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


@pytest.mark.parametrize("call", [call for call, _, _ in CALLS.values()], ids=CALLS.keys())
def test_the_other_requests_raise_when_nobody_answers(call: Call) -> None:
    """Given that nobody answers, I expect a typed time-out."""

    async def story() -> None:
        async with connected(write_timeout_ms=30) as (client, _):
            with pytest.raises(RequestTimeout):
                await call(client)

    run(story)


def test_a_refused_write_raises_with_the_responses_own_error() -> None:
    """Given a conflict, I expect its words in the error."""

    async def story() -> None:
        async with connected(write_timeout_ms=LONG_MS) as (client, keepsake):
            update = asyncio.create_task(client.profile_update("u1", {}, expected_version=1))
            await keepsake.answer(await keepsake.request(), success=False, error="conflict: at version 2")
            with pytest.raises(RequestFailed, match=r"^conflict: at version 2$"):
                await update

    run(story)


def test_a_request_that_could_not_succeed_is_not_sent() -> None:
    """Given a blank user, I expect an error before anything is pushed, and no memories from a search."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            with pytest.raises(InvalidMessage, match="user_id"):
                await client.add(" ", "fact")
            with pytest.raises(InvalidMessage, match="data"):
                await client.add("u1", "fact", {"a": float("nan")})
            assert await client.search("", "cat?") == []
            assert await keepsake.redis.exists("ltm_requests") == 0

    run(story)


def test_a_client_that_is_not_started_or_closed_says_so() -> None:
    """Given no listener, I expect an error at once rather than a wait for nothing; after a start, service again."""

    async def story() -> None:
        keepsake = Keepsake(fakeredis.FakeServer())
        client = AsyncClient(keepsake.redis, write_timeout_ms=LONG_MS)
        with pytest.raises(Unavailable):
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


def test_a_broken_connection_fails_fast_and_heals() -> None:
    """Given that Redis goes and comes back, I expect waiting askers freed, nothing found meanwhile, then service."""

    async def story() -> None:
        async with connected(write_timeout_ms=LONG_MS) as (client, keepsake):
            add = asyncio.create_task(client.add("u1", "fact"))
            await keepsake.request()
            keepsake.server.connected = False
            with pytest.raises(Unavailable):
                await add
            assert await client.search("u1", "cat?", timeout_ms=LONG_MS) == []
            keepsake.server.connected = True

            async def serve() -> None:
                while True:
                    await keepsake.answer(await keepsake.request(), memories=[MEMORY])

            async def found() -> bool:
                return bool(await client.search("u1", "cat?", timeout_ms=LONG_MS))

            serving = asyncio.create_task(serve())
            await eventually(found, description="a search after the reconnect")
            serving.cancel()

    run(story)


def test_an_asker_that_gives_up_leaves_nothing_behind() -> None:
    """Given a cancelled search, I expect its place cleared (checked as the client closes)."""

    async def story() -> None:
        async with connected() as (client, keepsake):
            search = asyncio.create_task(client.search("u1", "cat?", timeout_ms=LONG_MS))
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


def test_a_swallowed_cancellation_does_not_stretch_the_wait() -> None:
    """Given a push during which the time-out is swallowed, I expect the time-out all the same."""

    async def story() -> None:
        redis: Redis = Stubborn(server=fakeredis.FakeServer())
        async with AsyncClient(redis) as client, asyncio.timeout(5):
            assert await client.search("u1", "cat?", timeout_ms=30) == []
            assert client.counts == {"timeout": 1}
        await redis.aclose()

    run(story)


class Exploding:
    """A Redis that nobody may touch."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"Redis was touched: {name}")


def test_switched_off_it_touches_nothing() -> None:
    """Given ENABLE_LTM=false and a Redis that explodes on use, I expect no memories and typed errors."""

    async def story() -> None:
        off: Any = Exploding()
        async with AsyncClient(off, enabled=False) as client:
            assert await client.search("u1", "cat?") == []
            for call, _, _ in CALLS.values():
                with pytest.raises(Disabled) as refused:
                    await call(client)
                assert isinstance(refused.value, KeepsakeError)

    run(story)
