"""Records of an import: what a form's reader yields, and how that becomes a memory with an id of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from hashlib import sha256
from typing import Any, Final, Literal

from keepsake_client.errors import KeepsakeError
from keepsake_client.protocol import clean, json_number
from keepsake_client.times import EARLIEST_S, MAX_AHEAD_S, parse_timestamp

from services.imports.people import Person, Roles

#: What stands for bytes that are no text in the file's encoding: a code point that no text has.
DAMAGED: Final = "\ufdd0"
#: Longer ids and names are cut, and end in a hash.
MAX_ID_CHARS: Final = 200
#: Why a message is skipped that is of none of the conversations that were asked for.
OTHER_CONVERSATIONS: Final = "of other conversations"


class UnreadableFile(KeepsakeError):
    """A file that cannot be imported, or not further; the message says where and why."""

    code = "unreadable_file"


@dataclass(frozen=True, slots=True)
class Options:
    """How a file is read.

    Args:
        user_id: the user whose memories these become.
        zone: that of times which name none.
        max_chars: the longest content that the stack takes.
        session: the session_id of all records, in place of one for each conversation.
        agent: the agent_id of all records.
        me: the user's name or id in the export.
        ai: names or ids of those that are the AI's.
        room: all people are speakers; none is the user.
        chats: titles or ids of the conversations to read; empty: all.
        dates: "dmy" or "mdy", where a text leaves it open.
        mapping: field of a record -> column, or path of keys, of a plain file.
    """

    user_id: str
    zone: tzinfo = UTC
    max_chars: int = 32_768
    session: str | None = None
    agent: str | None = None
    me: str | None = None
    ai: tuple[str, ...] = ()
    room: bool = False
    chats: tuple[str, ...] = ()
    dates: Literal["dmy", "mdy"] | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Said:
    """One message of an export.

    Args:
        place: where it stands in the file, for people.
        time: as the export has it; None where it has none.
        session: the conversation's id in the export.
        source: where the export says who is the AI.
        person: who said it, where the export has a name.
        id: the message's in the export.
        title: the conversation's.
    """

    place: str
    content: str
    time: Any
    session: str
    source: Literal["user", "ai"] | None = None
    person: Person | None = None
    id: str | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """A record that can be imported."""

    place: str
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Skipped:
    """What an export has and no memory is made of, such as a system message."""

    reason: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Bad:
    """What should have been a record and is none; the problem never quotes contents."""

    place: str
    problem: str


#: What a form's reader yields: a record of Keepsake's own export is complete as it is.
Item = Said | Parsed | Skipped | Bad


class RecordBuilder:
    """Turns messages into records; it keeps the state that ids and missing times need.

    Args:
        form: the export's form, which ids begin with: they are unique within it.
        roles: who is who.
        now: seconds since 1970; nothing was said later.
        has_own_ids: the export's ids are kept as they are.
    """

    def __init__(self, form: str, options: Options, roles: Roles, now: float, *, has_own_ids: bool = False) -> None:
        self._form = form
        self._prefix = "" if has_own_ids else f"{form}:"
        self._options = options
        self._roles = roles
        self._latest = now + MAX_AHEAD_S
        self._chats = {chat.strip().casefold() for chat in options.chats}
        self._said_at: tuple[str, float] | None = None
        self._moment: tuple[str, str] | None = None
        self._occurrences: Counter[bytes] = Counter()

    def build(self, said: Said) -> Parsed | Skipped | Bad:
        """The record of a message, or why there is none."""
        names = (said.title or "", said.session, self._prefix + said.session)
        if self._chats and self._chats.isdisjoint(name.strip().casefold() for name in names):
            return Skipped(OTHER_CONVERSATIONS)
        if DAMAGED in said.content:
            return Bad(said.place, "bytes that are no text in the file's encoding; see --encoding")
        content = clean(said.content).strip()
        if not content:
            return Skipped("without text")
        if len(content) > self._options.max_chars:
            return Bad(said.place, f"{len(content)} characters; LTM_MAX_CONTENT_CHARS is {self._options.max_chars}")
        try:
            timestamp = self._time(said)
        except ValueError as error:
            return Bad(said.place, str(error))
        source, speaker = (said.source, named(said)) if said.source else self._roles.of(said.person)
        record = {
            "kind": "memory",
            "content": content,
            "source": source,
            "timestamp": json_number(timestamp),
            "session_id": self._options.session or short(self._prefix + clean(said.session)),
            "message_id": short(self._prefix + clean(said.id)) if said.id else self._derived_id(said, content),
            "meta": {"imported_from": self._form, **({"title": short(clean(said.title))} if said.title else {})},
        }
        if speaker:
            record["speaker"] = {name: short(clean(value)) for name, value in speaker.items()}
        if self._options.agent is not None:
            record["agent_id"] = self._options.agent
        return Parsed(said.place, record)

    def _time(self, said: Said) -> float:
        """When it was said; without a time, when the message before it in the conversation was."""
        if said.time is None or said.time == "":
            if self._said_at is None or self._said_at[0] != said.session:
                raise ValueError("no time")
            return self._said_at[1]
        try:
            seconds = parse_timestamp(said.time, self._options.zone)
        except ValueError as error:
            raise ValueError(f"its time cannot be read: {error}") from None
        if not EARLIEST_S <= seconds <= self._latest:
            raise ValueError("its time is before 2000 or ahead of now")
        self._said_at = said.session, seconds
        return seconds

    def _derived_id(self, said: Said, content: str) -> str:
        """An id that the same message has in each export: of its text, its time as written and its conversation.

        Equal messages of one moment are counted. The zone is left out: another `--timezone` must not double them.
        """
        moment = said.session, "" if said.time is None else str(said.time)
        if moment != self._moment:
            self._moment = moment
            self._occurrences.clear()
        name = said.source or (said.person.name if said.person else "")
        digest = sha256(json.dumps([*moment, name, content]).encode()).digest()
        self._occurrences[digest] += 1
        return f"{self._form}:{sha256(digest + self._occurrences[digest].to_bytes(4)).hexdigest()[:32]}"


def named(said: Said) -> dict[str, str] | None:
    """The AI's speaker, where the export names the character; the user needs none."""
    return said.person.speaker if said.source == "ai" and said.person is not None else None


def short(text: str) -> str:
    """An id or a name of bounded length; equal ones stay equal, others differ."""
    return text if len(text) <= MAX_ID_CHARS else f"{text[:150]}~{sha256(text.encode()).hexdigest()[:16]}"


def first_text(fields: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of these fields that is an id or a name; see `text_or_none`."""
    return next((text for name in names if (text := text_or_none(fields.get(name)))), None)


def text_or_none(value: Any) -> str | None:
    """An id or a name from JSON: a text that is not blank, or a whole number; None for all else."""
    if isinstance(value, str):
        return value if value.strip() else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
