"""The gateway's `/metrics`: those of the whole stack, for Prometheus."""

from __future__ import annotations

import time

from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.access import Right
from services.gateway.app import CallerOf, Gateway
from services.gateway.request_scope import CLIENT_GONE
from services.runtime.metrics import Metrics
from services.runtime.stack_metrics import StackReader


def add_metrics(app: FastAPI, gateway: Gateway) -> None:
    """Add the route."""
    reader = StackReader(gateway.settings, gateway.redis)

    @app.get("/metrics", tags=["metrics"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(caller: CallerOf) -> Response:
        """The metrics of the whole stack in the text format of Prometheus; `keepsake_up 0` while Redis is down."""
        caller.check(Right.METRICS)
        registry = CollectorRegistry()
        registry.register(await reader.read())
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class ObserveRequests:
    """ASGI middleware that observes each HTTP request: its door, its status, and when its response began.

    Args:
        metrics: of this process.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        door = str(scope["path"]).lstrip("/").partition("/")[0]
        status: int | None = None

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._metrics.http(door, status, time.monotonic() - began)
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            if status is None:  # any fault is answered
                self._metrics.http(door, CLIENT_GONE, time.monotonic() - began)
