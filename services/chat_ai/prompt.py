"""The prompt of a reply: instructions, the time, what is remembered, the last messages, the message to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, Literal, TypedDict

from keepsake_client import Context
from keepsake_client.context import MAX_QUOTE_CHARS, quoted, render, shorten, speaker_name, when
from keepsake_client.protocol import ContextParts, Memory, MemoryUpdateMessage, clean

INSTRUCTIONS = (
    "You are a companion in an ongoing conversation. Answer the last message, briefly and in its language. "
    "Never claim to remember what neither the conversation nor the quoted memories say."
)
#: Where people have names, each of their messages begins with one.
SEVERAL_SPEAK = " Several people speak: each message begins with the name of who says it; yours does not."
BEFORE_CONTEXT = "\n\n"


class ChatMessage(TypedDict):
    """One message in the form of OpenAI's chat completions."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Prompt:
    """The input of a reply.

    Attributes:
        messages: for a model; their contents have at most `max_chars` characters in total.
        memories: every memory that `messages` contains, best first: quoted, or as part of the conversation.
    """

    messages: list[ChatMessage]
    memories: list[Memory]


def build_prompt(
    current: MemoryUpdateMessage,
    history: Sequence[MemoryUpdateMessage],
    context: Context,
    max_chars: int,
    *,
    now: float,
    zone: tzinfo,
) -> Prompt:
    """The prompt for `current` within `max_chars` characters.

    The message itself is always included, cut where it is too long alone. Of the remaining characters, what is
    remembered gets half (more where the conversation is short); the conversation gets the rest, newest first, without
    gaps.

    Args:
        history: the messages before `current`, newest last.
        context: its memories best first; `current` itself may be among them and is left out.
        now: the time of the reply, in seconds since 1970.
        zone: the time zone of all dates.
    """
    instructions = INSTRUCTIONS + (SEVERAL_SPEAK if speaker_name(current) else "") + _now(now, zone)
    question = shorten(_with_name(current), max_chars - len(instructions))
    left = max_chars - len(instructions) - len(question)
    found = [memory for memory in context.memories if memory.content.strip() and not _is(memory, current)]
    wanted = len(_block(context.parts, found, left, zone)[0])
    shown = _newest(history, left - min(left // 2, wanted))
    left -= sum(len(message["content"]) for _, message in shown)

    in_history = [memory for memory in found if any(_is(memory, past) for past, _ in shown if past.message_id)]
    others = [memory for memory in found if memory not in in_history]
    parts = context.parts.model_copy(update={"recap": _unsaid(context.parts.recap, [past for past, _ in shown])})
    block, used = _block(parts, others, left, zone)
    return Prompt(
        messages=[
            {"role": "system", "content": instructions + block},
            *(message for _, message in shown),
            {"role": "user", "content": question},
        ],
        memories=[memory for memory in found if memory in in_history or memory in used],
    )


def _block(parts: ContextParts, memories: Sequence[Memory], max_chars: int, zone: tzinfo) -> tuple[str, list[Memory]]:
    """Profile and recap of a context with these memories, as text; and the memories that it quotes.

    It is rendered here, because the conversation is: what that shows is not quoted again.
    """
    shown = ContextParts.model_construct(
        profile=parts.profile, memories=[quoted(memory, zone) for memory in memories], recap=parts.recap
    )
    rendered = render(shown, max_chars - len(BEFORE_CONTEXT))
    text = BEFORE_CONTEXT + rendered.text if rendered.text else ""
    return text, [memories[place] for place in rendered.memories]


def _unsaid(recap: Sequence[dict[str, Any]], history: Sequence[MemoryUpdateMessage]) -> list[dict[str, Any]]:
    """The lines of a recap that the conversation does not show."""
    said = {shorten(clean(past.content), MAX_QUOTE_CHARS) for past in history}
    return [line for line in recap if line.get("quote") not in said]


def _now(seconds: float, zone: tzinfo) -> str:
    return f" It is now {datetime.fromtimestamp(seconds, zone):%A}, {when(seconds, zone)} (time zone {zone})."


def _with_name(message: MemoryUpdateMessage) -> str:
    """What was said, after the name of who said it; a text that has the name already stays as it is."""
    name, content = speaker_name(message), str(clean(message.content))
    has_name = name is None or content.startswith((f"{name}:", f"{name}："))
    return content if has_name else f"{name}: {content}"


def _newest(history: Sequence[MemoryUpdateMessage], max_chars: int) -> list[tuple[MemoryUpdateMessage, ChatMessage]]:
    shown: list[tuple[MemoryUpdateMessage, ChatMessage]] = []
    for past in reversed(history):
        content = _with_name(past)
        max_chars -= len(content)
        if max_chars < 0:
            break
        shown.insert(0, (past, {"role": "assistant" if past.source == "ai" else "user", "content": content}))
    return shown


def _message_id(memory: Memory) -> str | None:
    message_id = memory.metadata.get("message_id")
    return message_id if isinstance(message_id, str) else None


def _is(memory: Memory, message: MemoryUpdateMessage) -> bool:
    """Whether the memory is the given message, indexed before it was answered."""
    if message.message_id is not None and _message_id(memory) is not None:
        return message.is_same_event(_message_id(memory), memory.source, memory.content)
    return memory.content == message.content and memory.timestamp == message.timestamp
