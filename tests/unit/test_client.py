"""`Client`, for threads, against fakeredis; what it shares with `AsyncClient` is tested there."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fakeredis
import keepsake_client
import pytest
from keepsake_client import AsyncClient, Client, Context, Disabled, RequestFailed, RequestTimeout, Unavailable
from keepsake_client.async_client import ClientOptions

from tests.support import wait_until

LONG_MS = 60_000
MEMORY = {"id": "m1", "content": "My cat is Miso", "score": 0.9, "timestamp": 1_712_345_678}


class Keepsake(threading.Thread):
    """The other side of the wire: responds to each request with `respond`, which gets the request."""

    def __init__(self, server: fakeredis.FakeServer, respond: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._respond = respond
        self._ended = threading.Event()
        self.requests: list[dict[str, Any]] = []

    def run(self) -> None:
        redis: Any = fakeredis.FakeRedis(server=self._server)
        while not self._ended.is_set():
            if popped := redis.brpop(["ltm_requests"], timeout=0.05):
                request = json.loads(popped[1])
                self.requests.append(request)
                response = {"request_id": request["request_id"], "user_id": request["user_id"], "success": True}
                redis.publish("ltm_responses", json.dumps({**response, **self._respond(request)}))

    def end(self) -> None:
        self._ended.set()
        self.join()


@contextmanager
def responding(server: fakeredis.FakeServer, respond: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[Keepsake]:
    keepsake = Keepsake(server, respond)
    keepsake.start()
    try:
        yield keepsake
    finally:
        keepsake.end()


def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"memories": [{**MEMORY, "content": request["data"].get("query", "")}], "user_profile": request["data"]}


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


def client_of(server: fakeredis.FakeServer, **options: Any) -> Client:
    return Client(fakeredis.FakeAsyncRedis(server=server), **options)


def test_threads_share_one_client_and_one_subscription(server: fakeredis.FakeServer) -> None:
    """Given twenty threads that search at once, I expect each to get the response to its own request."""
    queries = [f"q{number}" for number in range(20)]
    with responding(server, echo), client_of(server) as client, ThreadPoolExecutor(20) as threads:
        found = list(threads.map(lambda query: client.search("u1", query, deadline_ms=LONG_MS), queries))
        subscriptions: Any = fakeredis.FakeRedis(server=server).pubsub_numsub("ltm_responses")

    assert [memories[0].content for memories in found] == queries
    assert subscriptions == [(b"ltm_responses", 1)]
    assert client.counts == {"ok": 20}


def test_every_verb_sends_its_request_and_returns_its_response(server: fakeredis.FakeServer) -> None:
    """Given each verb, I expect its type and data on the wire, and the response as a model."""
    with responding(server, echo) as keepsake, client_of(server, write_timeout_ms=LONG_MS) as client:
        options: dict[str, Any] = {
            "limit": 2,
            "min_score": 0,
            "filters": {"source": "user"},
            "exclude_session": "s1",
            "recency_half_life_days": 30,
            "include_superseded": True,
            "explain": True,
        }
        client.search("u1", "tea?", **options, deadline_ms=LONG_MS)
        asked: dict[str, Any] = {"max_chars": 900, "max_tokens": 300, "limit": 2, "filters": {"source": "user"}}
        context = client.context("u1", "tea?", session="s1", **asked, deadline_ms=LONG_MS)
        client.add("u1", "tea", metadata={"a": 1})
        client.profile_get("u1", history=True, cursor="7")
        client.profile_update("u1", {"a": None}, expected_version=2)
        client.memory_list("u1", agent_id="a")
        pages = list(client.memory_pages("u1", all_agents=True))
        client.memory_get("u1", "m1")
        client.memory_update("u1", "m1", content="tea")
        client.memory_delete("u1", ids=["m1"], dry_run=True)
        client.user_export("u1", limit=5, cursor="abc")
        client.user_import("u1", [{"kind": "profile"}], restore_deleted=True)
        client.user_forget("u1", dry_run=True)
        client.user_list("an", limit=2, cursor="anna")
        response = client.request("profile_update", "u1", {"updates": {"b": 1}})

    assert [(request["type"], request["data"]) for request in keepsake.requests] == [
        ("search", {"query": "tea?", **options, "deadline_ms": LONG_MS}),
        ("context", {"query": "tea?", "session_id": "s1", **asked, "deadline_ms": LONG_MS}),
        ("add", {"content": "tea", "metadata": {"a": 1}, "deadline_ms": LONG_MS}),
        ("profile_get", {"history": True, "cursor": "7", "deadline_ms": LONG_MS}),
        ("profile_update", {"updates": {"a": None}, "expected_version": 2, "deadline_ms": LONG_MS}),
        ("memory_list", {"agent_id": "a", "order": "newest", "limit": 50, "deadline_ms": LONG_MS}),
        ("memory_list", {"all_agents": True, "order": "newest", "limit": 100, "deadline_ms": LONG_MS}),
        ("memory_get", {"id": "m1", "deadline_ms": LONG_MS}),
        ("memory_update", {"id": "m1", "content": "tea", "deadline_ms": LONG_MS}),
        ("memory_delete", {"ids": ["m1"], "dry_run": True, "deadline_ms": LONG_MS}),
        ("user_export", {"limit": 5, "cursor": "abc", "deadline_ms": LONG_MS}),
        ("user_import", {"records": [{"kind": "profile"}], "restore_deleted": True, "deadline_ms": LONG_MS}),
        ("user_forget", {"dry_run": True, "deadline_ms": 60_000}),
        ("user_list", {"prefix": "an", "limit": 2, "cursor": "anna", "deadline_ms": LONG_MS}),
        ("profile_update", {"updates": {"b": 1}, "deadline_ms": LONG_MS}),
    ]
    assert len(pages) == 1
    assert [memory.content for memory in context.memories] == ["tea?"]
    assert response.user_profile == {"updates": {"b": 1}, "deadline_ms": LONG_MS}


def test_a_search_without_options_is_that_of_the_asyncio_client(server: fakeredis.FakeServer) -> None:
    """Given a query alone, I expect the default limit, the client's timeout as deadline, and no other option."""
    with responding(server, echo) as keepsake, client_of(server, search_timeout_ms=LONG_MS) as client:
        client.search("u1", "tea?")

    assert keepsake.requests[0]["data"] == {"query": "tea?", "limit": 5, "deadline_ms": LONG_MS}


