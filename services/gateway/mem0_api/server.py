"""Routes of Mem0's open source server; what a filter names and is no field of Mem0's is one of the metadata there."""

from __future__ import annotations

from fastapi import APIRouter, Request

from services.gateway.app import CallerOf, GatewayOf
from services.gateway.mem0_api import operations
from services.gateway.mem0_api.adding import AdderOf
from services.gateway.mem0_api.bodies import AddBody, SearchBody, UpdateBody, ignored_header
from services.gateway.mem0_api.queries import BODY_ALONE, QueryAlone, QueryBody
from services.gateway.problems import JSONResponse

router = APIRouter(default_response_class=JSONResponse)


@router.post("/memories", dependencies=BODY_ALONE)
async def add(adder: AdderOf, caller: CallerOf, body: AddBody) -> JSONResponse:
    """Add what was said."""
    return JSONResponse(await adder.add(caller, body), headers=ignored_header(body.ignored))


@router.post("/search", dependencies=BODY_ALONE)
async def search(gateway: GatewayOf, caller: CallerOf, body: SearchBody) -> JSONResponse:
    """Search the memories of a user."""
    filters = body.parsed(gateway.settings.timezone, any_field=True)
    found = await operations.search(gateway, caller, body, filters)
    return JSONResponse({"results": found}, headers=ignored_header(body.ignored))


@router.get("/memories")
async def get_all(request: Request, gateway: GatewayOf, caller: CallerOf, body: QueryBody) -> JSONResponse:
    """List the memories of a user, newest first."""
    size = request.query_params.get("top_k") or request.query_params.get("limit")
    page = await operations.page_of(gateway, caller, body.parsed(gateway.settings.timezone), None, size)
    return JSONResponse({"results": page.results})


@router.get("/memories/{memory_id}")
async def get(gateway: GatewayOf, caller: CallerOf, memory_id: str) -> JSONResponse:
    """Get one memory."""
    return JSONResponse(await operations.get(gateway, caller, memory_id))


@router.put("/memories/{memory_id}")
async def update(gateway: GatewayOf, caller: CallerOf, memory_id: str, body: UpdateBody) -> JSONResponse:
    """Correct one memory."""
    await operations.update(gateway, caller, memory_id, body)
    return JSONResponse({"message": "Memory updated successfully!"})


@router.get("/memories/{memory_id}/history")
async def history(gateway: GatewayOf, caller: CallerOf, memory_id: str) -> JSONResponse:
    """What one memory was before, oldest first."""
    return JSONResponse(await operations.history(gateway, caller, memory_id))


@router.delete("/memories/{memory_id}")
async def delete(gateway: GatewayOf, caller: CallerOf, memory_id: str) -> JSONResponse:
    """Delete one memory."""
    await operations.delete(gateway, caller, memory_id)
    return JSONResponse({"message": "Memory deleted successfully"})


@router.delete("/memories")
async def delete_all(gateway: GatewayOf, caller: CallerOf, params: QueryAlone) -> JSONResponse:
    """Delete the memories of a user, or of one of its agents or runs."""
    count = await operations.delete_all(gateway, caller, params)
    return JSONResponse({"message": "All relevant memories deleted", "count": count})
