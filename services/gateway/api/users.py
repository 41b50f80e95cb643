"""`/v1/users`: forgets everything that is kept of a user."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from keepsake_client.fields import Switch
from keepsake_client.verbs import FORGET_TIMEOUT_MS
from pydantic import Field

from services.gateway.access import Right
from services.gateway.api.models import Counted
from services.gateway.api.wire import OfUser, answered, ask, problems, with_example
from services.gateway.app import CallerOf, GatewayOf
from services.gateway.idempotency import IdempotencyKey, attempt
from services.gateway.problems import JSONResponse

router = APIRouter(tags=["users"])


class ForgetQuery(OfUser):
    """Parameters of a forget."""

    dry_run: Annotated[Switch, Field(description="Count the memories, and delete nothing.")] = False


@router.delete(
    "/users",
    response_model=Counted,
    responses={**problems(idempotent=True), **with_example(200, {"count": 120}, "How many memories were deleted.")},
)
async def forget(
    request: Request,
    caller: CallerOf,
    gateway: GatewayOf,
    query: Annotated[ForgetQuery, Query()],
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Delete everything of a user, everywhere; waits a minute where no deadline is given."""
    caller.check(Right.FORGET)
    caller.agent_of(None, all_agents=True)
    user_id, deadline_ms = caller.user_of(query.user_id), query.deadline_ms or FORGET_TIMEOUT_MS
    data = {"dry_run": query.dry_run}
    async with attempt(request, gateway.redis, caller, key, data, user_id, deadline_ms) as this:
        if this.done is not None:
            return JSONResponse(this.done)
        response = await ask(request, gateway, "user_forget", user_id, data, deadline_ms, this.request_id)
        await this.complete({"count": response.count})
    return answered(response, "count")
