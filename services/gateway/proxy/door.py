"""The door of the OpenAI-compatible proxy: `/openai/v1/chat/completions` and `/openai/v1/models`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request, Response
from keepsake_client.errors import InvalidJSON, InvalidMessage

from services.gateway.access import OPEN, Caller, Right
from services.gateway.app import CallerOf, Gateway
from services.gateway.headers import AGENT, REMEMBER, SESSION, USER, header
from services.gateway.proxy.chat_memory import ChatMemory, Turn
from services.gateway.proxy.chat_request import ChatRequest
from services.gateway.proxy.errors import OpenAIRoute, UnknownPath, UpstreamTimeout, UpstreamUnavailable
from services.gateway.proxy.relayed_response import RelayedResponse
from services.gateway.proxy.upstream import OPENAI_URL, Upstream, open_http
from services.gateway.request_scope import CLIENT_GONE
from services.runtime.turns import Turns

PREFIX: Final = "/openai/v1"
_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_SWITCH: Final = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


def add_proxy(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes of the proxy."""
    settings = gateway.settings
    http = open_http()
    base_url = settings.chat_base_url.get_secret_value() if settings.chat_base_url else OPENAI_URL
    memory = ChatMemory(
        gateway.ltm,
        gateway.counts,
        settings.ltm_search_timeout_ms,
        settings.chat_memory_limit,
        settings.ltm_max_content_chars,
        gateway.redis,
        Turns.of(settings),
    )
    proxy = Proxy(memory, Upstream(base_url, settings.openai_api_key, http))

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with http:
            yield
            await memory.drain()

    router = APIRouter(prefix=PREFIX, route_class=OpenAIRoute, lifespan=lifespan, include_in_schema=False)
    router.add_api_route("/chat/completions", proxy.chat, methods=["POST"])
    router.add_api_route("/models", proxy.models, methods=["GET"])
    router.add_api_route("/{path:path}", proxy.unknown, methods=_METHODS)
    app.include_router(router)


class Proxy:
    """The routes of the proxy.

    Args:
        memory: asked for a context, and told both turns.
        upstream: answers.
    """

    def __init__(self, memory: ChatMemory, upstream: Upstream) -> None:
        self._memory = memory
        self._upstream = upstream

    async def chat(self, request: Request, caller: CallerOf) -> Response:
        """A chat completion: upstream's, to the request with the context in its system prompt."""
        caller.check(Right.CHAT)
        body = await request.body()
        is_remembered = _is_remembered(request)
        try:
            chat = ChatRequest.parse(body)
        except InvalidJSON:
            chat = None  # upstream says what is wrong with it
            self._memory.without_context()
        turn = self._turn(request, caller, chat)
        if chat is not None and turn is not None:
            request.state.wire_request_id = turn.request_id
            if context := await self._memory.context(turn):
                body = chat.with_context(context)
            if is_remembered and self._memory.records_turns:
                turn = replace(turn, prompt=chat.prompt(context), model=chat.model)
        return await self._pass_on(request, caller, "/chat/completions", body, turn if is_remembered else None)

    async def models(self, request: Request, caller: CallerOf) -> Response:
        """The models of upstream."""
        caller.check(Right.CHAT)
        return await self._pass_on(request, caller, "/models", None, None)

    async def unknown(self, request: Request, caller: CallerOf) -> Response:
        """Any other route of OpenAI's API."""
        raise UnknownPath(
            f"this proxy has POST {PREFIX}/chat/completions and GET {PREFIX}/models, and no {request.method}"
            f" {request.url.path}: call the server of the model for that"
        )

    def _turn(self, request: Request, caller: Caller, chat: ChatRequest | None) -> Turn | None:
        """The turn of the user; None where the request has none, or nothing says whose it is.

        Raises:
            NotPermitted: the caller may not ask about this user or agent.
        """
        user_id = _user_of(request, caller, None if chat is None else chat.user)
        agent_id = caller.agent_of(header(request, AGENT))
        if user_id is None:
            self._memory.without_user()
            return None
        if chat is None or not chat.asked:
            return None
        return Turn(user_id, chat.asked, header(request, SESSION), agent_id, time.time())

    async def _pass_on(
        self, request: Request, caller: Caller, path: str, body: bytes | None, turn: Turn | None
    ) -> Response:
        """Upstream's response, as it comes.

        Args:
            turn: what is remembered with the answer; None for nothing.
        """
        try:
            response = await self._upstream.send(request, path, body, own_key=caller is OPEN)
        except (UpstreamTimeout, UpstreamUnavailable) as error:
            self._memory.unanswered(error.code)
            raise
        if response is None:
            if turn is not None:
                self._memory.incomplete(turn, "client_gone")
            return Response(status_code=CLIENT_GONE)
        if not response.is_success:
            self._memory.unanswered(f"status {response.status_code}")
            turn = None
        return RelayedResponse(response, self._memory, turn)


def _user_of(request: Request, caller: Caller, field: str | None) -> str | None:
    """Who speaks: the header's user, the one that the key is bound to, or the one of the field `user`.

    Raises:
        NotPermitted: the key is not for this user.
    """
    if (named := header(request, USER)) is not None:
        return caller.user_of(named)
    if caller.user is not None:  # the field may be a program's own name for its user
        return caller.user
    return None if field is None else caller.user_of(field)


def _is_remembered(request: Request) -> bool:
    """Whether both turns are to be remembered.

    Raises:
        InvalidMessage: the header is neither true nor false, or there are several.
    """
    value = (header(request, REMEMBER) or "true").strip().lower()
    if value not in _SWITCH:
        raise InvalidMessage(f"the header {REMEMBER} must be true or false")
    return _SWITCH[value]
