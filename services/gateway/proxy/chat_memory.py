"""ChatMemory: what is remembered for a chat completion, and the turns that it adds to what is remembered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, TypeVar
from uuid import uuid4

import structlog
from keepsake_client import AsyncClient
from keepsake_client.context import MAX_QUOTE_CHARS, render, shorten
from keepsake_client.errors import KeepsakeError, RequestTimeout, Unavailable
from keepsake_client.protocol import CONTEXT_CHARS, ContextParts, LTMResponse, Source, clean
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.gateway.proxy.chat_request import ChatMessage
from services.runtime.backoff import wait_s
from services.runtime.counters import PendingCounts
from services.runtime.logging import redact
from services.runtime.reasoning import without_reasoning
from services.runtime.turns import NO_TURNS, Turns

#: How long it is tried to publish a turn while Redis does not answer.
PUBLISH_FOR_S: Final = 60.0
#: Answers whose turns are being published; what is over is not remembered.
MAX_PENDING: Final = 1_000
#: Less than the grace period of `ltm up` leaves after the last request.
DRAIN_S: Final = 1.5
_DAY_S: Final = 86_400

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """What a user said, with the conversation before.

    Args:
        user_id: who said it.
        conversation: up to what the user said, which is its last message.
        session: that it belongs to; None for that of the day.
        agent_id: the character that it was said to; None for all.
        said_at: when, in seconds since 1970.
        request_id: of the request for its context.
        prompt: what upstream gets; empty where no turn records are written.
        model: that upstream is asked for.
    """

    user_id: str
    conversation: Sequence[ChatMessage]
    session: str | None
    agent_id: str | None
    said_at: float
    request_id: str = field(default_factory=lambda: f"req-{uuid4().hex}")
    prompt: Sequence[ChatMessage] = ()
    model: str | None = None

    @property
    def text(self) -> str:
        """What was said."""
        return self.conversation[-1].text

    @property
    def message_id(self) -> str:
        """A hash of the turn, its conversation and its day (UTC): that of a request which is sent again is the same.

        The day, because a conversation of another day may begin with the same words, and is another one.
        """
        day = int(self.said_at // _DAY_S)
        return _hash([self.user_id, self.agent_id, self.session, day, *self.conversation])


class ChatMemory:
    """The memory of the proxy: asked before each chat completion, and told its turns afterwards.

    Args:
        counts: for `ltm:counters`.
        deadline_ms: how long a request may wait for its context.
        limit: the most memories in a context.
        max_chars: of a content or query.
        redis: takes the turn records.
        turns: of this process; by default none are written.
    """

    def __init__(
        self,
        ltm: AsyncClient,
        counts: PendingCounts,
        deadline_ms: int,
        limit: int,
        max_chars: int,
        redis: Redis,
        turns: Turns = NO_TURNS,
    ) -> None:
        self._ltm = ltm
        self._redis = redis
        self._turns = turns
        self._counts = counts
        self._deadline_ms = deadline_ms
        self._limit = limit
        self._max_chars = max_chars
        self._tasks: set[asyncio.Task[Any]] = set()
        self._publishing = 0
        self._says_without_user = True

    @property
    def records_turns(self) -> bool:
        """Whether turn records are written."""
        return self._turns.wanted

    async def context(self, turn: Turn) -> str:
        """What is remembered of the user, for the prompt; empty where that is nothing, or did not come in time."""
        task = self._start(self._request_context(turn))
        # Not longer, whatever the client has to tidy up after its deadline.
        await asyncio.wait({task}, timeout=self._deadline_ms / 1000)
        response = task.result() if task.done() else None
        if response is None:
            self.without_context()
            return ""
        return _rendered(response.context_parts or ContextParts(), turn.conversation)

    def remember(self, turn: Turn, answer: str) -> None:
        """Publish both turns, in the background; that of the user alone where the answer is blank."""
        texts: list[tuple[Source, str, float, str]] = [("user", turn.text, turn.said_at, turn.message_id)]
        spoken = without_reasoning(answer).strip()
        # With its text: a second answer to the same message is another turn.
        reply_id = _hash([turn.message_id, spoken]) if spoken else None
        if reply_id:
            texts.append(("ai", spoken, time.time(), reply_id))
        if self._publishing >= MAX_PENDING:
            self._not_remembered(turn, "too_many", len(texts))
            return
        self._publishing += 1
        self._start(self._publish_all(turn, texts))
        if self.records_turns:
            self._start(self._record(turn, spoken, reply_id))

    def unanswered(self, reason: str) -> None:
        """Count a request that upstream answered with an error, or not; nothing is remembered of it."""
        self._counts.count("proxy_upstream_failed")
        log.warning("upstream_failed", reason=reason)

    def incomplete(self, turn: Turn, reason: str) -> None:
        """Count the turns of an answer that did not come to its end, or could not be read."""
        self._not_remembered(turn, reason, 2)

    def without_context(self) -> None:
        """Count a request that is passed on as it came."""
        self._counts.count("proxy_without_context")

    def without_user(self) -> None:
        """Count a request that is passed on without memory, because it names no user."""
        self._counts.count("proxy_without_user")
        if self._says_without_user:
            self._says_without_user = False
            log.warning(
                "proxy_without_user", remedy="a key with --user, the field `user` or the header X-Keepsake-User"
            )

    async def drain(self) -> None:
        """Wait for what is being published, for a short time; what is not published by then is counted."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=DRAIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _request_context(self, turn: Turn) -> LTMResponse | None:
        data = {
            "query": turn.text[: self._max_chars],
            "limit": self._limit,
            "session_id": turn.session,
            "agent_id": turn.agent_id,
        }
        try:
            return await self._ltm.request(
                "context", turn.user_id, data, deadline_ms=self._deadline_ms, request_id=turn.request_id
            )
        except KeepsakeError as error:
            # Not its message: the reason in a response may quote contents.
            log.warning("context_failed", user_id=turn.user_id, reason=error.code)
            return None

    async def _record(self, turn: Turn, reply: str, reply_message_id: str | None) -> None:
        """Write the turn record of a reply; one that Redis does not take is counted."""
        record = self._turns.reply(
            turn.user_id,
            text=turn.text,
            prompt=turn.prompt,
            reply=reply,
            model=turn.model,
            message_id=turn.message_id,
            request_id=turn.request_id,
            reply_message_id=reply_message_id,
        )
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                self._turns.add(pipeline, record)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            self._counts.count("turns_not_recorded")
            log.info("turn_not_recorded", request_id=turn.request_id, reason=redact(error))

    async def _publish_all(self, turn: Turn, texts: list[tuple[Source, str, float, str]]) -> None:
        """Publish the turns in their order."""
        reason = "stopped"
        try:
            while texts:
                await self._publish(turn, *texts[0])
                texts.pop(0)
        except KeepsakeError as error:
            reason = error.code
        finally:
            self._publishing -= 1
            if texts:
                self._not_remembered(turn, reason, len(texts))

    async def _publish(self, turn: Turn, source: Source, text: str, at: float, message_id: str) -> None:
        """Publish one turn, or count it where it is too long.

        Raises:
            KeepsakeError: it is not published.
        """
        if len(text) > self._max_chars:
            self._not_remembered(turn, "too_large", 1)
            return
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + PUBLISH_FOR_S
        failures = 0
        while True:
            try:
                await self._ltm.remember(
                    turn.user_id,
                    text,
                    source=source,
                    session=turn.session,
                    timestamp=at,
                    message_id=message_id,
                    agent_id=turn.agent_id,
                    require_ai_response=False,
                )
                return
            except (Unavailable, RequestTimeout):  # may be repeated: the same message_id is the same memory
                failures += 1
                if clock() + wait_s(failures) > give_up_at:
                    raise
            await asyncio.sleep(wait_s(failures))

    def _not_remembered(self, turn: Turn, reason: str, number: int) -> None:
        self._counts.count("proxy_not_remembered", number)
        log.warning("proxy_not_remembered", user_id=turn.user_id, reason=reason, turns=number)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _rendered(parts: ContextParts, conversation: Iterable[ChatMessage]) -> str:
    """The block for the prompt, without quotes of what the conversation in the request says itself."""
    said = {shorten(clean(message.text), MAX_QUOTE_CHARS) for message in conversation}
    left = {
        name: [line for line in getattr(parts, name) if line.get("quote") not in said] for name in ("memories", "recap")
    }
    return render(parts.model_copy(update=left), CONTEXT_CHARS).text


def _hash(parts: Sequence[Any]) -> str:
    return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
