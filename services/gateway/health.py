"""Liveness and readiness of the gateway, for a supervisor or a load balancer: they need no key and have no body."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI, Response
from keepsake_client.async_client import any_adapter
from redis.exceptions import RedisError

from services.gateway.app import Gateway, GatewayOf

_METHODS: Final = ["GET", "HEAD"]


def health(app: FastAPI, _: Gateway) -> None:
    """Add `/healthz` and `/readyz`."""
    app.add_api_route("/healthz", healthz, methods=_METHODS, include_in_schema=False, status_code=204)
    app.add_api_route("/readyz", readyz, methods=_METHODS, include_in_schema=False, status_code=204)


async def healthz() -> Response:
    """204: the process serves."""
    return Response(status_code=204)


async def readyz(gateway: GatewayOf) -> Response:
    """204 where a search could be answered: responses are subscribed to and an adapter is alive; otherwise 503."""
    try:
        ready = gateway.ltm.subscribed and await any_adapter(gateway.redis)
    except (RedisError, OSError):
        ready = False
    return Response(status_code=204 if ready else 503)
