"""Prompts of extraction: the messages for the LLM, and the JSON schema of its answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, tzinfo
from importlib.resources import files
from typing import Any, Final, get_args
from zoneinfo import ZoneInfo

from services.long_term_memory.extraction.batch import Batch, Message
from services.long_term_memory.extraction.tokens import estimate_text
from services.long_term_memory.postgres.facts import FactKind

#: By which the roles of the chat go; a speaker's name that equals one must not pass for it.
USER: Final = "user"
AI: Final = "ai"
#: English whatever the locale, as the prompt's example has them.
_WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MAX_NAME_CHARS: Final = 60
#: Of a message that was read already: it is there so that "yes, that one" is understood.
MAX_BEFORE_CHARS: Final = 500
#: Two days before the end of the year 9999, so that no zone leads past it.
_LAST_SECOND: Final = 253_402_128_000.0
#: What an answer costs beside the prompt, per message of the batch: 25,000 tokens for 1,000 messages, and twice that in
#: reserve, for the budget is settled with the real usage.
_ANSWER_TOKENS_A_MESSAGE: Final = 50
_ANSWER_TOKENS: Final = 50


class Prompts:
    """Prompts for batches.

    Args:
        slots: of the profile, that may be changed.
    """

    def __init__(self, slots: Sequence[str]) -> None:
        template = files(__package__).joinpath("prompt.txt").read_text(encoding="utf-8")
        self._system = template.replace("{slots}", ", ".join(slots) or "none: profile is always []")
        self.schema = answer_schema(slots)

    def messages(self, batch: Batch) -> list[dict[str, str]]:
        """The messages for the LLM: instructions, and the batch as data."""
        return [{"role": "system", "content": self._system}, {"role": "user", "content": batch_json(batch)}]

    def estimate_tokens(self, batch: Batch) -> int:
        """An estimate of what a call for the batch costs, the answer included."""
        prompt = sum(estimate_text(message["content"]) for message in self.messages(batch))
        return prompt + _ANSWER_TOKENS + _ANSWER_TOKENS_A_MESSAGE * len(batch.messages)


def batch_json(batch: Batch) -> str:
    """The batch as JSON: messages and facts by their place, from 1, not by the numbers that the database has.

    No text of a user can end the string that it is in, nor be one of a model's own tokens, such as `<|im_end|>`.
    """
    data = {
        "profile": batch.slots,
        "facts": [
            {"n": place, "text": fact.content, **({"when": fact.when} if fact.when else {})}
            for place, fact in enumerate(batch.facts, start=1)
        ],
        "before": [_message(message, batch.zone, MAX_BEFORE_CHARS) for message in batch.before],
        "new": [{"n": place, **_message(message, batch.zone)} for place, message in enumerate(batch.messages, start=1)],
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c").replace("\u2028", " ")


def speaker_of(message: Message) -> str:
    """Who says a message: `ai`, `user`, or the name of one of several people."""
    if message.source == AI:
        return AI
    speaker = message.speaker or {}
    name = " ".join((speaker.get("name") or speaker.get("id") or USER).split())[:_MAX_NAME_CHARS]
    return USER if not name or name.casefold() in {USER, AI} else name


def _message(message: Message, zone: tzinfo, most: int | None = None) -> dict[str, Any]:
    own_zone = ZoneInfo(message.timezone) if message.timezone else zone
    at = datetime.fromtimestamp(min(max(message.said_at, 0.0), _LAST_SECOND), own_zone)
    return {
        "at": f"{at:%Y-%m-%d} {_WEEKDAYS[at.weekday()]} {at:%H:%M}",
        "by": speaker_of(message),
        "text": message.content[:most],
    }


def answer_schema(slots: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of an answer, in the subset that OpenAI's strict mode takes."""
    numbers = {"type": "array", "items": {"type": "integer"}}
    fact = {
        "text": {"type": "string"},
        "about": {"type": "string"},
        "from": numbers,
        "when": {"type": ["string", "null"]},
        "kind": {"type": "string", "enum": list(get_args(FactKind))},
        "replaces": numbers,
        "confirms": {"type": ["integer", "null"]},
    }
    slot = {
        "slot": {"type": "string", **({"enum": list(slots)} if slots else {})},
        "value": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        "from": numbers,
    }
    return _object({"facts": _list(_object(fact)), "profile": _list(_object(slot))})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}
