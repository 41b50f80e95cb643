"""The chat service: for each message of a user, asks for the context, replies and publishes the reply."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import tzinfo
from typing import Any
from uuid import uuid4

import structlog
from keepsake_client import AsyncClient
from keepsake_client.context import shorten
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import (
    COUNTERS,
    REMEMBER,
    STREAM_EVENT_FIELD,
    UPDATES_STREAM,
    Memory,
    MemoryUpdateMessage,
    conversation_key,
    json_number,
    parse_update,
)
from keepsake_client.subscription import SubscriptionMonitor
from keepsake_client.tolerance import DEFAULTS, MessageDefaults
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.chat_ai.asking import ContextAsker
from services.chat_ai.history import messages_before
from services.chat_ai.prompt import Prompt, build_prompt
from services.chat_ai.replies import NOTHING_REMEMBERED, Replier
from services.chat_ai.user_executor import PerUserExecutor
from services.runtime.counters import PendingCounts
from services.runtime.logging import redact
from services.runtime.process import LoopConnection, listen
from services.runtime.traces import NO_TRACES, Traces
from services.runtime.tracing import NO_SPANS, Span, Spans, within
from services.runtime.turns import NO_TURNS, Turns

FINISH_TIMEOUT_S = 5.0
#: The maximum length of a reply, and of the memories published with it: far below the contract's limit in total.
MAX_REPLY_CHARS = 32_768
MAX_SHOWN_MEMORIES = 20
MAX_SHOWN_CHARS = 1_000
#: The speech output publishes on this and the `task_id`.
TASK_RESPONSE_PREFIX = "task_response:"
#: The number of messages that may be newer than the one being answered.
_MAX_NEWER = 50
#: The number of recent messages that are told from those that a broken subscription missed.
_REMEMBERED = 1_000
#: A message is in the stream a little earlier than it is heard, and the clocks of two hosts differ.
_SLACK_S = 2.0
_MAX_COUNTED = 10_000

log = structlog.get_logger()


class ChatService:
    """Replies to users.

    Args:
        tts_queue: the list that replies to messages with a `task_id` are also pushed to, for speech output.
        memory_limit: the most memories to search for before a reply.
        history_messages: the most messages of the conversation in a prompt.
        prompt_max_chars: the maximum length of a prompt.
        max_content_chars: longer messages are not answered, and longer replies are cut.
        defaults: what messages that leave something out are read by.
        zone: the time zone of the prompt's dates.
        clock: seconds since 1970.
        traces: of this process; by default none are written.
        spans: of this process; by default none are made.
        turns: of this process; by default none are written.
        updates_stream: what a broken subscription missed is counted in it.
        monitor: of the subscription to the messages.
    """

    def __init__(
        self,
        client: Redis,
        ltm: AsyncClient,
        replier: Replier,
        *,
        updates_channel: str,
        ai_channel: str,
        tts_queue: str | None,
        memory_limit: int,
        history_messages: int,
        prompt_max_chars: int,
        max_content_chars: int,
        zone: tzinfo,
        defaults: MessageDefaults = DEFAULTS,
        clock: Callable[[], float] = time.time,
        traces: Traces = NO_TRACES,
        spans: Spans = NO_SPANS,
        turns: Turns = NO_TURNS,
        updates_stream: str = UPDATES_STREAM,
        monitor: SubscriptionMonitor | None = None,
    ) -> None:
        self._client = client
        self._asker = ContextAsker(ltm, memory_limit, prompt_max_chars)
        self._replier = replier
        self._updates_channel = updates_channel
        self._ai_channel = ai_channel
        self._tts_queue = tts_queue
        self._history_messages = history_messages
        self._prompt_max_chars = prompt_max_chars
        self._max_content_chars = max_content_chars
        self._defaults = defaults
        self._zone = zone
        self._clock = clock
        self._traces = traces
        self._spans = spans
        self._turns = turns
        self._updates_stream = updates_stream
        self._monitor = monitor
        self._executor = PerUserExecutor(self._answer)
        self._heard: deque[tuple[str, str]] = deque(maxlen=_REMEMBERED)
        self._pending_counts = PendingCounts(COUNTERS)
        #: Number of messages by outcome: replied, failed, history_failed, dropped, unreadable, abandoned.
        self.counts: Counter[str] = Counter()

    async def run(self, link: LoopConnection, stop: asyncio.Event) -> None:
        """Reply until `stop`; then finish the messages in progress, for at most 5 s (graceful shutdown)."""
        await listen(
            self._client,
            self._updates_channel,
            self._take,
            link,
            stop,
            monitor=self._monitor,
            counts=self._pending_counts,
            on_gap=self._count_missed,
        )
        if abandoned := await self._executor.finish(FINISH_TIMEOUT_S):
            self.counts["abandoned"] += abandoned
            log.warning("replies_abandoned", messages=abandoned)

    async def _take(self, raw: bytes) -> None:
        try:
            message = parse_update(raw, self._max_content_chars, self._defaults)
        except InvalidMessage as error:
            # The adapters read the same channel and put such an event into the stream `ltm:rejected`.
            self.counts["unreadable"] += 1
            log.debug("event_unreadable", reason=error.wire)
            return
        if message.source != "user" or message.require_ai_response is False:
            return
        self._heard.append((message.user_id, message.content))
        if not self._executor.offer(message):
            self.counts["dropped"] += 1
            if self.counts["dropped"] % 100 == 1:  # one line for each hundred
                log.warning("message_dropped", user_id=message.user_id, dropped=self.counts["dropped"])

    async def _count_missed(self, since: float) -> None:
        """Count the messages of users that are in the stream and were not heard; they are remembered, not answered."""
        try:
            # redis-py's types of replies are those of every protocol at once.
            entries: Any = await self._client.xrange(
                self._updates_stream, min=int((since - _SLACK_S) * 1000), count=_MAX_COUNTED
            )
        except (RedisError, OSError) as error:  # such as an ACL without XRANGE
            log.warning("missed_unknown", at=self._updates_channel, reason=redact(error))
            return
        missed = 0
        for _, fields in entries:
            try:
                raw = fields.get(STREAM_EVENT_FIELD.encode(), b"")
                event = parse_update(raw, self._max_content_chars, self._defaults)
            except InvalidMessage:
                continue
            wanted = event.source == "user" and event.require_ai_response is not False
            missed += wanted and (event.user_id, event.content) not in self._heard
        if missed:
            self._pending_counts.count("chat_messages_missed", missed)
            log.warning("messages_missed", at=self._updates_channel, missed=missed)

    async def _answer(self, message: MemoryUpdateMessage) -> None:
        try:
            await self.answer(message)
        except (RedisError, OSError) as error:
            await self._count_failed()
            log.warning("reply_failed", user_id=message.user_id, message_id=message.message_id, reason=redact(error))
        except Exception:
            await self._count_failed()
            log.exception("reply_failed", user_id=message.user_id, message_id=message.message_id)

    async def _count_failed(self) -> None:
        self.counts["failed"] += 1
        self._pending_counts.count("replies_failed")
        await self._pending_counts.flush_async(self._client)

    async def answer(self, message: MemoryUpdateMessage) -> None:
        """Reply to one message and publish the reply.

        Raises:
            RedisError: the reply could not be published, or not be pushed for speech output.
        """
        with within(self._spans, "reply", message.traceparent) as span:
            await self._answer_within(span, message)

    async def _answer_within(self, span: Span, message: MemoryUpdateMessage) -> None:
        request_id = f"req-{uuid4().hex}"
        times = {"asked": time.time()}
        began = time.monotonic()
        (context, outcome), history = await asyncio.gather(self._asker.ask(message, request_id), self._history(message))
        searched = time.monotonic()
        times["searched"] = times["asked"] + searched - began
        prompt = build_prompt(message, history, context, self._prompt_max_chars, now=self._clock(), zone=self._zone)
        answer, model = await self._replier.reply(message, prompt)
        text = shorten(answer, min(self._max_content_chars, MAX_REPLY_CHARS))
        reply: dict[str, Any] = {
            "user_id": message.user_id,
            "text": text,
            "original_message_id": message.message_id,
            "timestamp": json_number(self._clock()),
            "memories": _shown(prompt.memories),
        }
        is_remembered = text not in NOTHING_REMEMBERED
        if not is_remembered:
            reply["meta"] = {REMEMBER: False}
        if message.task_id is not None:
            reply["task_id"] = message.task_id
        if message.agent_id is not None:
            reply["agent_id"] = message.agent_id
        if span.traceparent is not None:
            reply["traceparent"] = span.traceparent
        ids = {"message_id": message.message_id, "request_id": request_id, "task_id": message.task_id}
        trace = {**ids, "outcome": outcome, "times": times, "memories": len(prompt.memories)}
        turn = self._turn(message, prompt, text, model=model, remember=is_remembered, **ids)
        await self._publish(message.user_id, json.dumps(reply), trace, turn)
        span.facts.update(trace)
        await self._request_speech(message, text)
        self.counts["replied"] += 1
        log.info(
            "replied",
            user_id=message.user_id,
            message_id=message.message_id,
            request_id=request_id,
            search=outcome,
            memories=len(prompt.memories),
            asked_ms=round((searched - began) * 1000),
            total_ms=round((time.monotonic() - began) * 1000),
        )

    def _turn(self, message: MemoryUpdateMessage, prompt: Prompt, text: str, **fields: Any) -> bytes:
        if not self._turns.wanted:
            return b""
        messages = [(one["role"], one["content"]) for one in prompt.messages]
        return self._turns.reply(message.user_id, text=message.content, prompt=messages, reply=text, **fields)

    async def _publish(self, user_id: str, reply: str, trace: dict[str, Any], turn: bytes) -> None:
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.publish(self._ai_channel, reply)
            trace["times"]["replied"] = time.time()
            if self._traces.wanted:
                self._traces.add(pipeline, self._traces.record("reply", user_id, **trace))
            self._turns.add(pipeline, turn)
            published, *_ = await pipeline.execute(raise_on_error=False)
        if isinstance(published, Exception):
            raise published

    async def _request_speech(self, message: MemoryUpdateMessage, text: str) -> None:
        # Without a task_id there is no channel that the user's front end would listen on.
        if self._tts_queue is None or message.task_id is None:
            return
        request = {
            "message_id": message.message_id,
            "task_id": message.task_id,
            "text": text,
            "response_channel": f"{TASK_RESPONSE_PREFIX}{message.task_id}",
        }
        await self._client.lpush(self._tts_queue, json.dumps(request))

    async def _history(self, message: MemoryUpdateMessage) -> list[MemoryUpdateMessage]:
        """The last messages before `message`, newest last; none where the conversation cannot be read."""
        if not self._history_messages:
            return []
        try:
            entries = await self._client.lrange(
                conversation_key(message.user_id), -(self._history_messages + _MAX_NEWER), -1
            )
        except (RedisError, OSError) as error:
            self.counts["history_failed"] += 1
            log.warning("history_failed", user_id=message.user_id, error=redact(error))
            return []
        return messages_before(message, entries, self._max_content_chars)[-self._history_messages :]


def _shown(memories: Sequence[Memory]) -> list[dict[str, object]]:
    """The memories published with the reply, for display."""
    return [
        {"id": memory.id, "content": shorten(memory.content, MAX_SHOWN_CHARS), "score": memory.score}
        for memory in memories[:MAX_SHOWN_MEMORIES]
    ]
