"""What the routes of the HTTP API share: requests on the wire, their answers, and how OpenAPI describes the errors."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import uuid4

from fastapi import Query, Request
from keepsake_client.errors import InvalidMessage
from keepsake_client.fields import Deadline
from keepsake_client.protocol import Id, LTMResponse, RequestType, SearchData
from pydantic import BaseModel, ConfigDict, Field

from services.gateway.access import Caller
from services.gateway.app import CallerOf, Gateway
from services.gateway.problems import JSONResponse
from services.gateway.request_scope import WIRE_REQUEST_ID

UserId = Annotated[Id | None, Field(description="Whose memory; the key's user where it is missing.", examples=["u1"])]
DeadlineMs = Annotated[
    Deadline | None,
    Field(description="How long you wait, in milliseconds; then 504 with the code `expired`.", examples=[800]),
]


#: A field that is not known is an error, as a misspelt `dry_run` has to be.
STRICT: Final = ConfigDict(frozen=True, extra="forbid")


class QueryParameters(BaseModel):
    """Base of the parameters in a query."""

    model_config = STRICT


class OfUser(QueryParameters):
    """Whose, and how long to wait."""

    user_id: UserId = None
    deadline_ms: DeadlineMs = None


OfUserQuery = Annotated[OfUser, Query()]

#: What every route may answer.
_ALWAYS: Final = (400, 401, 403, 408, 429, 500, 503, 504)
_WITH_BODY: Final = (413, 415)
_IDEMPOTENT: Final = (409, 422)


def problems(*statuses: int, body: bool = False, idempotent: bool = False) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for OpenAPI.

    Args:
        statuses: besides those that every route may answer.
        body: it has a body.
        idempotent: it takes an Idempotency-Key.
    """
    found = {*_ALWAYS, *statuses, *(_WITH_BODY if body else ()), *(_IDEMPOTENT if idempotent else ())}
    return {status: {"description": HTTPStatus(status).phrase, "x-problem": True} for status in sorted(found)}


def with_example(status: int, example: Any, description: str = "Done.") -> dict[int | str, dict[str, Any]]:
    """The successful answer of a route with an example, for OpenAPI."""
    header = {"description": "The id of the request on the wire, for `ltm trace`.", "schema": {"type": "string"}}
    content = {"application/json": {"example": example}}
    return {status: {"description": description, "content": content, "headers": {WIRE_REQUEST_ID: header}}}


async def check_all_is_read(request: Request, _: CallerOf) -> None:
    """Check that nothing is where its route does not look: a `dry_run` in the wrong place must not delete.

    Raises:
        InvalidMessage: the query repeats a parameter, or the route takes no query, or no body.
    """
    route, headers = request.scope["route"], request.headers
    names = [name for name, _ in request.query_params.multi_items()]
    if len(set(names)) < len(names):
        raise InvalidMessage("the query has a parameter twice: send it once")
    if names and not route.dependant.query_params:
        raise InvalidMessage("this request takes no query: send its fields in the body")
    takes_body = route.body_field is not None or route.openapi_extra is not None
    if not takes_body and ("transfer-encoding" in headers or headers.get("content-length", "0") != "0"):
        raise InvalidMessage("this request takes no body: send its fields in the query of the URL")


async def sent(request: Request, *without: str) -> dict[str, Any]:
    """The fields of the body as they were sent, which the pipeline reads again, by its own time zone."""
    fields: dict[str, Any] = await request.json()  # read and validated before
    return {name: value for name, value in fields.items() if name not in {"user_id", "deadline_ms", *without}}


def scope_of(caller: Caller, agent_id: str | None, *, all_agents: bool = False) -> dict[str, Any]:
    """The fields of a request that say whose memories of a user it is about, as the caller may ask.

    Raises:
        NotPermitted
    """
    agent_id = caller.agent_of(agent_id, all_agents=all_agents)
    return {"agent_id": agent_id, "all_agents": all_agents}


async def search_data(request: Request, caller: Caller, body: SearchData) -> dict[str, Any]:
    """`data` of a search or a context as it was sent, of agents and users that the caller may ask about.

    Raises:
        NotPermitted
    """
    also = [caller.user_of(other) for other in body.also]
    scope = scope_of(caller, body.agent_id, all_agents=body.all_agents)
    return {**await sent(request), **scope, "also": also or None}


async def ask(
    request: Request,
    gateway: Gateway,
    request_type: RequestType,
    user_id: str,
    data: Mapping[str, Any],
    deadline_ms: int | None = None,
    request_id: str | None = None,
) -> LTMResponse:
    """The response to one request on the wire, whose id is returned in a header.

    Args:
        data: without `deadline_ms`; what is None is left out.

    Raises:
        RequestTimeout, RequestFailed, Unavailable, InvalidMessage
    """
    request_id = request_id or f"req-{uuid4().hex}"
    request.state.wire_request_id = request_id
    given = {name: value for name, value in data.items() if value is not None}
    return await gateway.ltm.request(request_type, user_id, given, deadline_ms=deadline_ms, request_id=request_id)


def answered(response: LTMResponse, *fields: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """These fields of a response, those left out that it does not have."""
    found = response.model_dump(include=set(fields))
    return JSONResponse({name: value for name, value in found.items() if value is not None}, headers=headers)
