"""Routes of Mem0's platform, as `mem0.MemoryClient` asks for them, in its present version and in earlier ones."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from services.gateway.access import Right
from services.gateway.app import CallerOf, GatewayOf
from services.gateway.mem0_api import operations
from services.gateway.mem0_api.adding import AdderOf
from services.gateway.mem0_api.bodies import AddBody, BatchBody, ListBody, SearchBody, UpdateBody, ignored_header
from services.gateway.mem0_api.errors import NotSupported
from services.gateway.mem0_api.ids import EventId
from services.gateway.mem0_api.queries import BODY_ALONE, QueryAlone, QueryBody
from services.gateway.mem0_api.selection import DEADLINE_MS
from services.gateway.problems import JSONResponse

router = APIRouter(default_response_class=JSONResponse)
#: The format of answers that are objects; the routes of earlier versions answered with lists before it.
OBJECT_FORMAT = "v1.1"


@router.get("/v1/ping/")
async def ping(caller: CallerOf) -> JSONResponse:
    """What the client asks when it is constructed; without an organization and a project it refuses to be."""
    return JSONResponse({"status": "ok", "user_email": None, "org_id": "keepsake", "project_id": "keepsake"})


@router.post("/v3/memories/add/", dependencies=BODY_ALONE)
@router.post("/v1/memories/", dependencies=BODY_ALONE)
async def add(request: Request, adder: AdderOf, caller: CallerOf, body: AddBody) -> JSONResponse:
    """Add what was said."""
    answer: Any = await adder.add(caller, body)
    if _as_list(request, body.output_format):
        pending = {name: answer[name] for name in ("status", "event_id", "message")}
        answer = answer["results"] + ([pending] if answer["status"] == "PENDING" else [])
    return JSONResponse(answer, headers=ignored_header(body.ignored))


@router.post("/v3/memories/search/", dependencies=BODY_ALONE)
@router.post("/v2/memories/search/", dependencies=BODY_ALONE)
@router.post("/v1/memories/search/", dependencies=BODY_ALONE)
async def search(request: Request, gateway: GatewayOf, caller: CallerOf, body: SearchBody) -> JSONResponse:
    """Search the memories of a user."""
    found = await operations.search(gateway, caller, body, body.parsed(gateway.settings.timezone))
    answer = found if _as_list(request, body.output_format) else {"results": found}
    return JSONResponse(answer, headers=ignored_header(body.ignored))


@router.post("/v3/memories/", dependencies=BODY_ALONE)
@router.post("/v2/memories/", dependencies=BODY_ALONE)
async def get_all(request: Request, gateway: GatewayOf, caller: CallerOf, body: ListBody) -> JSONResponse:
    """List the memories of a user, newest first, in pages."""
    return await _listed(request, gateway, caller, body)


@router.get("/v1/memories/")
async def get_all_by_query(request: Request, gateway: GatewayOf, caller: CallerOf, body: QueryBody) -> JSONResponse:
    """List the memories of a user, by the first version's parameters."""
    return await _listed(request, gateway, caller, body)


@router.get("/v1/memories/{memory_id}/")
async def get(gateway: GatewayOf, caller: CallerOf, memory_id: str) -> JSONResponse:
    """Get one memory."""
    return JSONResponse(await operations.get(gateway, caller, memory_id))


@router.put("/v1/memories/{memory_id}/")
async def update(gateway: GatewayOf, caller: CallerOf, memory_id: str, body: UpdateBody) -> JSONResponse:
    """Correct one memory."""
    return JSONResponse(await operations.update(gateway, caller, memory_id, body))


@router.delete("/v1/memories/{memory_id}/")
async def delete(gateway: GatewayOf, caller: CallerOf, memory_id: str) -> JSONResponse:
    """Delete one memory."""
    await operations.delete(gateway, caller, memory_id)
    return JSONResponse({"message": "Memory deleted successfully!"})


