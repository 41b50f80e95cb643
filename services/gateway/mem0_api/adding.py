"""Adding memories: the messages of an `add` are published as events.

Events have a speaker and a time, and the extraction of facts reads them; an `add` of the wire has neither, and is not
read. Programs written for Mem0 expect the ids of the memories in the answer, so an `add` waits for a few seconds until
its events are indexed.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Final
from uuid import uuid4

import structlog
from fastapi import Depends, Request
from keepsake_client.errors import InvalidMessage, KeepsakeError
from keepsake_client.protocol import Memory, MemoryUpdateMessage, check_length, validate

from services.gateway.access import Caller, Right
from services.gateway.app import Gateway
from services.gateway.mem0_api.bodies import AddBody
from services.gateway.mem0_api.ids import EventId
from services.gateway.mem0_api.selection import DEADLINE_MS, NO_USER
from services.gateway.mem0_api.shapes import added_of

#: How long an `add` waits for its memories.
WAIT_S: Final = 5.0
#: Adds that wait at a time; those beyond are pending at once. Each waiting one polls `memory_list`, ahead of later
#: searches.
MAX_WAITING: Final = 8
#: Between two polls: the first pause, doubled up to the last.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.03, 0.5
#: How long one poll may take.
_POLL_MS: Final = 2_000

log = structlog.get_logger()


class Adder:
    """Publishes what Mem0's clients add, and waits until it is indexed.

    Args:
        wait_s: how long an `add` waits for its memories.
        max_waiting: how many wait at a time.
    """

    def __init__(self, gateway: Gateway, *, wait_s: float = WAIT_S, max_waiting: int = MAX_WAITING) -> None:
        self._gateway = gateway
        self._wait_s = wait_s
        self._max_waiting = max_waiting
        self._waiting = 0

    async def add(self, caller: Caller, body: AddBody) -> dict[str, Any]:
        """Publish the messages, in their order, and wait until they are indexed.

        Raises:
            NotPermitted: the caller may not.
            InvalidMessage: there is nothing to be remembered.
            RequestTimeout, Unavailable: not all of it is known to be published.
        """
        caller.check(Right.TELL)
        zone = self._gateway.settings.timezone
        owner = body.owner(zone)
        if "user_id" not in owner and caller.user is None:
            raise InvalidMessage(NO_USER)
        user, agent = caller.user_of(owner.get("user_id")), caller.agent_of(owner.get("agent_id"))
        said, meta, at = body.said(), body.meta(owner), body.said_at(zone)
        ttl_days = body.ttl_days(at)
        event = EventId(uuid4().hex, len(said), int(at * 1_000), user)
        messages: list[dict[str, Any]] = [
            {
                "content": message.content,
                "source": message.source,
                "timestamp": event.timestamp(number),
                "meta": meta,
                "message_id": event.message_ids[number],
                "require_ai_response": False,
                "agent_id": agent,
                "speaker": message.speaker,
                "ttl_days": ttl_days,
            }
            for number, message in enumerate(said)
        ]
        for number, message in enumerate(messages):  # all of them, before the first is published
            validate(MemoryUpdateMessage, {"user_id": user, **message}, f"messages.{number}")
            check_length(f"messages.{number}", message["content"], self._gateway.settings.ltm_max_content_chars)
        for message in messages:
            await self._gateway.ltm.remember(user, session=owner.get("run_id"), **message)
        return _outcome(event, await self._when_stored(caller, event))

    async def outcome(self, caller: Caller, event: EventId) -> dict[str, Any]:
        """What became of an `add`: the same answer again, as it is by now.

        Raises:
            RequestTimeout, RequestFailed, Unavailable
        """
        return _outcome(event, await self._stored(caller, event, DEADLINE_MS))

    async def _stored(self, caller: Caller, event: EventId, deadline_ms: int) -> list[Memory]:
        """The memories of an event that are indexed by now, in the order of its messages."""
        order = {message_id: number for number, message_id in enumerate(event.message_ids)}
        found: dict[int, Memory] = {}
        pages = self._gateway.ltm.memory_pages(
            event.user,
            # A millisecond more at both ends: a time is a fraction, and fractions are rounded.
            filters={"since": event.timestamp(-1), "until": event.timestamp(event.count)},
            agent_id=caller.agent,
            all_agents=caller.agent is None,
            deadline_ms=deadline_ms,
        )
        async for page in pages:
            for memory in page:
                if (number := order.get(str(memory.metadata.get("message_id")))) is not None:
                    found[number] = memory
            if len(found) == event.count:
                break
        return [found[number] for number in sorted(found)]

    async def _when_stored(self, caller: Caller, event: EventId) -> list[Memory]:
        """The memories of an event, once all are indexed; those that are when the time is over."""
        found: list[Memory] = []
        if self._waiting >= self._max_waiting:
            return found
        self._waiting += 1
        pause, deadline = FIRST_PAUSE_S, time.monotonic() + self._wait_s
        try:
            while len(found) < event.count and time.monotonic() < deadline:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE_S)
                found = await self._stored(caller, event, _POLL_MS)
        except KeepsakeError as error:  # the messages are published: what is not seen yet is pending
            log.warning("mem0_add_not_seen", error=error.code)
        finally:
            self._waiting -= 1
        return found


def adder_of(request: Request) -> Adder:
    """The adder of the gateway: a FastAPI dependency."""
    adder: Adder = request.app.state.mem0_adder
    return adder


AdderOf = Annotated[Adder, Depends(adder_of)]


def _outcome(event: EventId, memories: list[Memory]) -> dict[str, Any]:
    return {
        "status": "SUCCEEDED" if len(memories) == event.count else "PENDING",
        "event_id": str(event),
        "message": f"{len(memories)} of {event.count} messages are indexed, and found by searches",
        "results": [added_of(memory) for memory in memories],
    }
