"""The application: the gateway's doors, assembled on FastAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Protocol

from fastapi import Depends, FastAPI, Request
from keepsake_client import AsyncClient
from keepsake_client.protocol import COUNTERS
from redis.asyncio import Redis

from services.gateway.access import OPEN, Caller
from services.gateway.openapi import openapi_of
from services.gateway.problems import add_problem_handlers
from services.gateway.request_scope import RequestMiddleware
from services.gateway.trace_context import TraceContext
from services.runtime.counters import PendingCounts
from services.runtime.settings import Settings
from services.runtime.tracing import NO_SPANS, Spans


class Authenticator(Protocol):
    """Finds the caller of a request."""

    def caller(self, request: Request) -> Caller:
        """The caller of a request, who is counted against its rate.

        Raises:
            Unauthorized: it has no valid key or token.
        """

    def identify(self, request: Request) -> Caller:
        """The caller of a request, who is not counted: of what goes on, such as a WebSocket.

        Raises:
            Unauthorized: it has no valid key or token.
        """


class OpenDoor:
    """Every request's caller may do everything: on the loopback interface, while there is no key."""

    def caller(self, request: Request) -> Caller:
        """The caller who may do everything."""
        return OPEN

    identify = caller


@dataclass(frozen=True)
class Gateway:
    """What the doors need, as `app.state.gateway`.

    Args:
        settings: of the process.
        ltm: the client of the wire; the only way into the memory.
        redis: for what the gateway keeps itself, and for traces and figures of the stack.
        authenticator: finds the caller of a request.
        counts: for `ltm:counters`.
        spans: of this process; by default none are made.
    """

    settings: Settings
    ltm: AsyncClient
    redis: Redis
    authenticator: Authenticator
    counts: PendingCounts = field(default_factory=lambda: PendingCounts(COUNTERS))
    spans: Spans = NO_SPANS


# Both are coroutines: FastAPI runs other functions in a thread, which takes longer than they do.
async def gateway_of(request: Request) -> Gateway:
    """The gateway that serves a request: a FastAPI dependency."""
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayOf = Annotated[Gateway, Depends(gateway_of)]


async def caller_of(request: Request, gateway: GatewayOf) -> Caller:
    """The caller of a request: a FastAPI dependency.

    Raises:
        Unauthorized
    """
    return gateway.authenticator.caller(request)


CallerOf = Annotated[Caller, Depends(caller_of)]
#: Adds the routes of one door to the application.
Door = Callable[[FastAPI, Gateway], None]


def create_app(gateway: Gateway, doors: Sequence[Door] = ()) -> FastAPI:
    """The application.

    Args:
        doors: each adds its routes.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.counts.written(gateway.redis):  # those of the doors' ends, too
            yield

    app = FastAPI(
        title="Keepsake",
        version=version("keepsake-ltm"),
        # FastAPI's pages of documentation load their scripts from another host.
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        redirect_slashes=False,
        lifespan=lifespan,
        # FastAPI's own spans have the path and query of a request, which hold user ids and contents.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.gateway = gateway
    add_problem_handlers(app)
    app.add_middleware(TraceContext, spans=gateway.spans)
    for door in doors:
        door(app, gateway)
    app.openapi = openapi_of(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    app.add_middleware(RequestMiddleware, counts=gateway.counts)
    return app
