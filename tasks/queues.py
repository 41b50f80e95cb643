"""Routing table of the workers: which actor serves what, on which queue, and its time limit.

The adapters address actors by these names and never import them. A time limit interrupts an actor at its next line of
Python; while C code runs (the embedder, a wait for PostgreSQL) it does not. PostgreSQL's statement_timeout and the
providers' own time-outs end those waits.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from dramatiq import Message
from keepsake_client.protocol import LTMRequest, MemoryUpdateMessage, RequestType

from services.runtime.queues import INDEX_QUEUE, INTERACTIVE_QUEUE, WRITES_QUEUE

#: Longer than any asker waits for a search, whose thread is needed.
INTERACTIVE_TIME_LIMIT_MS = 5_000
WRITE_TIME_LIMIT_MS = 30_000
#: Fact extraction by an LLM is slow.
INDEX_TIME_LIMIT_MS = 120_000


class Route(NamedTuple):
    """An actor's name and its queue."""

    actor: str
    queue: str


INDEX = Route("memory.index", INDEX_QUEUE)
BY_TYPE: dict[RequestType, Route] = {
    "search": Route("memory.search", INTERACTIVE_QUEUE),
    "add": Route("memory.add", WRITES_QUEUE),
    "profile_get": Route("profile.get", INTERACTIVE_QUEUE),
    "profile_update": Route("profile.update", WRITES_QUEUE),
}


def request_message(request: LTMRequest, received_at: float) -> Message[Any]:
    """The actor message for a request that arrived at `received_at`, in seconds since 1970."""
    kwargs = {"request": request.model_dump(), "received_at": received_at, "enqueued_at": time.time()}
    return _message(BY_TYPE[request.type], kwargs)


def index_message(update: MemoryUpdateMessage) -> Message[Any]:
    """The actor message that indexes one event."""
    return _message(INDEX, {"update": update.model_dump()})


def _message(route: Route, kwargs: dict[str, Any]) -> Message[Any]:
    return Message(queue_name=route.queue, actor_name=route.actor, args=(), kwargs=kwargs, options={})