@router.delete("/v1/memories/")
async def delete_all(gateway: GatewayOf, caller: CallerOf, params: QueryAlone) -> JSONResponse:
    """Delete the memories of a user, or of one of its agents, apps or runs."""
    count = await operations.delete_all(gateway, caller, params)
    return JSONResponse({"message": "Memories deleted successfully!", "count": count})


@router.get("/v1/memories/{memory_id}/history/")
async def history(gateway: GatewayOf, caller: CallerOf, memory_id: str) -> JSONResponse:
    """What one memory was before, oldest first."""
    return JSONResponse(await operations.history(gateway, caller, memory_id))


@router.put("/v1/batch/")
async def batch_update(gateway: GatewayOf, caller: CallerOf, body: BatchBody) -> JSONResponse:
    """Correct several memories."""
    return JSONResponse({"message": f"{await operations.batch_update(gateway, caller, body)} memories updated"})


@router.delete("/v1/batch/")
async def batch_delete(gateway: GatewayOf, caller: CallerOf, body: BatchBody) -> JSONResponse:
    """Delete several memories."""
    return JSONResponse({"message": f"{await operations.batch_delete(gateway, caller, body)} memories deleted"})


@router.get("/v1/event/{event_id}/")
async def event(adder: AdderOf, caller: CallerOf, event_id: str) -> JSONResponse:
    """What became of an add that was pending."""
    caller.check(Right.READ)
    return JSONResponse({"id": event_id, **await adder.outcome(caller, EventId.read(event_id, caller))})


@router.get("/v1/entities/")
async def users(caller: CallerOf) -> JSONResponse:
    """The users: of a key that is bound to one, that one."""
    caller.check(Right.READ)
    if caller.user is None:
        raise NotSupported("these routes do not list users: ask GET /v1/users, or use a key bound to one user")
    one = {"id": caller.user, "name": caller.user, "type": "user", "metadata": {}}
    return JSONResponse({"count": 1, "next": None, "previous": None, "results": [one]})


@router.get("/v2/entities/user/{name:path}/profile/")
async def profile(gateway: GatewayOf, caller: CallerOf, name: str) -> JSONResponse:
    """The profile of a user."""
    caller.check(Right.READ)
    user, agent = caller.user_of(name), caller.agent_of(None)
    response = await gateway.ltm.profile_get(user, agent_id=agent, deadline_ms=DEADLINE_MS)
    status = "completed" if response.profile_version else "not_generated"
    return JSONResponse(
        {
            "entity_type": "user",
            "entity_id": user,
            "status": status,
            "profile": response.user_profile,
            "version": response.profile_version,
        }
    )


@router.delete("/v2/entities/{kind}/{name:path}/")
@router.delete("/v1/entities/{kind}/{name:path}/")
async def delete_user(gateway: GatewayOf, caller: CallerOf, kind: str, name: str) -> JSONResponse:
    """Forget a user."""
    count = await operations.forget(gateway, caller, kind, name)
    return JSONResponse({"message": "Entity deleted successfully!", "count": count})


async def _listed(request: Request, gateway: GatewayOf, caller: CallerOf, body: ListBody) -> JSONResponse:
    """A page, in the shape of the version that asks."""
    params = request.query_params
    paged = "page" in params or "page_size" in params
    page = await operations.page_of(
        gateway,
        caller,
        body.parsed(gateway.settings.timezone),
        params.get("page"),
        params.get("page_size"),
        body.fields,
    )
    headers = ignored_header(body.ignored)
    if not paged and _as_list(request, body.output_format):
        return JSONResponse(page.results, headers=headers)
    url = request.url
    answer = {
        "count": page.count,
        "next": str(url.include_query_params(page=page.number + 1)) if page.more else None,
        "previous": str(url.include_query_params(page=page.number - 1)) if page.number > 1 else None,
        "results": page.results,
    }
    return JSONResponse(answer, headers=headers)


def _as_list(request: Request, output_format: str | None) -> bool:
    """Whether the version that asks reads a list: the first two did, unless they asked for the later format."""
    return "/v3/" not in request.url.path and output_format != OBJECT_FORMAT
