"""`/v1/traces`: what happened to a message, request or task, as `ltm trace` shows it, and the latest records."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import TRACE_FIELD, TRACES_STREAM, TraceRecord
from pydantic import Field, ValidationError
from redis.exceptions import RedisError

from services.gateway.access import Right
from services.gateway.api.models import TraceAnswer
from services.gateway.api.wire import QueryParameters, problems
from services.gateway.app import CallerOf, Gateway
from services.gateway.problems import JSONResponse
from services.gateway.turn_lookup import TurnLookup
from services.gateway.visibility import Visibility
from services.runtime.id_matcher import decoded

#: Of the latest records that are looked at for those of a key's users.
MAX_LOOKED_AT: Final = 1_000
MAX_LISTED: Final = 100
_RECORD: Final = {
    "kind": "request",
    "process": "worker",
    "host": "h1",
    "user": "u1",
    "request_id": "req-1",
    "type": "search",
    "outcome": "ok",
    "times": {"pushed": 1712345678.1, "answered": 1712345678.125},
    "ms": {"embed_ms": 14.2},
    "partial": False,
    "memories": 3,
}


class TraceQuery(QueryParameters):
    """Which records: those of an id, or the latest ones."""

    id: Annotated[
        str | None, Field(min_length=1, max_length=2_600, description="A message_id, request_id or task_id.")
    ] = None
    limit: Annotated[int, Field(ge=1, le=MAX_LISTED, description="Of the latest records; without an id.")] = 20


def routes(gateway: Gateway) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["traces"])
    lookup = TurnLookup(gateway.settings)
    example = {"id": "req-1", "records": [_RECORD], "waiting": [], "unseen": []}

    @router.get(
        "/traces",
        response_model=TraceAnswer,
        responses={
            **problems(),
            200: {"description": "The records.", "content": {"application/json": {"example": example}}},
        },
    )
    async def traces(caller: CallerOf, query: Annotated[TraceQuery, Query()]) -> JSONResponse:
        """What happened to an id, with the turn that it belongs to, or the latest records; none of other users."""
        caller.check(Right.TRACE)
        visible = Visibility.of(caller, gateway.settings)
        try:
            if query.id is None:
                records = await _latest(gateway.redis, visible, query.limit)
                return JSONResponse({"records": [record.model_dump(exclude_none=True) for record in records]})
            turn = visible.part_of_turn(await lookup.follow(query.id))
        except (RedisError, OSError) as error:
            raise Unavailable("Redis does not answer") from error
        found = turn.trace.model_dump(exclude_none=True)
        if Right.READ in caller.rights and turn.is_known:
            found["turn"] = turn.model_dump(exclude={"id", "trace"}, exclude_none=True)
        return JSONResponse(found)

    return router


async def _latest(client: Any, visible: Visibility, limit: int) -> list[TraceRecord]:
    """The latest records that a caller sees, oldest first."""
    found: list[TraceRecord] = []
    for _, fields in await client.xrevrange(TRACES_STREAM, count=MAX_LOOKED_AT):
        try:
            record = TraceRecord.model_validate(decoded(fields.get(TRACE_FIELD.encode(), b"")))
        except ValidationError:
            continue  # of a later version
        if visible.sees(record.user):
            found.append(record)
        if len(found) == limit:
            break
    return found[::-1]
