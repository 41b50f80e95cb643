"""Conditions on memories, of a list or a deletion: the values of `MemoryFilters` as the table holds them, and SQL."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from keepsake_client.protocol import MemoryFilters

from services.long_term_memory.postgres.deletions import MEETS
from services.long_term_memory.retrieval.columns import hashed
from services.long_term_memory.retrieval.speakers import speaker_hash

#: The types of the parameters.
_TYPES: Final = {
    "session": "bigint",
    "source": "text",
    "since": "timestamptz",
    "until": "timestamptz",
    "speaker_name": "bytea",
    "speaker_id": "bytea",
    "contains": "text[]",
}
#: Letters that have a case end before it.
_CASED_END: Final = 0x1E944
_DOT_ABOVE: Final = "\u0307"


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions that a memory meets; None for any value. The fields are columns of `deletions`."""

    session: int | None = None
    source: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    speaker_name: bytes | None = None
    speaker_id: bytes | None = None
    contains: list[str] | None = None

    @classmethod
    def of(cls, filters: MemoryFilters) -> Conditions:
        """The conditions of a request's filters. A speaker is known by the id, where there is one, else by the name."""
        name = key = None
        if (speaker := filters.speaker) is not None:
            packed = speaker_hash(speaker.model_dump(exclude_none=True)).to_bytes(8, "little", signed=True)
            name, key = (packed[:4], None) if speaker.id is None else (None, packed[4:])
        return cls(
            session=None if filters.session_id is None else hashed(filters.session_id),
            source=filters.source,
            since=_moment(filters.since),
            until=_moment(filters.until),
            speaker_name=name,
            speaker_id=key,
            contains=None if filters.contains is None else _folded(filters.contains),
        )

    def sql(self, row: str, *, contains: bool = True) -> str:
        """The conditions on the relation `row`, to be appended to a WHERE clause.

        Args:
            contains: whether the one that reads the content is among them.
        """
        return "".join(
            f" AND {condition.format(row=row, value=f'%({name})s::{_TYPES[name]}')}"
            for name, condition in MEETS.items()
            if getattr(self, name) is not None and (contains or name != "contains")
        )

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of `sql`."""
        return asdict(self)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _folded(text: str) -> list[str]:
    """The parameters of a search for a text in any case: what `translate` replaces, by what, and the text, folded.

    Folding is by character, Unicode's and the same in every locale of the database; beyond it, i with and without a
    dot are one letter, and ß is ss. Only letters of the text itself are replaced: the fewer, the faster.
    """
    wanted = "".join(map(_fold, text.replace("ß", "ss").replace("ẞ", "ss"))).replace(_DOT_ABOVE, "")
    variants = _variants()
    pairs = [(variant, letter) for letter in sorted(set(wanted)) for variant in variants.get(letter, "")]
    # What has no counterpart is removed: in lower case, İ is an i and a dot.
    removed = _DOT_ABOVE if "i" in wanted or _DOT_ABOVE in text else ""
    return ["".join(variant for variant, _ in pairs) + removed, "".join(letter for _, letter in pairs), wanted]


def _fold(char: str) -> str:
    if char in "İı":
        return "i"
    folded = char.casefold()
    return folded if len(folded) == 1 else char


@cache
def _variants() -> dict[str, str]:
    """The letters beyond ASCII that are folded, by what they become."""
    variants: dict[str, str] = {}
    for char in map(chr, range(0x80, _CASED_END)):
        if (folded := _fold(char)) != char:
            variants[folded] = variants.get(folded, "") + char
    return variants
