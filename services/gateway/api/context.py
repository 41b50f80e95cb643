"""`/v1/context`: what a reply needs to know of the user, as one text for a prompt."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request

from services.gateway.access import Right
from services.gateway.api.models import EXAMPLE, ContextAnswer, ContextBody
from services.gateway.api.wire import answered, ask, problems, search_data, with_example
from services.gateway.app import CallerOf, GatewayOf
from services.gateway.problems import JSONResponse

router = APIRouter(tags=["context"])

_QUOTED = {"date": "2024-04-05 19:34 UTC", "said_by": "user", "quote": "My cat is called Mochi."}
_EXAMPLE = {
    "context": "What follows is remembered of the user, one JSON object a line. …",
    "context_parts": {"profile": {"name": "Anna"}, "memories": [_QUOTED], "recap": []},
    "memories": [EXAMPLE],
}


@router.post(
    "/context",
    response_model=ContextAnswer,
    responses={**problems(body=True), **with_example(200, _EXAMPLE, "The context.")},
)
async def context(
    request: Request,
    caller: CallerOf,
    gateway: GatewayOf,
    body: Annotated[
        ContextBody,
        Body(examples=[{"user_id": "u1", "query": "What is my cat called?", "session_id": "s7", "max_chars": 2000}]),
    ],
) -> JSONResponse:
    """Profile, matching memories and the last sessions, as one text that can be put into a prompt as it is."""
    caller.check(Right.SEARCH)
    user_id, data = caller.user_of(body.user_id), await search_data(request, caller, body)
    response = await ask(request, gateway, "context", user_id, data, body.deadline_ms)
    names = ("context", "context_parts", "memories", "partial", "timings", "candidates", "cut")
    return answered(response, *names)
