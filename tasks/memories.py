"""The actors of memories: parse, one service call, return."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import dramatiq

from services.contract import AddData, LTMRequest, MemoryUpdateMessage, SearchData, clean
from tasks import routes
from tasks.limits import INDEX_TIME_LIMIT_MS, INTERACTIVE_TIME_LIMIT_MS, WRITE_TIME_LIMIT_MS
from tasks.retries import FOR_A_DAY, NO_RETRY, WHILE_ASKED

if TYPE_CHECKING:
    from tasks.resources import Resources


#: Of an asker's time, what passes before a request is received and after it is answered: together 8 ms at p99 at twice
#: the rate that can be held (`bench.roundtrip --scenario capacity --scenario overload`).
ON_THE_WIRE_S = 0.010


def declare(broker: dramatiq.Broker, resources: Resources) -> None:
    """Declare `memory.index`, `memory.search` and `memory.add` on the broker."""
    index, search, add = routes.INDEX, routes.BY_TYPE["search"], routes.BY_TYPE["add"]

    @dramatiq.actor(
        broker=broker,
        actor_name=index.actor,
        queue_name=index.queue,
        retry=FOR_A_DAY,
        time_limit=INDEX_TIME_LIMIT_MS,
    )
    def memory_index(update: dict[str, Any]) -> None:
        resources.memories.index(MemoryUpdateMessage.model_validate(update))

    @dramatiq.actor(
        broker=broker,
        actor_name=search.actor,
        queue_name=search.queue,
        retry=NO_RETRY,
        time_limit=INTERACTIVE_TIME_LIMIT_MS,
    )
    def memory_search(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        started_at = time.time()
        asked = LTMRequest.model_validate(request)
        data = SearchData.model_validate(asked.data)
        budget_ms = data.deadline_ms or resources.settings.ltm_search_budget_ms
        deadline = received_at + budget_ms / 1000 - ON_THE_WIRE_S
        found = resources.memories.search(asked.user_id, data, now=received_at, deadline=deadline)
        response: dict[str, Any] = {"memories": found, "partial": found.partial or None}
        if data.timings:
            moments = {"received_at": received_at, "enqueued_at": enqueued_at, "started_at": started_at}
            response["timings"] = {**moments, **found.timings, "responded_at": time.time()}
        return response

    @dramatiq.actor(
        broker=broker,
        actor_name=add.actor,
        queue_name=add.queue,
        retry=WHILE_ASKED,
        time_limit=WRITE_TIME_LIMIT_MS,
    )
    def memory_add(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        asked = LTMRequest.model_validate(request)
        data = AddData.model_validate(asked.data)
        # The answer carries the id as it came; what is stored with the memory must be storable.
        request_id = clean(asked.request_id)
        memory = resources.memories.add(asked.user_id, data.content, data.metadata, request_id, received_at)
        return {"memories": [memory]}
