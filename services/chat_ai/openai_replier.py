"""The replier that asks a chat model at an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from keepsake_client.protocol import COUNTERS, MemoryUpdateMessage
from openai import AsyncOpenAI, OpenAIError
from redis.asyncio import Redis

from services.chat_ai.prompt import Prompt
from services.chat_ai.replies import Replier, Reply
from services.runtime.counters import PendingCounts
from services.runtime.reasoning import without_reasoning

REPLY_TIMEOUT_S = 30.0

log = structlog.get_logger()


class OpenAIReplier:
    """Replies with a chat model, and with `fallback` where it fails or takes longer than `timeout_s`.

    Args:
        redis: counts the failures, in `ltm:counters`.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        model: str,
        fallback: Replier,
        redis: Redis,
        timeout_s: float = REPLY_TIMEOUT_S,
    ) -> None:
        self._client = client
        self._model = model
        self._fallback = fallback
        self._redis = redis
        self._counts = PendingCounts(COUNTERS)
        self._timeout_s = timeout_s

    async def reply(self, message: MemoryUpdateMessage, prompt: Prompt) -> Reply:
        """The model's answer to `message`, without its reasoning; or the fallback's."""
        try:
            # The library's timeout restarts with each byte and each retry; this one covers the whole request.
            async with asyncio.timeout(self._timeout_s):
                completion = await self._client.chat.completions.create(
                    model=self._model,
                    messages=prompt.messages,  # type: ignore[arg-type]  # one TypedDict for the library's five
                )
            if (text := without_reasoning(_text(completion.choices[0].message.content))).strip():
                return Reply(text, self._model)
            log.error("provider_failed", model=self._model, error="empty reply")
        except (OpenAIError, TimeoutError) as error:
            # No traceback: it contains the provider's message, which may quote the prompt.
            log.error("provider_failed", model=self._model, error=type(error).__name__)  # noqa: TRY400
        except Exception:
            log.exception("provider_failed", model=self._model)
        self._counts.count("chat_model_failed")
        await self._counts.flush_async(self._redis)
        return await self._fallback.reply(message, prompt)


def _text(content: Any) -> str:
    """The text of an answer. Models that reason may give a list of parts, of which those of type `text` are said."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    return content or ""
