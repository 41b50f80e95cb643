"""The gateway's client of the wire."""

from __future__ import annotations

from keepsake_client import AsyncClient

from services.runtime.settings import Settings
from services.runtime.tracing import current_traceparent
from services.runtime.wire_names import wire_names


def client_of(settings: Settings) -> AsyncClient:
    """A client that uses the pipeline's address and names; not started."""
    url = settings.redis_url.get_secret_value()
    return AsyncClient(url, **wire_names(settings), traceparent=current_traceparent)
