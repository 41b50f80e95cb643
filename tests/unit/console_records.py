"""Records of traces and turns, written to fakeredis as the processes of the pipeline write them."""

from __future__ import annotations

import json
import time
from typing import Any

from keepsake_client.protocol import TRACE_FIELD, TRACES_STREAM
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM

#: What a user, a model or another program may send.
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\u202egnp.exe",
    "👩‍👩‍👧‍👦 {{ 7*7 }}",
    "broken \ud83d surrogate",
    "x" * 30_000,
)


class Pipeline:
    """Writes records of one user's turns.

    Args:
        redis: fakeredis, asyncio.
    """

    def __init__(self, redis: Any, user: str = "anna") -> None:
        self._redis = redis
        self._user = user

    async def trace(self, kind: str, times: dict[str, float], **fields: Any) -> str:
        """Write a trace record; times are seconds ago. Returns its place in the stream."""
        now = time.time()
        record = {"kind": kind, "user": self._user, "outcome": "ok", **fields}
        record["times"] = {stage: now - ago for stage, ago in times.items()}
        entry_id: bytes = await self._redis.xadd(TRACES_STREAM, {TRACE_FIELD: json.dumps(record)})
        return entry_id.decode()

    async def turn(self, kind: str, **fields: Any) -> None:
        """Write a turn record."""
        record = {"kind": kind, "at": time.time(), "user": self._user, **fields}
        await self._redis.xadd(TURNS_STREAM, {TURN_FIELD: json.dumps(record)})

    async def message(self, message_id: str = "m1", **fields: Any) -> str:
        """A message that was indexed."""
        times = {"logged": 3.0, "dispatched": 2.99, "started": 2.9, "indexed": 2.5}
        return await self.trace("message", times, message_id=message_id, **fields)

    async def search(self, request_id: str = "r1", **fields: Any) -> str:
        """A context that was answered after 120 of 600 ms."""
        times = {"pushed": 3.0, "taken": 2.99, "queued": 2.99, "started": 2.95, "answered": 2.88}
        ms = {"embed_ms": 20.0, "database_ms": 10.0, "rank_ms": 5.0}
        known = {"type": "context", "request_id": request_id, "deadline_ms": 600, "ms": ms, "memories": 1}
        return await self.trace("request", times, **{**known, **fields})

    async def reply(self, message_id: str = "m1", request_id: str = "r1", **fields: Any) -> str:
        """A reply that was published."""
        times = {"asked": 3.0, "searched": 2.87, "replied": 2.8}
        return await self.trace("reply", times, message_id=message_id, request_id=request_id, **fields)

    async def whole(self, said: str = "Where is Anna?", replied: str = "In Lisbon.") -> None:
        """A message, its search with two candidates, the prompt, the reply and the reply's own event."""
        await self.message()
        await self.search()
        await self.turn(
            "search",
            request_id="r1",
            type="context",
            query=said,
            candidates=[candidate("Anna lives in Lisbon"), candidate("I like tea", 0.02, "below_min_score")],
            cut={"min_score": 0.09, "limit": 5, "ranked": 14},
        )
        await self.turn(
            "reply",
            message_id="m1",
            request_id="r1",
            text=said,
            prompt=[{"role": "system", "content": "You are kind."}, {"role": "user", "content": said}],
            reply=replied,
            reply_message_id="m2",
            model="a-model",
        )
        await self.reply(memories=1)
        await self.message("m2", reply_to="m1")

    async def delete(self) -> None:
        """A memory is deleted, and the turn records with it, as if all were this user's."""
        await self._redis.xtrim(TURNS_STREAM, maxlen=0, approximate=False)
        await self.search("r-delete", type="memory_delete")

    async def forget(self) -> None:
        """All records are erased, as if they were one user's; that of the request names no user."""
        for stream in (TRACES_STREAM, TURNS_STREAM):
            await self._redis.xtrim(stream, maxlen=0, approximate=False)
        # Answered after its deadline, as the forgetting of much may be: forgotten all the same.
        await Pipeline(self._redis, "").search("r-forget", type="user_forget", deadline_ms=100)


def candidate(content: str | None, score: float = 0.91, verdict: str = "returned", **fields: Any) -> dict[str, Any]:
    """A candidate of a search."""
    parts = {"meaning": 2.5, "words": 1.25, "session": -0.16, "utterance": 0.1, "recency": 0.0}
    known = {"id": "5d1c2f0e-8c1b-5a55-9a6e-0f8f7f0c3a11", "timestamp": 86_400, "parts": parts}
    return {**known, "content": content, "score": score, "verdict": verdict, **fields}
