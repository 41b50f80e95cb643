"""`/v1/traces`: what happened to a message, request or task, as `ltm trace` shows it, and the latest records."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import TRACE_FIELD, TRACES_STREAM, TraceRecord
from pydantic import Field, ValidationError
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from services.gateway.access import Right
from services.gateway.api.models import TraceAnswer
from services.gateway.api.wire import QueryParameters, problems
from services.gateway.app import CallerOf, Gateway
from services.gateway.problems import JSONResponse
from services.gateway.visibility import Visibility
from services.runtime.id_matcher import decoded
from services.runtime.redis import connect
from services.runtime.settings import Settings
from services.runtime.trace_reader import Trace, TraceReader

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
    """The route; of all lookups of an id, which read whole streams, one runs at a time."""
    router = APIRouter(tags=["traces"])
    one_at_a_time = asyncio.Semaphore(1)
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
        """What happened to an id, or the latest records; none of users that the key is not for."""
        caller.check(Right.TRACE)
        visible = Visibility.of(caller, gateway.settings)
        try:
            if query.id is None:
                records = await _latest(gateway.redis, visible, query.limit)
                return JSONResponse({"records": [record.model_dump(exclude_none=True) for record in records]})
            async with one_at_a_time:
                found = await run_in_threadpool(_follow, gateway.settings, query.id)
        except (RedisError, OSError) as error:
            raise Unavailable("Redis does not answer") from error
        return JSONResponse(visible.part_of(found).model_dump(exclude_none=True))

    return router


def _follow(settings: Settings, identifier: str) -> Trace:
    url, broker_url = settings.redis_url.get_secret_value(), settings.broker.get_secret_value()
    on_redis = broker_url.startswith(("redis", "unix"))
    with connect(url) as client, connect(broker_url if on_redis else url) as broker:
        found = TraceReader(client, broker if on_redis else None, settings).follow(identifier)
    if not on_redis:
        found.unseen.append("the workers' queues, which are on another broker")
    return found


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
