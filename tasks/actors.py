"""The actors: each makes one service call on what an adapter has validated, and returns the fields of the response."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dramatiq
from keepsake_client.protocol import AddData, ContextData, ProfileGetData, ProfileUpdateData, SearchData, clean

from tasks import extraction, management, unknown
from tasks.middleware.retries import INDEX_RETRY, NO_RETRY, WRITE_RETRY
from tasks.queues import (
    ARRIVED_AT,
    BY_TYPE,
    INDEX,
    INDEX_TIME_LIMIT_MS,
    INTERACTIVE_TIME_LIMIT_MS,
    WRITE_TIME_LIMIT_MS,
    read_data,
    read_update,
)

if TYPE_CHECKING:
    from services.long_term_memory.explaining import Explained
    from services.long_term_memory.profile_service import Profile
    from services.runtime.settings import Settings
    from tasks.middleware.resources import Resources

#: The share of a search's deadline that is kept for what passes before its request is received and after its response
#: is published. At twice the rate that can be held every search waits until its deadline; those two then took 15 ms
#: together at p99, and 61 at most, so with 10 ms 110 of 10,471 answers were late for 300 ms (`bench.latency.roundtrip
#: --scenario capacity --scenario overload`).
ON_THE_WIRE = 0.1


def declare(broker: dramatiq.Broker, resources: Resources, clock: Callable[[], float] = time.time) -> None:
    """Declare every actor on the broker, and what is run for an actor that there is not.

    Args:
        clock: the time in seconds since 1970, by which requests were received.
    """
    unknown.declare(broker, resources)
    management.declare(broker, resources, clock)
    if resources.settings.extracts:
        extraction.declare(broker, resources)
    search, context, add = BY_TYPE["search"], BY_TYPE["context"], BY_TYPE["add"]
    get, update = BY_TYPE["profile_get"], BY_TYPE["profile_update"]

    @dramatiq.actor(
        broker=broker,
        actor_name=INDEX.actor,
        queue_name=INDEX.queue,
        retry=INDEX_RETRY,
        time_limit=INDEX_TIME_LIMIT_MS,
    )
    def memory_index(update: dict[str, Any]) -> None:
        indexed = resources.memories.index(read_update(update), update.get(ARRIVED_AT))
        if indexed.reused_id:
            resources.count("message_ids_reused")
        if indexed.deleted:
            resources.count("events_deleted")

    @dramatiq.actor(
        broker=broker,
        actor_name=search.actor,
        queue_name=search.queue,
        retry=NO_RETRY,
        time_limit=INTERACTIVE_TIME_LIMIT_MS,
    )
    def memory_search(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        started_at = clock()
        data = read_data(request, SearchData)
        deadline = _deadline(data, received_at, resources.settings)
        found = resources.memories.search(request["user_id"], data, now=received_at, deadline=deadline)
        response = {"memories": found, "partial": found.partial or None, "stages": found.timings}
        return {
            **response,
            **_explained(data, found.explain),
            **_timings(data, found.timings, received_at, enqueued_at, started_at, clock),
        }

    @dramatiq.actor(
        broker=broker,
        actor_name=context.actor,
        queue_name=context.queue,
        retry=NO_RETRY,
        time_limit=INTERACTIVE_TIME_LIMIT_MS,
    )
    def memory_context(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        started_at = clock()
        data = read_data(request, ContextData)
        deadline = _deadline(data, received_at, resources.settings)
        found = resources.contexts.context(request["user_id"], data, now=received_at, deadline=deadline)
        response = {
            "memories": found.memories,
            "context": found.text,
            "context_parts": found.parts,
            "partial": found.partial or None,
            "stages": found.timings,
        }
        return {
            **response,
            **_explained(data, found.explain),
            **_timings(data, found.timings, received_at, enqueued_at, started_at, clock),
        }

    @dramatiq.actor(
        broker=broker,
        actor_name=add.actor,
        queue_name=add.queue,
        retry=WRITE_RETRY,
        time_limit=WRITE_TIME_LIMIT_MS,
    )
    def memory_add(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        data = read_data(request, AddData)
        # The response carries the id as it came; what is stored with the memory must be storable.
        request_id = clean(request["request_id"])
        return {"memories": resources.memories.add(request["user_id"], data, request_id, received_at)}

    @dramatiq.actor(
        broker=broker,
        actor_name=get.actor,
        queue_name=get.queue,
        retry=NO_RETRY,
        time_limit=INTERACTIVE_TIME_LIMIT_MS,
    )
    def profile_get(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        data, user_id = read_data(request, ProfileGetData), request["user_id"]
        fields = _profile_fields(resources.profiles.get(user_id, data.agent_id))
        if data.history:
            page = resources.profiles.history(user_id, data.agent_id, data.cursor)
            fields |= {"profile_history": page.changes, "next_cursor": page.next_cursor}
        return fields

    @dramatiq.actor(
        broker=broker,
        actor_name=update.actor,
        queue_name=update.queue,
        retry=WRITE_RETRY,
        time_limit=WRITE_TIME_LIMIT_MS,
    )
    def profile_update(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        data = read_data(request, ProfileUpdateData)
        profile = resources.profiles.update(
            request["user_id"],
            data.updates,
            data.expected_version,
            request["request_id"],
            data.agent_id,
            arrived_at=received_at,
        )
        return _profile_fields(profile)


def _deadline(data: SearchData, received_at: float, settings: Settings) -> float:
    """When the response becomes useless, in seconds since 1970."""
    budget_ms = data.deadline_ms or settings.ltm_search_budget_ms
    return received_at + (1 - ON_THE_WIRE) * budget_ms / 1000


def _explained(data: SearchData, explain: Callable[[], Explained] | None) -> dict[str, Any]:
    """What explains a search, for its turn record, and the fields of its response where it was asked for."""
    if explain is None or not data.explain:
        return {"explain": explain}
    explained = explain()
    return {"explain": lambda: explained, "candidates": explained.candidates, "cut": explained.cut}


def _timings(
    data: SearchData,
    stages: dict[str, float],
    received_at: float,
    enqueued_at: float,
    started_at: float,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """The field `timings` of a response, where it was asked for."""
    if not data.timings:
        return {}
    moments = {"received_at": received_at, "enqueued_at": enqueued_at, "started_at": started_at}
    return {"timings": {**moments, **stages, "responded_at": clock()}}


def _profile_fields(profile: Profile) -> dict[str, Any]:
    return {
        "user_profile": profile.values,
        "profile_version": profile.version,
        "profile_updated_at": profile.updated_at and profile.updated_at.timestamp(),
    }
