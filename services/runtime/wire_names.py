"""Names on the wire, as the settings have them, for a client of the pipeline."""

from __future__ import annotations

from typing import Any

from services.runtime.settings import Settings


def wire_names(settings: Settings) -> dict[str, Any]:
    """The arguments of `keepsake_client.Client` and `AsyncClient` that name lists, channels and the stream."""
    return {
        "requests_queue": settings.ltm_requests_queue,
        "manage_queue": settings.ltm_manage_queue,
        "responses_channel": settings.ltm_responses_channel,
        "updates_channel": settings.memory_updates_channel,
        "updates_stream": settings.ltm_stream_key,
        "stream_max_len": settings.ltm_stream_max_len,
    }
