"""The HTTP API under `/v1`."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

from services.gateway.api import context, events, memories, profile, traces, transfer, users
from services.gateway.app import Gateway


def api(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes of the HTTP API."""
    router = APIRouter(prefix="/v1")
    for part in (memories, events, context, profile, users, transfer):
        router.include_router(part.router)
    router.include_router(traces.routes(gateway))
    app.include_router(router)
