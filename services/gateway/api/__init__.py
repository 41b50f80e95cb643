"""The HTTP API under `/v1`."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI

from services.gateway.api import context, events, memories, profile, traces, transfer, users
from services.gateway.api.wire import check_all_is_read
from services.gateway.app import Gateway


def api(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes of the HTTP API."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(check_all_is_read)])
    for part in (memories, events, context, profile, users, transfer):
        router.include_router(part.router)
    router.include_router(traces.routes(gateway))
    app.include_router(router)