def test_the_deadline_of_a_call_takes_the_place_of_the_clients(server: fakeredis.FakeServer) -> None:
    """Given a deadline on each call, I expect it to be sent, and waited for."""
    with responding(server, echo) as keepsake, client_of(server, write_timeout_ms=1) as client:
        client.add("u1", "tea", deadline_ms=LONG_MS)
        client.profile_get("u1", deadline_ms=LONG_MS)
        client.profile_update("u1", {"a": 1}, deadline_ms=LONG_MS)
        client.user_export("u1", deadline_ms=LONG_MS)
        client.user_import("u1", [], deadline_ms=LONG_MS)
        client.user_forget("u1", deadline_ms=LONG_MS)
        client.request("add", "u1", {"content": "tea"}, deadline_ms=LONG_MS)

    assert [request["data"]["deadline_ms"] for request in keepsake.requests] == [LONG_MS] * 7


def test_remember_returns_the_id_of_the_event(server: fakeredis.FakeServer) -> None:
    """Given a message, I expect its event in the stream under the id that is returned."""
    with client_of(server) as client:
        message_id = client.remember("u1", "tea", source="ai", session="s1", timestamp=1, meta={"a": 1}, task_id="t1")

    entries: Any = fakeredis.FakeRedis(server=server).xrange("memory_updates:log")
    assert json.loads(entries[0][1][b"event"]) == {
        "user_id": "u1",
        "content": "tea",
        "source": "ai",
        "timestamp": 1,
        "meta": {"a": 1, "session_id": "s1"},
        "message_id": message_id,
        "task_id": "t1",
        "logged": True,
    }


