"""Pages of records, as large as one `user_import` request takes, and the tally of what was read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from keepsake_client.requests import MAX_RECORDS

from services.imports.records import Bad, Parsed, Skipped, UnreadableFile

MAX_PAGE_BYTES: Final = 500_000
#: A larger record fits into no request; see MAX_MESSAGE_BYTES.
MAX_RECORD_BYTES: Final = 1_000_000
#: As many problems as are told one by one.
MAX_TOLD: Final = 20
#: As many conversations and speakers as are counted one by one.
MAX_COUNTED: Final = 10_000


@dataclass
class Tally:
    """What was read of an export, and what became of it.

    Args:
        by_source, speakers: records by these.
        sessions: records by the titles of the conversations, or their ids where they have none.
        first, last: seconds since 1970 of the first and the last thing said.
        skipped: by reason.
        bad: how many records could not be read; `problems` has the first.
        sent: records that the stack has confirmed.
        new, known, deleted: memories among them that were not there, that were, and that stay deleted.
    """

    read: int = 0
    by_source: Counter[str] = field(default_factory=Counter)
    sessions: Counter[str] = field(default_factory=Counter)
    speakers: Counter[str] = field(default_factory=Counter)
    first: float = math.inf
    last: float = -math.inf
    skipped: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    problems: list[str] = field(default_factory=list)
    place: str = ""
    sent: int = 0
    new: int = 0
    known: int = 0
    deleted: int = 0

    def note(self, item: Parsed | Skipped | Bad) -> None:
        """Count what was read."""
        match item:
            case Skipped(reason, count):
                self.skipped[reason] += count
            case Bad(place, problem):
                self.bad += 1
                if len(self.problems) < MAX_TOLD:
                    self.problems.append(f"{place}: {problem}")
            case Parsed(place, record):
                self.read += 1
                self.place = place
                self._note_record(record)

    def _note_record(self, record: dict[str, Any]) -> None:
        self.by_source[str(record.get("source", record["kind"]))] += 1
        speaker = record.get("speaker")
        for counter, name in (
            (self.sessions, (record.get("meta") or {}).get("title") or record.get("session_id")),
            (self.speakers, speaker.get("name") if isinstance(speaker, dict) else speaker),
        ):
            if name is not None and (len(counter) < MAX_COUNTED or str(name) in counter):
                counter[str(name)] += 1
        timestamp = record.get("timestamp")
        if isinstance(timestamp, int | float):
            self.first, self.last = min(self.first, timestamp), max(self.last, timestamp)


def pages(
    items: Iterable[Parsed | Skipped | Bad], tally: Tally, *, strict: bool = False
) -> Iterator[list[dict[str, Any]]]:
    """The records in pages, in order, those before an error as well; what is none is noted in the tally.

    Raises:
        UnreadableFile: with `strict`, at the first record that cannot be read.
    """
    page: list[dict[str, Any]] = []
    page_bytes = 0
    try:
        for record, size in _records(items, tally, strict=strict):
            if page and (len(page) == MAX_RECORDS or page_bytes + size > MAX_PAGE_BYTES):
                yield page
                page, page_bytes = [], 0
            page.append(record)
            page_bytes += size
    except UnreadableFile:
        if page:
            yield page  # what stands before the damage
        raise
    if page:
        yield page


def _records(
    items: Iterable[Parsed | Skipped | Bad], tally: Tally, *, strict: bool
) -> Iterator[tuple[dict[str, Any], int]]:
    """The records with their sizes as JSON, in bytes."""
    for item in items:
        size = len(json.dumps(item.record)) if isinstance(item, Parsed) else 0
        one = item
        if isinstance(item, Parsed) and size > MAX_RECORD_BYTES:
            one = Bad(item.place, f"{size:,} bytes are more than a request takes")
        tally.note(one)
        if isinstance(one, Bad) and strict:
            raise UnreadableFile(f"{one.place}: {one.problem}")
        if isinstance(one, Parsed):
            yield one.record, size
