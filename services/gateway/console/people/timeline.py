"""Sessions of a timeline: memories in the order of time, grouped by the session that they were said in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, tzinfo

from keepsake_client.protocol import Memory


@dataclass
class SessionGroup:
    """Memories of one session that are on one page.

    Args:
        session_id: None where they are of no session; then they are of one day.
        memories: newest first.
    """

    session_id: str | None
    day: date | None
    memories: list[Memory] = field(default_factory=list)

    def is_continued_by(self, other: SessionGroup) -> bool:
        """Whether another one, of the next page, is of the same session or day."""
        return (self.session_id, self.day) == (other.session_id, other.day)


def session_of(memory: Memory) -> str | None:
    """The session of a memory, where its publisher set one."""
    session = memory.metadata.get("session_id")
    return None if session in (None, "") else str(session)


def by_session(memories: Iterable[Memory], zone: tzinfo) -> list[SessionGroup]:
    """The sessions on a page, in the order of their newest memories."""
    groups: dict[tuple[str | None, date | None], SessionGroup] = {}
    for memory in memories:
        session = session_of(memory)
        day = _day(memory, zone) if session is None else None
        groups.setdefault((session, day), SessionGroup(session, day)).memories.append(memory)
    return list(groups.values())


def _day(memory: Memory, zone: tzinfo) -> date | None:
    try:
        return datetime.fromtimestamp(memory.timestamp, zone).date()
    except (ValueError, OverflowError, OSError):  # a time beyond the calendar, of another program
        return None
