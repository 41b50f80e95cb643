"""Adding by way of events: what is added was said, so it goes where everything that is said goes.

An LLM, where one is set, reads events alone, and they have a speaker and a time of their own; an `add` of the wire has
neither. What Mem0's users have next in hand are ids: so it is waited, for a moment, until the events are indexed.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final
from uuid import uuid4

import structlog
from keepsake_client.errors import KeepsakeError
from keepsake_client.protocol import Memory

from services.gateway.access import Caller, Right
from services.gateway.app import Gateway
from services.gateway.mem0_api.bodies import AddBody
from services.gateway.mem0_api.ids import EventId
from services.gateway.mem0_api.shapes import added_of

#: How long an `add` waits for its memories. Idle, a message is indexed within some 50 ms of being published.
WAIT_S: Final = 2.0
#: Between two looks: the first pause, doubled up to the last.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.03, 0.4
#: Of a list, while it is waited.
_DEADLINE_MS: Final = 2_000

log = structlog.get_logger()


async def add(gateway: Gateway, caller: Caller, body: AddBody) -> dict[str, Any]:
    """Publish the messages, in their order, and wait until they are indexed, for `WAIT_S` at most.

    Raises:
        NotPermitted: the caller may not.
        InvalidMessage: there is nothing to be remembered.
        RequestTimeout, Unavailable: not all of it is known to be published.
    """
    caller.check(Right.TELL)
    zone = gateway.settings.timezone
    owner = body.owner(zone)
    user, agent = caller.user_of(owner.get("user_id")), caller.agent_of(owner.get("agent_id"))
    said, meta, at = body.said(), body.meta(owner), body.said_at(zone)
    ttl_days = body.ttl_days(at)
    event = EventId(uuid4().hex, len(said), int(at * 1_000), user)
    for number, message in enumerate(said):
        await gateway.ltm.remember(
            user,
            message.content,
            source=message.source,
            session=owner.get("run_id"),
            timestamp=event.timestamp(number),
            meta=meta,
            message_id=event.message_ids[number],
            require_ai_response=False,
            agent_id=agent,
            speaker=message.speaker,
            ttl_days=ttl_days,
        )
    return outcome(event, await _when_stored(gateway, caller, event))


async def stored(gateway: Gateway, caller: Caller, event: EventId) -> list[Memory]:
    """The memories of an event that are indexed by now, in the order of its messages.

    Raises:
        RequestTimeout, RequestFailed, Unavailable
    """
    order = {message_id: number for number, message_id in enumerate(event.message_ids)}
    # A millisecond more at both ends: a time is a fraction, and a fraction is rounded.
    between = {"since": event.timestamp(-1), "until": event.timestamp(event.count)}
    found: dict[int, Memory] = {}
    async for page in gateway.ltm.memory_pages(
        event.user,
        filters=between,
        agent_id=caller.agent,
        all_agents=caller.agent is None,
        deadline_ms=_DEADLINE_MS,
    ):
        for memory in page:
            if (number := order.get(str(memory.metadata.get("message_id")))) is not None:
                found[number] = memory
        if len(found) == event.count:
            break
    return [found[number] for number in sorted(found)]


def outcome(event: EventId, memories: list[Memory]) -> dict[str, Any]:
    """The answer to an `add`, and to the question for its event."""
    done = len(memories) == event.count
    return {
        "status": "SUCCEEDED" if done else "PENDING",
        "event_id": str(event),
        "message": f"{len(memories)} of {event.count} messages are indexed, and found by searches",
        "results": [added_of(memory) for memory in memories],
    }


async def _when_stored(gateway: Gateway, caller: Caller, event: EventId) -> list[Memory]:
    """The memories of an event, once all are indexed; those that are when the time is over."""
    found: list[Memory] = []
    pause, deadline = FIRST_PAUSE_S, time.monotonic() + WAIT_S
    while len(found) < event.count and time.monotonic() < deadline:
        await asyncio.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE_S)
        try:
            found = await stored(gateway, caller, event)
        except KeepsakeError as error:  # the messages are published: what is not seen yet is pending
            log.warning("mem0_add_not_seen", error=error.code)
            break
    return found
