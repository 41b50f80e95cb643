"""`python -m services.memory`: the memory service, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack

import structlog

from services.memory.conversations import Conversations, Destination
from services.memory.service import MemoryService
from services.runtime.exposition import exposed
from services.runtime.heartbeat import send_heartbeats
from services.runtime.process import LoopConnection, serve
from services.runtime.redis import connect_async
from services.runtime.settings import Settings
from services.runtime.tracing import open_spans

NAME = "memory"


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Serve both loops until `stop`."""
    log = structlog.get_logger()
    destination = Destination(settings.memory_updates_channel, settings.ltm_stream_key, settings.ltm_stream_max_len)
    spans = open_spans(settings, NAME)
    async with AsyncExitStack() as opened:
        metrics = opened.enter_context(exposed(settings, NAME))
        client = await opened.enter_async_context(connect_async(settings.redis_url.get_secret_value()))
        service = MemoryService(
            client,
            Conversations(
                client,
                max_messages=settings.memory_max_messages,
                ttl_hours=settings.memory_ttl_hours,
                destination=destination if settings.enable_ltm_publish else None,
            ),
            input_queue=settings.user_input_queue,
            ai_channel=settings.ai_responses_channel,
            max_content_chars=settings.ltm_max_content_chars,
            defaults=settings.message_defaults,
            spans=spans,
        )
        metrics.follow(service.counts)
        inputs = LoopConnection(settings.user_input_queue, stop, metrics=metrics)
        replies = LoopConnection(settings.ai_responses_channel, stop, metrics=metrics)
        metrics.watch([inputs.turning, replies.turning])
        log.info("started", publishes=settings.enable_ltm_publish)
        try:
            async with (
                send_heartbeats(client, NAME, [inputs.working, replies.working], on_sent=metrics.beat),
                asyncio.TaskGroup() as loops,
            ):
                loops.create_task(_stop_after(service.serve_user_inputs(inputs, stop), stop))
                loops.create_task(_stop_after(service.serve_ai_responses(replies, stop), stop))
        finally:
            spans.close()
            log.info("stopped", **service.counts)


async def _stop_after(loop: Awaitable[None], stop: asyncio.Event) -> None:
    """Run a loop, and stop the other one when it ends: a loop that failed ends the process, which is then restarted."""
    try:
        await loop
    finally:
        stop.set()


if __name__ == "__main__":
    serve(NAME, run)
