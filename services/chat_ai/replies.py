"""Where replies come from: an OpenAI-compatible endpoint, or the built-in replier that quotes what it was given."""

from __future__ import annotations

import asyncio
import re
from typing import Protocol

import structlog
from keepsake_client.protocol import Memory, MemoryUpdateMessage, clean
from openai import AsyncOpenAI, OpenAIError

from services.chat_ai.prompt import Prompt, shorten, when

REPLY_TIMEOUT_S = 30.0
#: A quote in a built-in reply; longer memories are cut, so that replies quoting replies do not grow for ever.
QUOTE_CHARS = 500
#: The built-in reply as a whole: no further memory is quoted once it is this long.
REPLY_CHARS = 4_000

#: What is less likely to answer is not quoted.
LEAST_SCORE = 0.25

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile(r"[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f]")

log = structlog.get_logger()


class Replier(Protocol):
    """Whoever answers a message."""

    async def reply(self, message: MemoryUpdateMessage, prompt: Prompt) -> str:
        """The answer to `message`; never blank, never an error."""
        ...


class QuotingReplier:
    """Answers in Chinese or English by quoting the memories word for word, with who said them and when.

    It quotes the user where it can: its own earlier replies quote the same words again.
    """

    async def reply(self, message: MemoryUpdateMessage, prompt: Prompt) -> str:
        """The answer to `message`."""
        chinese = is_chinese(message.content)
        memories = _answering(prompt.memories)
        if not memories:
            return "关于这件事，我还没有任何记忆。" if chinese else "I do not remember anything about that yet."
        lines = ["我记得：" if chinese else "Here is what I remember:"]
        for memory in memories:
            line = _in_chinese(memory) if chinese else _in_english(memory)
            if len(lines) > 1 and sum(map(len, lines)) + len(line) > REPLY_CHARS:
                break
            lines.append(line)
        return "\n".join(lines)


class OpenAIReplier:
    """Asks a chat model, and answers with `fallback` when it fails or takes longer than `seconds`."""

    def __init__(self, client: AsyncOpenAI, model: str, fallback: Replier, seconds: float = REPLY_TIMEOUT_S) -> None:
        self._client = client
        self._model = model
        self._fallback = fallback
        self._seconds = seconds

    async def reply(self, message: MemoryUpdateMessage, prompt: Prompt) -> str:
        """The model's answer to `message`, or the fallback's."""
        try:
            # The client's own limit starts anew with each byte and each retry; this one holds for all of it.
            async with asyncio.timeout(self._seconds):
                completion = await self._client.chat.completions.create(
                    model=self._model,
                    messages=prompt.messages,  # type: ignore[arg-type]  # one TypedDict for the library's five
                )
            if (text := completion.choices[0].message.content) and text.strip():
                return text
            log.error("provider_failed", model=self._model, error="empty reply")
        except (OpenAIError, TimeoutError) as error:
            # No traceback: it holds the provider's words, which may repeat what was sent.
            log.error("provider_failed", model=self._model, error=type(error).__name__)  # noqa: TRY400
        except Exception:
            log.exception("provider_failed", model=self._model)
        return await self._fallback.reply(message, prompt)


def _answering(memories: list[Memory]) -> list[Memory]:
    """Those that answer about as well as the best: a model would pick, and what is quoted will be remembered again."""
    best = max((_score(memory) for memory in memories), default=0.0)
    near = [memory for memory in memories if _score(memory) >= max(LEAST_SCORE, best / 2)]
    return [memory for memory in near if memory.source == "user"] or near


def _score(memory: Memory) -> float:
    return 1.0 if memory.score is None else memory.score


def is_chinese(text: str) -> bool:
    """Han characters without kana, which would make it Japanese."""
    return bool(_HAN.search(text)) and not _KANA.search(text)


def _in_english(memory: Memory) -> str:
    who = "I" if memory.source == "ai" else "you"
    return f'- {when(memory.timestamp)}, {who} said: "{shorten(clean(memory.content), QUOTE_CHARS)}"'


def _in_chinese(memory: Memory) -> str:
    who = "我" if memory.source == "ai" else "你"
    return f"- {when(memory.timestamp)}，{who}说过：“{shorten(clean(memory.content), QUOTE_CHARS)}”"
