"""`/v1/events`: what was said, published to be indexed."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID, uuid4, uuid5

from fastapi import APIRouter, Body, Request
from keepsake_client.errors import KeepsakeError
from keepsake_client.protocol import check_length

from services.gateway.access import Right
from services.gateway.api.models import EventBody, Events, PublishedEvents
from services.gateway.api.wire import problems
from services.gateway.app import CallerOf, Gateway, GatewayOf
from services.gateway.idempotency import IdempotencyKey, attempt
from services.gateway.problems import ExtendedError, JSONResponse

router = APIRouter(tags=["events"])

_EXAMPLE: dict[str, Any] = {
    "user_id": "u1",
    "content": "My cat is called Mochi.",
    "source": "user",
    "session": "s1",
    "message_id": "8f14e45f",
}
_ANSWER = {"events": [{"message_id": "8f14e45f", "published": True}]}


class PublishingFailed(ExtendedError):
    """An event could not be published; those before it are."""


@router.post(
    "/events",
    status_code=202,
    response_model=PublishedEvents,
    responses={
        **problems(body=True, idempotent=True),
        202: {"description": "All are published.", "content": {"application/json": {"example": _ANSWER}}},
    },
)
async def tell(
    request: Request,
    caller: CallerOf,
    gateway: GatewayOf,
    events: Annotated[Events, Body(openapi_examples={"one": {"value": _EXAMPLE}, "many": {"value": [_EXAMPLE]}})],
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Publish what a user or the AI has said: one event, or a list of up to 100, in order.

    All are checked before the first one is published. Where publishing fails in between, the problem has `events`,
    which say of each whether it was published; sending the same again, with the same message ids or Idempotency-Key,
    publishes the rest, and doubles no memory.
    """
    caller.check(Right.TELL)
    users = [caller.user_of(event.user_id) for event in events]
    agents = [caller.agent_of(event.agent_id) for event in events]
    for number, event in enumerate(events):
        check_length(f"{number}.content", event.content, gateway.settings.ltm_max_content_chars)
    fields = await request.json()  # a time that names no zone is read by the pipeline
    times = [event.get("timestamp") for event in (fields if isinstance(fields, list) else [fields])]
    async with attempt(request, gateway.redis, caller, key, [fields, users, agents]) as this:
        ids = [event.message_id or _message_id(key and this.request_id, n) for n, event in enumerate(events)]
        if this.done is None:
            for n, event in enumerate(events):
                try:
                    await _publish(gateway, event, users[n], agents[n], ids[n], times[n])
                except KeepsakeError as error:
                    raise PublishingFailed(error, _answer(ids, published=n)) from error
            await this.complete({})
    return JSONResponse(_answer(ids, published=len(ids)), 202)


async def _publish(
    gateway: Gateway,
    event: EventBody,
    user_id: str,
    agent_id: str | None,
    message_id: str,
    timestamp: float | str | None,
) -> None:
    await gateway.ltm.remember(
        user_id,
        event.content,
        source=event.source,
        session=event.session,
        timestamp=timestamp,
        meta=event.meta,
        message_id=message_id,
        task_id=event.task_id,
        require_ai_response=event.require_ai_response,
        agent_id=agent_id,
        speaker=event.speaker.model_dump(exclude_none=True) if event.speaker else None,
        ttl_days=event.ttl_days,
    )


def _message_id(request_id: str | None, number: int) -> str:
    """The id of an event that has none: of a request with an Idempotency-Key, the same in each repeat."""
    return uuid4().hex if request_id is None else uuid5(UUID(request_id), str(number)).hex


def _answer(ids: list[str], published: int) -> dict[str, Any]:
    events = [{"message_id": message_id, "published": n < published} for n, message_id in enumerate(ids)]
    return {"events": events}
