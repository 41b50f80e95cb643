"""`python -m services.chat_ai`: the chat service, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import structlog
from keepsake_client import AsyncClient
from redis.asyncio import Redis

from services.chat_ai.replies import QuotingReplier, Replier
from services.chat_ai.service import ChatService
from services.runtime.exposition import exposed
from services.runtime.heartbeat import send_heartbeats
from services.runtime.process import LoopConnection, serve
from services.runtime.process_record import Dependency, ProcessRecord
from services.runtime.redis import connect_async
from services.runtime.settings import Settings, mask_url
from services.runtime.traces import Traces
from services.runtime.tracing import current_traceparent, open_spans
from services.runtime.turns import Turns
from services.runtime.wire_names import wire_names

NAME = "chat-ai"


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Reply until `stop`."""
    log = structlog.get_logger()
    url = settings.redis_url.get_secret_value()
    spans = open_spans(settings, NAME)
    async with AsyncExitStack() as opened:
        opened.callback(spans.close)
        metrics = opened.enter_context(exposed(settings, NAME))
        client = await opened.enter_async_context(connect_async(url))
        ltm = await opened.enter_async_context(
            AsyncClient(
                url,
                **wire_names(settings),
                search_timeout_ms=settings.ltm_search_timeout_ms,
                enabled=settings.enable_ltm,
                traceparent=current_traceparent,
            )
        )
        service = ChatService(
            client,
            ltm,
            await _replier(settings, client, opened),
            updates_channel=settings.memory_updates_channel,
            ai_channel=settings.ai_responses_channel,
            tts_queue=settings.chat_tts_queue,
            memory_limit=settings.chat_memory_limit,
            history_messages=settings.chat_history_messages,
            prompt_max_chars=settings.chat_prompt_max_chars,
            max_content_chars=settings.ltm_max_content_chars,
            defaults=settings.message_defaults,
            zone=settings.timezone,
            spans=spans,
            traces=Traces.of(settings, NAME, metrics),
            turns=Turns.of(settings),
            updates_stream=settings.ltm_stream_key,
        )
        metrics.follow(service.counts)
        link = LoopConnection(settings.memory_updates_channel, stop, metrics=metrics)
        metrics.watch([link.turning])
        log.info("started", ltm_enabled=settings.enable_ltm)
        try:
            record = _record(settings)
            async with send_heartbeats(client, NAME, [link.working], record=record, on_sent=metrics.beat):
                await service.run(link, stop)
        finally:
            log.info("stopped", **service.counts)


def _record(settings: Settings) -> ProcessRecord:
    if not settings.has_chat_model:
        return ProcessRecord()
    at = f" at {mask_url(settings.chat_base_url.get_secret_value())}" if settings.chat_base_url else ""
    return ProcessRecord(uses=[Dependency(name="chat model", detail=f"{settings.chat_model}{at}")])


async def _replier(settings: Settings, redis: Redis, opened: AsyncExitStack) -> Replier:
    built_in = QuotingReplier(settings.timezone)
    if not settings.has_chat_model:
        return built_in
    # Here: without a model, the chat service does without OpenAI's client, which takes 22 MB and most of its start.
    from openai import AsyncOpenAI  # noqa: PLC0415

    from services.chat_ai.openai_replier import REPLY_TIMEOUT_S, OpenAIReplier  # noqa: PLC0415

    # Self-hosted endpoints often need no key; the library requires one.
    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else "none"
    url = settings.chat_base_url.get_secret_value() if settings.chat_base_url else None
    client = AsyncOpenAI(base_url=url, api_key=key, timeout=REPLY_TIMEOUT_S, max_retries=1)
    return OpenAIReplier(await opened.enter_async_context(client), settings.chat_model, built_in, redis)


if __name__ == "__main__":
    serve(NAME, run)
