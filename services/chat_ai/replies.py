"""Repliers: what answers a message, and the built-in one, which quotes memories."""

from __future__ import annotations

import re
from datetime import tzinfo
from typing import NamedTuple, Protocol

from keepsake_client.context import shorten, speaker_name, when
from keepsake_client.protocol import Memory, MemoryUpdateMessage, clean

from services.chat_ai.prompt import Prompt

#: The maximum length of a quote in a built-in reply; without it, replies that quote replies would grow without bound.
MAX_QUOTE_CHARS = 500
#: The maximum length of a built-in reply; a memory that would exceed it is not quoted.
MAX_REPLY_CHARS = 4_000

#: The least score of a memory that is quoted. Of the right answers of tests/data/chats-seen.json 0.84 have more, and of
#: the best memories for questions without an answer 0.31; 0.12 would be 0.93 and 0.56.
MIN_SCORE = 0.15

#: What the built-in replier says without a memory, in Chinese and in English.
NOTHING_REMEMBERED = ("关于这件事，我还没有任何记忆。", "I do not remember anything about that yet.")

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile(r"[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f]")

#: The built-in replier, in place of a model's name.
BUILT_IN = "built-in"


class Reply(NamedTuple):
    """A reply.

    Args:
        text: never blank.
        model: what made it: the name of a model, or `BUILT_IN`.
    """

    text: str
    model: str


class Replier(Protocol):
    """Interface of a replier."""

    async def reply(self, message: MemoryUpdateMessage, prompt: Prompt) -> Reply:
        """The answer to `message`; never blank, never an error."""
        ...


class QuotingReplier:
    """Replies in Chinese or English by quoting the memories verbatim, with speaker and time.

    It prefers the user's memories: its own earlier replies only quote them again.

    Args:
        zone: the time zone of the dates.
    """

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone

    async def reply(self, message: MemoryUpdateMessage, prompt: Prompt) -> Reply:
        """The answer to `message`."""
        chinese = is_chinese(message.content)
        memories = _answering(prompt.memories)
        if not memories:
            return Reply(NOTHING_REMEMBERED[0 if chinese else 1], BUILT_IN)
        lines = ["我记得：" if chinese else "Here is what I remember:"]
        for memory in memories:
            another = None if _is_by_asker(memory, message) else speaker_name(memory)
            line = (_in_chinese if chinese else _in_english)(memory, when(memory.timestamp, self._zone), another)
            if len(lines) > 1 and sum(map(len, lines)) + len(line) > MAX_REPLY_CHARS:
                break
            lines.append(line)
        return Reply("\n".join(lines), BUILT_IN)


def _answering(memories: list[Memory]) -> list[Memory]:
    """Memories with half the odds of the best, at least: this replier does not select as a model does.

    Odds, because a score of 0.9 is as far from one of 0.8 as 0.3 is from 0.16.
    """
    best = max((_score(memory) for memory in memories), default=0.0)
    near = [memory for memory in memories if _score(memory) >= max(MIN_SCORE, best / (2 - best))]
    return [memory for memory in near if memory.source == "user"] or near


def _score(memory: Memory) -> float:
    return 1.0 if memory.score is None else memory.score


def is_chinese(text: str) -> bool:
    """Whether the text has Han characters and no kana, which would make it Japanese."""
    return bool(_HAN.search(text)) and not _KANA.search(text)


def _is_by_asker(memory: Memory, message: MemoryUpdateMessage) -> bool:
    """Whether who asks has said it: by id where both have one, else by name."""
    said, asks = memory.speaker, message.speaker
    if said is None or asks is None:
        return False
    return said.id == asks.id if said.id and asks.id else said.name == asks.name


def _in_english(memory: Memory, date: str, another: str | None) -> str:
    if memory.kind == "fact":  # found in what was said, in other words
        return f"- {date}: {shorten(clean(memory.content), MAX_QUOTE_CHARS)}"
    who = "I" if memory.source == "ai" else another or "you"
    return f'- {date}, {who} said: "{shorten(clean(memory.content), MAX_QUOTE_CHARS)}"'


def _in_chinese(memory: Memory, date: str, another: str | None) -> str:
    if memory.kind == "fact":
        return f"- {date}：{shorten(clean(memory.content), MAX_QUOTE_CHARS)}"
    who = "我" if memory.source == "ai" else another or "你"
    return f"- {date}，{who}说过：“{shorten(clean(memory.content), MAX_QUOTE_CHARS)}”"
