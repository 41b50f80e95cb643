"""`/v1/memories`: search, list, get, add, correct and delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from keepsake_client.errors import InvalidMessage, RequestFailed
from keepsake_client.protocol import LTMResponse

from services.gateway.access import Caller, Right
from services.gateway.api.models import (
    EXAMPLE,
    AddBody,
    Corrected,
    Counted,
    DeleteBody,
    Found,
    ListQuery,
    OneMemory,
    Page,
    SearchBody,
)
from services.gateway.api.wire import OfUserQuery, answered, ask, problems, scope_of, search_data, sent, with_example
from services.gateway.app import CallerOf, Gateway, GatewayOf
from services.gateway.idempotency import IdempotencyKey, attempt
from services.gateway.memories import memory_of
from services.gateway.problems import JSONResponse

router = APIRouter(tags=["memories"])


@router.post(
    "/memories/search",
    response_model=Found,
    responses={**problems(body=True), **with_example(200, {"memories": [EXAMPLE]}, "The memories found, best first.")},
)
async def search(
    request: Request,
    caller: CallerOf,
    gateway: GatewayOf,
    body: Annotated[SearchBody, Body(examples=[{"user_id": "u1", "query": "What is my cat called?", "limit": 5}])],
) -> JSONResponse:
    """The memories that match a query, best first."""
    caller.check(Right.SEARCH)
    user_id, data = caller.user_of(body.user_id), await search_data(request, caller, body)
    response = await ask(request, gateway, "search", user_id, data, body.deadline_ms)
    return answered(response, "memories", "partial", "timings", "candidates", "cut")


@router.get(
    "/memories",
    response_model=Page,
    responses={**problems(), **with_example(200, {"memories": [{**EXAMPLE, "score": None}]}, "A page of memories.")},
)
async def list_memories(
    request: Request, caller: CallerOf, gateway: GatewayOf, query: Annotated[ListQuery, Query()]
) -> JSONResponse:
    """The memories of a user in the order of time, in pages."""
    caller.check(Right.READ)
    data = {
        **scope_of(caller, query.agent_id, all_agents=query.all_agents),
        "filters": query.filters,
        "order": query.order,
        "limit": query.limit,
        "cursor": query.cursor,
    }
    user_id = caller.user_of(query.user_id)
    response = await ask(request, gateway, "memory_list", user_id, data, query.deadline_ms)
    return answered(response, "memories", "next_cursor")


@router.post(
    "/memories",
    status_code=201,
    response_model=OneMemory,
    responses={
        **problems(body=True, idempotent=True),
        **with_example(201, {"memory": {**EXAMPLE, "score": None}}, "The memory that was added."),
    },
)
async def add(
    request: Request,
    caller: CallerOf,
    gateway: GatewayOf,
    body: Annotated[AddBody, Body(examples=[{"user_id": "u1", "content": "Anna is allergic to nuts."}])],
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Keep a text as one memory, as it is worded."""
    caller.check(Right.WRITE)
    user_id = caller.user_of(body.user_id)
    data = {**await sent(request), "agent_id": caller.agent_of(body.agent_id)}
    async with attempt(request, gateway.redis, caller, key, data, user_id, body.deadline_ms) as this:
        if this.done is None:
            response = await ask(request, gateway, "add", user_id, data, body.deadline_ms, this.request_id)
            memory_id = response.memories[0].id if response.memories else None
            await this.complete({"id": memory_id})
        else:
            memory_id = this.done["id"]
    if this.repeated:  # dated by the first attempt
        return await _present(gateway, caller, user_id, memory_id, body.deadline_ms)
    return _one(response, 201)


@router.get(
    "/memories/{memory_id}",
    response_model=OneMemory,
    responses={
        **problems(404),
        **with_example(200, {"memory": {**EXAMPLE, "score": None}, "history": []}, "The memory."),
    },
)
async def get(caller: CallerOf, gateway: GatewayOf, memory_id: str, query: OfUserQuery) -> JSONResponse:
    """One memory, and every change of its content."""
    caller.check(Right.READ)
    user_id = caller.user_of(query.user_id)
    return _one(await memory_of(gateway, caller, user_id, memory_id, query.deadline_ms))