def test_a_remembered_message_needs_only_user_and_content(server: fakeredis.FakeServer) -> None:
    """Given the least, I expect the user as source; and the id of the caller where there is one."""
    with client_of(server) as client:
        assert client.remember("u1", "tea", message_id="m1") == "m1"

    entries: Any = fakeredis.FakeRedis(server=server).xrange("memory_updates:log")
    event = json.loads(entries[0][1][b"event"])
    assert (event["source"], event["message_id"]) == ("user", "m1")


def test_a_failed_request_raises_and_a_failed_search_returns_nothing(server: fakeredis.FakeServer) -> None:
    """Given error responses, I expect the same semantics as those of AsyncClient."""

    def refuse(_: dict[str, Any]) -> dict[str, Any]:
        return {"success": False, "error": "conflict: too late"}

    with responding(server, refuse), client_of(server) as client:
        assert client.search("u1", "tea?", deadline_ms=LONG_MS) == []
        with pytest.raises(RequestFailed, match="conflict: too late") as failed:
            client.request("search", "u1", {"query": "tea?"}, deadline_ms=LONG_MS)

    assert failed.value.code == "conflict"
    assert client.counts == {"conflict": 2}


def test_a_request_that_no_adapter_takes_is_removed_at_its_deadline(server: fakeredis.FakeServer) -> None:
    """Given no adapters, I expect RequestTimeout, an empty list from a search, and an empty request list."""
    with client_of(server) as client:
        with pytest.raises(
            RequestTimeout,
            match=r"within 30 ms; asked ltm_requests on Redis .*: no adapter of Keepsake is alive",
        ):
            client.profile_get("u1", deadline_ms=30)
        assert client.search("u1", "tea?", deadline_ms=30) == []

    assert fakeredis.FakeRedis(server=server).llen("ltm_requests") == 0


def test_before_start_and_after_close_requests_fail_at_once(server: fakeredis.FakeServer) -> None:
    """Given a client that is not open, I expect Unavailable, and an empty list from a search."""
    client = client_of(server)
    for again in (False, True):
        with pytest.raises(Unavailable, match=r"^the client is not started in this process, or closed$"):
            client.profile_get("u1")
        assert client.search("u1", "tea?") == []
        assert client.context("u1", "tea?") == Context()
        if not again:
            client.start()
        client.close()


def test_a_closed_client_is_not_started_again(server: fakeredis.FakeServer) -> None:
    client = client_of(server)
    client.start()
    client.close()

    with pytest.raises(Unavailable, match="a closed client is not started again"):
        client.start()


def test_in_a_forked_child_requests_fail_at_once(server: fakeredis.FakeServer) -> None:
    """Given a client that was started before a fork, I expect the child, which has no such thread, not to wait."""
    with client_of(server) as client:
        client._pid += 1  # what a child sees: another process started it
        with pytest.raises(Unavailable, match="not started in this process"):
            client.profile_get("u1")
        client._pid -= 1


def test_a_signal_handler_closes_the_client_of_the_thread_it_interrupts(server: fakeredis.FakeServer) -> None:
    """Given a thread that holds the client's lock as a handler closes it, I expect no deadlock."""
    client = client_of(server)
    client.start()
    with client._lock:
        client.close()

    assert client.search("u1", "tea?") == []


def test_close_ends_requests_of_other_threads(server: fakeredis.FakeServer) -> None:
    """Given a thread that waits for a response, I expect close to end its wait and the background thread."""
    client = client_of(server)
    client.start()
    with ThreadPoolExecutor() as threads:
        pending = threads.submit(client.profile_get, "u1", deadline_ms=LONG_MS)
        redis = fakeredis.FakeRedis(server=server)
        wait_until(lambda: redis.llen("ltm_requests"), description="the request")
        began = time.monotonic()
        client.close()
        with pytest.raises(Unavailable):
            pending.result()
    assert time.monotonic() - began < LONG_MS / 1000 / 2
    assert "keepsake-client" not in {thread.name for thread in threading.enumerate()}


