"""A client of the running stack, and the search that checks the whole path of a request."""

from __future__ import annotations

from keepsake_client import Client, KeepsakeError

from services.runtime.settings import Settings
from services.runtime.wire_names import wire_names

#: The user that the check searches for. It has no memories.
PROBE_USER = "ltm-probe"


def client_of(settings: Settings) -> Client:
    """A client that uses the stack's address and names; not started."""
    return Client(settings.redis_url.get_secret_value(), **wire_names(settings))


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
