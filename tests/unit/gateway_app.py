"""The gateway's application over fakeredis; the test is the memory behind it, and says who calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import fakeredis
import httpx
from fastapi import FastAPI
from keepsake_client import AsyncClient
from keepsake_client.errors import RequestFailed
from keepsake_client.protocol import COUNTERS, LTMResponse, RequestType
from redis.asyncio import Redis

from services.gateway.access import OPEN
from services.gateway.app import Gateway, create_app
from services.gateway.request_scope import RequestMiddleware
from services.runtime.settings import load_settings
from tests.served_gateway import OneCaller

MEMORY: dict[str, Any] = {
    "id": "5d1c2f0e-8c1b-5a55-9a6e-0f8f7f0c3a11",
    "content": "My cat is Mochi",
    "timestamp": 86_400,
}
#: What the memory answers by default.
ANSWERS: dict[str, dict[str, Any]] = {
    **{key: {"memories": [MEMORY]} for key in ("search", "add", "memory_list", "memory_update")},
    **{key: {"count": 1, "known": 2, "deleted": 3} for key in ("memory_delete", "user_forget", "user_import")},
    **{key: {"user_profile": {"name": "Anna"}, "profile_version": 3} for key in ("profile_get", "profile_update")},
    "memory_get": {"memories": [MEMORY], "history": []},
    "context": {"context": "What follows", "context_parts": {}, "memories": [MEMORY]},
    "user_list": {"users": [{"user_id": "u1", "memories": 3}, {"user_id": "u12"}], "next_cursor": "u12"},
    "user_export": {"records": [{"kind": "memory", "content": "My cat is Mochi"}]},
}
#: Answers a request of this type and data with fields of its response, or raises.
Answer = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]


class Memory(AsyncClient):
    """A client whose requests the test answers; it keeps them. What is remembered is published on fakeredis."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.reset()

    def reset(self) -> None:
        """Forget the requests, and answer as at the beginning."""
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.ids: list[str | None] = []
        self.deadlines: list[int | None] = []
        self.answer: Answer = lambda request_type, _: ANSWERS[request_type]

    async def request(
        self,
        request_type: RequestType,
        user_id: str,
        data: Mapping[str, Any],
        *,
        deadline_ms: int | None = None,
        request_id: str | None = None,
    ) -> LTMResponse:
        self.requests.append((request_type, user_id, dict(data)))
        self.ids.append(request_id)
        self.deadlines.append(deadline_ms)
        fields = {"request_id": "r", "user_id": user_id, "success": True, **self.answer(request_type, data)}
        return LTMResponse.model_validate(fields)

    def fails(self, error: Exception | str) -> None:
        """Have every request fail, with this error or with this `error` of a response."""

        def answer(*_: Any) -> Mapping[str, Any]:
            raise RequestFailed(error) if isinstance(error, str) else error

        self.answer = answer


class GatewayApp:
    """The application, and a client of it."""

    def __init__(self, doors: tuple[Any, ...], **settings: Any) -> None:
        self.runner = asyncio.Runner()
        self.server = fakeredis.FakeServer()
        self.redis: Any = fakeredis.FakeAsyncRedis(server=self.server)
        self.memory = Memory(self.redis)
        self.keys = OneCaller()
        self.gateway = Gateway(load_settings(**settings), self.memory, self.redis, self.keys)
        self.app: FastAPI = create_app(self.gateway, doors)

    def reset(self) -> None:
        """Begin as at first: for the next test."""
        self.memory.reset()
        self.keys.of = OPEN
        self.counted()
        self.run(self.redis.flushall())

    def send(self, method: str, path: str, **given: Any) -> httpx.Response:
        """The response to one request."""
        response: httpx.Response = self.run(self.fetch(method, path, **given))
        return response

    async def fetch(self, method: str, path: str, **given: Any) -> httpx.Response:
        """`send` for a running loop."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path, **given)

    def run(self, coroutine: Any) -> Any:
        """The result of a coroutine on the application's loop."""
        return self.runner.run(coroutine)

    def counted(self) -> dict[bytes, bytes]:
        """The counts, once they are written."""
        self.run(self.gateway.counts.flush_async(self.redis))
        counts: dict[bytes, bytes] = self.run(self.redis.hgetall(COUNTERS))
        return counts

    def impatient(self, max_stall_s: float) -> RequestMiddleware:
        """The application with another bound on a body that stalls."""
        return RequestMiddleware(self.app, self.gateway.counts, max_stall_s)


@contextmanager
def gateway_app(*doors: Any, **settings: Any) -> Iterator[GatewayApp]:
    """The application with these doors, closed at the end."""
    app = GatewayApp(doors, **settings)
    try:
        yield app
    finally:
        app.runner.run(app.redis.aclose())
        app.runner.close()