class Hanging(fakeredis.FakeAsyncRedis):
    """A Redis whose push never returns."""

    pushes = 0

    async def lpush(self, *_: Any) -> int:
        self.pushes += 1
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


def test_close_ends_requests_that_wait_for_redis(server: fakeredis.FakeServer) -> None:
    """Given threads whose requests hang in their push, I expect close to end both, as a closed client's."""
    redis = Hanging(server=server)
    client = Client(redis)
    client.start()
    with ThreadPoolExecutor() as threads:
        get = threads.submit(client.profile_get, "u1", deadline_ms=LONG_MS)
        search = threads.submit(client.search, "u1", "tea?", deadline_ms=LONG_MS)
        wait_until(lambda: redis.pushes == 2, description="both pushes")
        client.close()
        with pytest.raises(Unavailable, match=r"^the client is closed$"):
            get.result()
        assert search.result() == []


def test_a_client_that_is_not_closed_does_not_keep_the_process_alive(server: fakeredis.FakeServer) -> None:
    """Given an open client, I expect its thread under its name, as a daemon: the interpreter does not wait for it."""
    with client_of(server):
        assert [thread.daemon for thread in threading.enumerate() if thread.name == "keepsake-client"] == [True]


def test_an_interrupted_wait_leaves_nothing_pending(
    server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given Ctrl-C during a request, I expect the request to be cancelled in the background thread as well."""
    redis = Hanging(server=server)

    def interrupt(*_: Any) -> None:
        wait_until(lambda: redis.pushes, description="the push")
        raise KeyboardInterrupt

    with Client(redis) as client:
        monkeypatch.setattr("concurrent.futures.Future.result", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.profile_get("u1", deadline_ms=LONG_MS)
        monkeypatch.undo()
        wait_until(lambda: client._client._pending == {}, description="no pending request")


def test_a_disabled_client_touches_nothing() -> None:
    """Given ENABLE_LTM=false and no Redis, I expect an empty list from searches, and Disabled."""
    with Client("redis://127.0.0.1:1/0", enabled=False) as client:
        assert client.search("u1", "tea?") == []
        with pytest.raises(Disabled):
            client.remember("u1", "tea")


def test_without_redis_requests_fail_at_once() -> None:
    """Given that Redis is down, I expect Unavailable long before the deadline, with the cause in words."""
    with Client("redis://127.0.0.1:1/0") as client:
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"Redis does not answer: .*127\.0\.0\.1:1"):
            client.profile_get("u1", deadline_ms=LONG_MS)
        assert time.monotonic() - began < LONG_MS / 1000 / 2


def verbs(cls: type) -> dict[str, list[tuple[str, Any, Any]]]:
    return {
        name: [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }


def test_both_clients_have_the_same_verbs_and_options() -> None:
    """Given both classes, I expect the same methods with the same arguments and defaults, and every option named."""
    assert verbs(Client) == verbs(AsyncClient)
    options = [p.name for p in inspect.signature(AsyncClient).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert sorted(options) == sorted(ClientOptions.__annotations__)


def test_the_client_imports_redis_and_pydantic_alone() -> None:
    """Given the package's source, I expect imports of the standard library, redis, pydantic and itself, and no other
    dependency declared: a bot installs this package."""
    package = Path(keepsake_client.__file__).resolve().parent
    imported = {
        name.partition(".")[0]
        for file in package.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names == {"keepsake_client", "pydantic", "redis"}
    declared = tomllib.loads((package.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    assert sorted(re.match(r"[\w-]+", requirement)[0] for requirement in declared) == ["pydantic", "redis"]  # type: ignore[index]
    assert (package / "py.typed").exists()
