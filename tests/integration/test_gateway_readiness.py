"""When a gateway is ready: while it hears the responses, for which alone its callers wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from keepsake_client.protocol import alive_key

from tests.integration.service_process import ServiceProcess
from tests.support import free_port, wait_until

DEAF = {"keys": ["*"], "channels": ["*"], "commands": ["+@all", "-subscribe"]}


@pytest.fixture
def server(valkey_url: str) -> Iterator[Any]:
    """A Redis with a user who may not subscribe."""
    with redis.Redis.from_url(valkey_url) as client:
        client.delete(alive_key("gateway"))
        client.acl_log_reset()
        client.acl_setuser("deaf", enabled=True, passwords=["+secret"], **DEAF)
        yield client
        client.acl_deluser("deaf")


def test_a_gateway_that_hears_no_responses_is_not_ready(valkey_url: str, server: Any, tmp_path: Path) -> None:
    """Given a gateway whose user of Redis may not subscribe, I expect it alive and not ready, until the user may."""
    port, metrics = free_port(), free_port()
    settings = {"LTM_GATEWAY_PORT": str(port), "LTM_METRICS_PORT": str(metrics), "LTM_CONSOLE": "false"}
    url = valkey_url.replace("redis://", "redis://deaf:secret@")
    gateway = ServiceProcess("services.gateway", "gateway", url, tmp_path / "log", **settings)

    def refusals() -> int:
        return sum(int(each["count"]) for each in server.acl_log() if each["object"] in ("subscribe", b"subscribe"))

    def status(port: int, path: str) -> int:
        try:
            return httpx.get(f"http://127.0.0.1:{port}{path}").status_code
        except httpx.TransportError:
            return 0

    try:
        wait_until(lambda: status(port, "/healthz") == 204, description="the gateway")
        wait_until(lambda: refusals() >= 5, description="subscriptions that are refused")
        assert (status(metrics, "/livez"), status(metrics, "/readyz")) == (200, 503)
        assert not server.exists(alive_key("gateway"))

        server.execute_command("ACL", "SETUSER", "deaf", "+subscribe")
        wait_until(lambda: status(metrics, "/readyz") == 200, description="its readiness")
    finally:
        gateway.close()
