"""Liveness and readiness of the gateway, for a supervisor or a load balancer: without a key, and without a word."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI, Response
from keepsake_client.protocol import ADAPTER_FAILED_AFTER_S, MEMBERSHIP_KEY
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
    ready = gateway.ltm.subscribed and await _any_adapter(gateway.redis)
    return Response(status_code=204 if ready else 503)


async def _any_adapter(redis: Any) -> bool:
    """Whether an adapter has sent a heartbeat lately, by Redis's clock."""
    try:
        seconds, _ = await redis.time()
        latest = await redis.zrevrange(MEMBERSHIP_KEY, 0, 0, withscores=True)
    except (RedisError, OSError):
        return False
    return any(seconds - heartbeat < ADAPTER_FAILED_AFTER_S for _, heartbeat in latest)
