"""The gateway's client of the wire."""

from __future__ import annotations

from keepsake_client import AsyncClient

from services.runtime.settings import Settings
from services.runtime.tracing import current_traceparent


def client_of(settings: Settings) -> AsyncClient:
    """A client that uses the pipeline's address and names; not started."""
    return AsyncClient(
        settings.redis_url.get_secret_value(),
        requests_queue=settings.ltm_requests_queue,
        manage_queue=settings.ltm_manage_queue,
        responses_channel=settings.ltm_responses_channel,
        updates_channel=settings.memory_updates_channel,
        updates_stream=settings.ltm_stream_key,
        stream_max_len=settings.ltm_stream_max_len,
        traceparent=current_traceparent,
    )
