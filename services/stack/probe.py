"""A client of the running stack, and the search that checks the whole path of a request."""

from __future__ import annotations

from keepsake_client import Client, KeepsakeError

from services.runtime.settings import Settings

#: The user that the check searches for. It has no memories.
PROBE_USER = "ltm-probe"


def client_of(settings: Settings) -> Client:
    """A client that uses the stack's address and names; not started."""
    return Client(
        settings.redis_url.get_secret_value(),
        requests_queue=settings.ltm_requests_queue,
        manage_queue=settings.ltm_manage_queue,
        responses_channel=settings.ltm_responses_channel,
        updates_channel=settings.memory_updates_channel,
        updates_stream=settings.ltm_stream_key,
        stream_max_len=settings.ltm_stream_max_len,
    )


def probe(settings: Settings, timeout_s: float) -> str | None:
    """Probe the stack with a search: None if it gets a successful response in time, the error otherwise."""
    with client_of(settings) as client:
        try:
            client.request(
                "search", PROBE_USER, {"query": "Is Keepsake up?", "limit": 1}, deadline_ms=round(timeout_s * 1000)
            )
        except KeepsakeError as error:
            return error.wire
    return None
