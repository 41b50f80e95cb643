"""Turns: one record for each search that was answered and each reply that was made, in a capped stream.

Beside its trace record, a search or a reply has a turn record, which may have contents: the query, the candidates, the
prompt and the reply. It is written after the response, or with the reply, and fails neither.
`services/runtime/turn_reader.py` reads the records.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from keepsake_client.context import shorten
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM, Candidate, Cut

from services.runtime.logging import user_id_hasher
from services.runtime.settings import Settings

#: The most characters of a query, of what the user said, and of a reply.
MAX_TEXT_CHARS: Final = 4_000
#: The most characters of one message of a prompt, and of all.
MAX_PROMPT_MESSAGE_CHARS: Final = 12_000
MAX_PROMPT_CHARS: Final = 24_000
#: The most bytes of a record: one that is longer, such as one of emoji, goes without its longest texts.
MAX_RECORD_BYTES: Final = 65_536
#: The most characters of each text in a record that is longer even without these: senders choose the ids in it.
MIN_TEXT_CHARS: Final = 1_000
#: Of a request, what is no option of the search, or is told elsewhere.
_NO_OPTIONS: Final = ("query", "explain", "timings")


class Explanation(Protocol):
    """The explanation of a search."""

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The best memories."""

    @property
    def cut(self) -> Cut:
        """Where the results end."""


@dataclass(frozen=True)
class Turns:
    """The turn records of one process; without arguments, it writes none.

    Args:
        max_len: how many records the stream keeps, approximately; 0 writes none.
        contents: whether the records have contents.
        user: makes a record's `user` of a user id.
    """

    max_len: int = 0
    contents: bool = False
    user: Callable[[str], str] = str

    @classmethod
    def of(cls, settings: Settings) -> Turns:
        """The turns that the settings ask for."""
        max_len = 0 if settings.ltm_turns == "off" else settings.ltm_turns_max
        return cls(max_len, settings.ltm_turns == "contents", user_id_hasher(settings))

    @property
    def wanted(self) -> bool:
        """Whether records are written."""
        return self.max_len > 0

    def search(self, request: dict[str, Any], explained: Explanation | None) -> bytes:
        """The record of a search or context that was answered.

        Args:
            request: as an adapter has validated it.
            explained: its candidates, and where its results end; None where there was no time for that.
        """
        data = request["data"]
        query, shortened = self._text(data["query"])
        return self._record(
            "search",
            request["user_id"],
            request_id=request["request_id"],
            type=request["type"],
            query=query,
            options=self._options(data),
            candidates=[self._candidate(candidate) for candidate in explained.candidates] if explained else None,
            cut=explained.cut.__dict__ if explained else None,
            shortened=shortened,
        )

    def reply(self, user_id: str, *, text: str, prompt: Sequence[tuple[str, str]], reply: str, **fields: Any) -> bytes:
        """The record of a reply.

        Args:
            text: what the user said.
            prompt: what the model got: role and content of each message.
            fields: the others of the record.
        """
        messages, left_out = _bounded(prompt) if self.contents else (None, False)
        texts = {"text": self._text(text), "reply": self._text(reply)}
        return self._record(
            "reply",
            user_id,
            **fields,
            **{name: kept for name, (kept, _) in texts.items()},
            prompt=messages,
            shortened=left_out or any(cut for _, cut in texts.values()),
        )

    def add(self, pipeline: Any, record: bytes) -> None:
        """Queue the command that writes a record, if there is one, on a pipeline of redis-py, as `Traces.add` does."""
        if record:
            pipeline.xadd(TURNS_STREAM, {TURN_FIELD: record}, maxlen=self.max_len, approximate=True)

    def _record(self, kind: str, user_id: str, **fields: Any) -> bytes:
        """A `TurnRecord` as JSON, without fields that have no value; not validated, as a trace record is not."""
        known = {"kind": kind, "at": round(time.time(), 4), "user": self.user(user_id), **fields}
        raw = _json(known)
        if len(raw) <= MAX_RECORD_BYTES:
            return raw
        for candidate in known.get("candidates") or ():
            candidate.pop("content", None)
        known |= {"prompt": None, "shortened": True}
        raw = _json(known)
        if len(raw) <= MAX_RECORD_BYTES:
            return raw
        texts = {name: text[:MIN_TEXT_CHARS] for name in ("query", "text", "reply") if (text := known.get(name))}
        return _json({**known, **texts, "options": None, "candidates": None, "model": None})

    def _text(self, text: str) -> tuple[str | None, bool]:
        """The text as a record has it, and whether it is cut."""
        if not self.contents:
            return None, False
        return shorten(text, MAX_TEXT_CHARS), len(text) > MAX_TEXT_CHARS

    def _options(self, data: dict[str, Any]) -> dict[str, Any]:
        """What a search asks for besides its query: other users as `user` is written, names with contents alone."""
        options = {name: value for name, value in data.items() if name not in _NO_OPTIONS}
        options["filters"] = dict(data.get("filters") or {})
        if also := data.get("also"):
            options["also"] = [self.user(user) for user in also]
        if not self.contents:
            options.pop("speaker", None)
            options["filters"].pop("speaker", None)
        return {name: value for name, value in options.items() if value not in (None, {})}

    def _candidate(self, candidate: Candidate) -> dict[str, Any]:
        hidden = () if self.contents else ("content",)
        return {name: value for name, value in candidate.__dict__.items() if value is not None and name not in hidden}


def _bounded(prompt: Sequence[tuple[str, str]]) -> tuple[list[dict[str, str]], bool]:
    """A prompt's first message, which instructs, and as many of the last as there is room for; whether any misses."""
    room, kept = MAX_PROMPT_CHARS, []
    for role, content in [*prompt[:1], *reversed(prompt[1:])]:
        if room <= 0:
            break
        shown = shorten(content, min(MAX_PROMPT_MESSAGE_CHARS, room))
        room -= len(shown)
        kept.append({"role": role, "content": shown})
    left_out = len(kept) < len(prompt) or sum(len(content) for _, content in prompt) > MAX_PROMPT_CHARS - room
    return [*kept[:1], *reversed(kept[1:])], left_out


def _json(fields: dict[str, Any]) -> bytes:
    present = {name: value for name, value in fields.items() if value is not None and (value or name != "shortened")}
    # Not in ASCII, of which a Chinese character would take six. An id may have lone surrogates.
    return json.dumps(present, ensure_ascii=False).encode("utf-8", "surrogatepass")


#: Writes no records.
NO_TURNS = Turns()
