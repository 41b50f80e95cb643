"""Middleware for every request: its id, bounds on its body, an access log, and an answer to any fault."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, Final
from urllib.parse import unquote_to_bytes
from uuid import uuid4

import structlog
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import MAX_MESSAGE_BYTES
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.problems import internal_problem, problem_of, problem_response
from services.runtime.counters import PendingCounts

REQUEST_ID: Final = "X-Request-ID"
#: The id on the wire of the one request that answered, as `ltm trace` finds it.
WIRE_REQUEST_ID: Final = "X-Keepsake-Request-ID"
#: How long a body is waited for in all, beyond what it takes at the least rate; then it is given up, for it holds a
#: connection.
MAX_STALL_S: Final = 30.0
MIN_BYTES_S: Final = 500
#: Of a request's body: as much as a message on the wire has, and what is sent as a stream, or holds images.
MAX_BODY_BYTES: Final = MAX_MESSAGE_BYTES
BODY_LIMITS: Final = {"/v1/users/import": 1 << 30, "/openai/": 32 << 20, "/console/_nicegui/client/": 1 << 30}
#: The status, in metrics, of a request whose client has hung up before its response.
CLIENT_GONE: Final = 499
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")

log = structlog.get_logger()


class ResponseAborted(Exception):
    """A response that has begun cannot be completed: its connection is closed, so that it does not look complete."""


class RequestMiddleware:
    """The outermost middleware of the application.

    It sets `request.state.request_id`, and returns it and `request.state.wire_request_id` as headers. An exception that
    nothing handled is logged, counted as `gateway_failed` and answered as a problem that says nothing of it.

    Args:
        counts: where faults are counted.
        max_stall_s: how long a body is waited for in all, beyond what it takes at `MIN_BYTES_S`.
    """

    def __init__(self, app: ASGIApp, counts: PendingCounts, max_stall_s: float = MAX_STALL_S) -> None:
        self._app = app
        self._counts = counts
        self._max_stall_s = max_stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        status, begun = 0, time.perf_counter()

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                headers.setdefault("Cache-Control", "no-store")  # what is kept of a user is in no other place's cache
                if wire_request_id := state.get("wire_request_id"):
                    headers[WIRE_REQUEST_ID] = wire_request_id
            await send(message)

        try:
            if _is_utf8(scope["query_string"]):
                await self._app(scope, self._bounded(scope, receive), send_with_ids)
            else:
                problem = problem_of(InvalidMessage("the query of the URL is not UTF-8"), request_id)
                await problem_response(problem)(scope, receive, send_with_ids)
        except (ResponseAborted, ClientDisconnect, asyncio.CancelledError):
            pass  # the server, which cancels when it stops, closes the connection of a response that is not complete
        except Exception:
            log.exception("request_failed", request_id=request_id, path=_path(scope))
            self._counts.count("gateway_failed")
            if not status:
                await problem_response(internal_problem(request_id))(scope, receive, send_with_ids)
        finally:
            ms = round((time.perf_counter() - begun) * 1000, 1)
            log.debug(
                "request", request_id=request_id, method=scope["method"], path=_path(scope), status=status, took_ms=ms
            )

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, which fails with 413 where the body is too large, and with 408 where it stalls."""
        limit = _limit(scope["path"])
        length = Headers(scope=scope).get("content-length", "")
        size, is_body = int(length) if length.isdecimal() else 0, True
        received, waited_s = 0, 0.0

        async def receive_bounded() -> Message:
            nonlocal received, waited_s, is_body
            if not is_body:
                return await receive()
            if size <= limit:
                begun = time.monotonic()
                try:
                    async with asyncio.timeout(max(0.0, self._max_stall_s + received / MIN_BYTES_S - waited_s)):
                        message = await receive()
                except TimeoutError:
                    raise HTTPException(408, "the body comes too slowly") from None
                waited_s += time.monotonic() - begun
                received += len(message.get("body", b""))
            if max(size, received) > limit:
                raise HTTPException(413, f"the body is larger than {limit} bytes")
            is_body = message["type"] == "http.request" and message.get("more_body", False)
            return message

        return receive_bounded


def _limit(path: str) -> int:
    """The most bytes of a body for this path."""
    return next((limit for prefix, limit in BODY_LIMITS.items() if path.startswith(prefix)), MAX_BODY_BYTES)


def _is_utf8(query: bytes) -> bool:
    """Whether a query is UTF-8: two ids that are not would be read as the same."""
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return False
    return True


def _path(scope: Scope) -> str:
    """The path of the route that a request was for, without the values in it."""
    return str(getattr(scope.get("route"), "path", ""))
