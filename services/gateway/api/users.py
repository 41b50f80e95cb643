"""`/v1/users`: lists users, and forgets everything that is kept of one."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from keepsake_client.fields import MAX_ID_BYTES, Switch
from keepsake_client.requests import PAGE, PageLimit
from keepsake_client.verbs import FORGET_TIMEOUT_MS, OPERATOR
from pydantic import Field

from services.gateway.access import Right
from services.gateway.api.models import Counted, Users
from services.gateway.api.wire import DeadlineMs, OfUser, QueryParameters, answered, ask, problems, with_example
from services.gateway.app import CallerOf, GatewayOf
from services.gateway.idempotency import IdempotencyKey, attempt
from services.gateway.problems import JSONResponse

router = APIRouter(tags=["users"])

_EXAMPLE: Final = {
    "user_id": "u1",
    "memories": 120,
    "facts": 31,
    "superseded": 4,
    "at_least": False,
    "last_at": 1712345678.5,
    "agents": ["mira"],
}


class ForgetQuery(OfUser):
    """Parameters of a forget."""

    dry_run: Annotated[Switch, Field(description="Count the memories, and delete nothing.")] = False


class UsersQuery(QueryParameters):
    """Which users to list."""

    prefix: Annotated[str, Field(max_length=MAX_ID_BYTES, description="What their ids begin with.")] = ""
    limit: PageLimit = PAGE
    cursor: Annotated[
        str | None, Field(max_length=MAX_ID_BYTES, description="The `next_cursor` of the page before.")
    ] = None
    deadline_ms: DeadlineMs = None


@router.get(
    "/users",
    response_model=Users,
    responses={**problems(), **with_example(200, {"users": [_EXAMPLE]}, "A page of users.")},
)
async def list_users(
    request: Request, caller: CallerOf, gateway: GatewayOf, query: Annotated[UsersQuery, Query()]
) -> JSONResponse:
    """The users whose ids begin with a prefix, in pages; those that the key is for."""
    caller.check(Right.READ)
    caller.agent_of(None, all_agents=True)
    prefix = caller.prefix_of(query.prefix)
    if prefix is None:
        return JSONResponse({"users": []})
    data: dict[str, Any] = {"prefix": prefix, "limit": query.limit, "cursor": query.cursor}
    if caller.user is not None:
        data = {"prefix": prefix, "limit": 1}  # its own id, which comes before those that begin with it
    response = await ask(request, gateway, "user_list", OPERATOR, data, query.deadline_ms)
    if caller.user is None:
        return answered(response, "users", "next_cursor")
    own = [user for user in response.users or [] if user.user_id == caller.user]
    return answered(response.model_copy(update={"users": own}), "users")


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
