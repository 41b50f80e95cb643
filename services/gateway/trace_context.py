"""TraceContext: middleware that takes the `traceparent` of an HTTP request over to the wire."""

from __future__ import annotations

from typing import Final

from keepsake_client.protocol import read_traceparent
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.runtime.tracing import Spans, within

_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


class TraceContext:
    """ASGI middleware: runs each HTTP request under a span, a child of that of its header `traceparent`.

    The client of the wire finds it by `current_traceparent`, whichever door the request came by. A span has the method,
    the template of the path and the status, nothing else of the request.

    Args:
        spans: of this process; where it makes none, the header's value is passed on.
    """

    def __init__(self, app: ASGIApp, spans: Spans) -> None:
        self._app = app
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).getlist("traceparent")
        # Several are none, as W3C Trace Context has it.
        with within(self._spans, "http", read_traceparent(sent[0]) if len(sent) == 1 else None) as span:

            async def note_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.facts["http.response.status_code"] = status
                    if status >= 500:
                        span.facts["outcome"] = str(status)
                await send(message)

            try:
                await self._app(scope, receive, note_status)
            finally:
                method = scope["method"] if scope["method"] in _METHODS else "HTTP"
                path = getattr(scope.get("route"), "path_format", None)
                span.facts["name"] = method if path is None else f"{method} {scope.get('root_path', '')}{path}"
                span.facts["http.request.method"] = method
