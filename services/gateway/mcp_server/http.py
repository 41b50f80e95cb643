"""The door `/mcp`: MCP over streamable HTTP, without sessions, so that a restart loses none and none can be shared."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Response
from keepsake_client.errors import InvalidMessage, KeepsakeError
from keepsake_client.protocol import MAX_MESSAGE_BYTES
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import INVALID_REQUEST
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from services.gateway.access import NotPermitted
from services.gateway.app import CallerOf, Gateway
from services.gateway.mcp_server.asker import Asker
from services.gateway.mcp_server.server import Context, build_server
from services.gateway.problems import STATUS

PATH: Final = "/mcp"


class Exchange(Response):
    """The response that the SDK sends to one request: JSON, or a stream of events.

    Args:
        sessions: the SDK's handler of requests.
    """

    def __init__(self, sessions: StreamableHTTPSessionManager) -> None:
        super().__init__()
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._sessions.handle_request(scope, receive, send)


def mcp_door(app: FastAPI, gateway: Gateway) -> None:
    """Add `/mcp`. The SDK's check of Host and Origin is off: the authenticator makes it, where it is needed."""
    sessions = StreamableHTTPSessionManager(
        build_server(gateway, _asker), stateless=True, max_request_body_size=MAX_MESSAGE_BYTES
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with sessions.run():
            yield

    router = APIRouter(lifespan=lifespan)

    # Not GET: the server says nothing that it was not asked, and a stream without an end would hold up every stop.
    @router.post(PATH, include_in_schema=False)
    async def exchange(request: Request, caller: CallerOf) -> Response:
        try:
            request.state.asker = Asker.of_request(caller, request)
        except (NotPermitted, InvalidMessage) as error:
            return _refusal(error)
        return Exchange(sessions)

    app.include_router(router)


def _refusal(error: KeepsakeError) -> Response:
    """The refusal as an error of JSON-RPC: clients of MCP show its words, and none of problem details."""
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": INVALID_REQUEST, "message": f"{error.code}: {error}"}}
    return JSONResponse(body, STATUS[error.code])


def _asker(context: Context) -> Asker:
    assert context.request is not None  # noqa: S101  the transport attaches it
    asker: Asker = context.request.state.asker
    return asker