@router.patch(
    "/memories/{memory_id}",
    response_model=OneMemory,
    responses={
        **problems(404, body=True, idempotent=True),
        **with_example(200, {"memory": {**EXAMPLE, "score": None}}, "The memory as it is now."),
    },
)
async def correct(
    request: Request,
    caller: CallerOf,
    gateway: GatewayOf,
    memory_id: str,
    body: Annotated[Corrected, Body(examples=[{"user_id": "u1", "content": "My cat is called Mocha."}])],
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Correct a memory. The old content stays in its history."""
    caller.check(Right.WRITE)
    user_id = caller.user_of(body.user_id)
    if body.content is None and body.metadata is None:
        raise InvalidMessage("content or metadata is needed")
    data = {**await sent(request), "id": memory_id}
    async with attempt(request, gateway.redis, caller, key, data, user_id, body.deadline_ms) as this:
        if caller.agent is not None or this.done is not None:
            present = await memory_of(gateway, caller, user_id, memory_id, body.deadline_ms)
        if this.done is not None:  # not again: it would undo what was changed since
            return _one(present.model_copy(update={"history": None}))
        response = await ask(request, gateway, "memory_update", user_id, data, body.deadline_ms, this.request_id)
        await this.complete({})
    return _one(response)


@router.delete(
    "/memories/{memory_id}",
    response_model=Counted,
    responses={**problems(idempotent=True), **with_example(200, {"count": 1}, "How many were deleted: 1, or 0.")},
)
async def delete_one(
    request: Request,
    caller: CallerOf,
    gateway: GatewayOf,
    memory_id: str,
    query: OfUserQuery,
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Delete a memory; one that is not there is no error."""
    caller.check(Right.DELETE)
    data = {"ids": [memory_id], "agent_id": caller.agent_of(None)}
    return await _delete(request, gateway, caller, caller.user_of(query.user_id), data, query.deadline_ms, key)


@router.post(
    "/memories/delete",
    response_model=Counted,
    responses={**problems(body=True, idempotent=True), **with_example(200, {"count": 3}, "How many were deleted.")},
)
async def delete_many(
    request: Request,
    caller: CallerOf,
    gateway: GatewayOf,
    body: Annotated[DeleteBody, Body(examples=[{"user_id": "u1", "filters": {"session_id": "s1"}, "dry_run": True}])],
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Delete memories by their ids, or by conditions; `dry_run` only counts them."""
    caller.check(Right.DELETE)
    data = {**await sent(request, "all_agents"), "agent_id": caller.agent_of(body.agent_id, all_agents=body.all_agents)}
    if body.all_agents:  # false is not the same as missing: ids without a scope are of whatever character
        data["all_agents"] = True
    return await _delete(request, gateway, caller, caller.user_of(body.user_id), data, body.deadline_ms, key)


async def _delete(
    request: Request,
    gateway: Gateway,
    caller: Caller,
    user_id: str,
    data: dict[str, Any],
    deadline_ms: int | None,
    key: str | None,
) -> JSONResponse:
    async with attempt(request, gateway.redis, caller, key, data, user_id, deadline_ms) as this:
        if this.done is not None:
            return JSONResponse(this.done)
        response = await ask(request, gateway, "memory_delete", user_id, data, deadline_ms, this.request_id)
        await this.complete({"count": response.count})
    return answered(response, "count")


async def _present(
    gateway: Gateway, caller: Caller, user_id: str, memory_id: str | None, deadline_ms: int | None
) -> JSONResponse:
    """The answer to an add that is repeated: the memory as it is now, or null where it was deleted since."""
    if memory_id is not None:
        try:
            response = await memory_of(gateway, caller, user_id, memory_id, deadline_ms)
            return _one(response.model_copy(update={"history": None}), 201)
        except RequestFailed as error:
            if error.code != "not_found":
                raise
    return JSONResponse({"memory": None}, 201)


def _one(response: LTMResponse, status: int = 200) -> JSONResponse:
    found = response.model_dump(include={"memories", "history"})
    answer = {"memory": found["memories"][0] if found["memories"] else None}
    if found["history"] is not None:
        answer["history"] = found["history"]
    return JSONResponse(answer, status)
