"""`python -m services.memory`: the memory service, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import structlog

from services.memory.conversations import Conversations, Updates
from services.memory.service import MemoryService
from services.runtime.process import LoopConnection, alive, connect, serve
from services.runtime.settings import Settings

NAME = "memory"


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Serve both loops until `stop`."""
    log = structlog.get_logger()
    updates = Updates(settings.memory_updates_channel, settings.ltm_stream_key, settings.ltm_stream_max_len)
    async with connect(settings.redis_url.get_secret_value()) as client:
        service = MemoryService(
            client,
            Conversations(
                client,
                max_messages=settings.memory_max_messages,
                ttl_hours=settings.memory_ttl_hours,
                updates=updates if settings.enable_ltm_publish else None,
            ),
            input_queue=settings.user_input_queue,
            ai_channel=settings.ai_responses_channel,
            max_content_chars=settings.ltm_max_content_chars,
        )
        inputs, replies = (
            LoopConnection(settings.user_input_queue, stop),
            LoopConnection(settings.ai_responses_channel, stop),
        )
        log.info("started", publishes=settings.enable_ltm_publish)
        try:
            async with alive(client, NAME, [inputs.working, replies.working]), asyncio.TaskGroup() as loops:
                loops.create_task(_then(stop, service.take_inputs(inputs, stop)))
                loops.create_task(_then(stop, service.take_ai_responses(replies, stop)))
        finally:
            log.info("stopped", **service.counts)


async def _then(stop: asyncio.Event, loop: Awaitable[None]) -> None:
    """A loop that fails takes the other one with it: the process ends, and whoever watches it starts it again."""
    try:
        await loop
    finally:
        stop.set()


if __name__ == "__main__":
    serve(NAME, run)
