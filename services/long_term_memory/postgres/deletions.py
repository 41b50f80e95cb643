"""Deletions that outlive their memories, as SQL conditions: an event that was deleted before it was indexed is dropped.

A deletion has no content but for `contains`; it knows its user by a digest.
"""

from __future__ import annotations

from typing import Final

#: The SHA-256 of an id, as an SQL expression of the column or parameter in its braces.
DIGEST: Final = "sha256(convert_to({}, 'UTF8'))"
#: What is dated so long before its user was forgotten is dropped whenever it arrives. Publishers' clocks may be wrong:
#: what is dated less long before, and arrives after, was said after.
CLOCK_TOLERANCE: Final = "interval '10 minutes'"
#: Where `speaker` is in `traits`: four bytes of the name, then four of the id.
SPEAKER_NAME: Final = "substring({}.traits FROM 6 FOR 4)"
SPEAKER_ID: Final = "substring({}.traits FROM 10 FOR 4)"

#: Whether the memory `given`, with the time at which its event arrived, meets the conditions of the deletion `d`.
DELETED: Final = (
    "(given.arrived_at <= d.deleted_at"
    f" OR d.everything AND given.said_at < d.deleted_at - {CLOCK_TOLERANCE})"
    f" AND (d.agent_digests IS NULL OR {DIGEST.format('given.agent_id')} = ANY(d.agent_digests))"
    " AND (d.session IS NULL OR d.session = given.session)"
    " AND (d.source IS NULL OR d.source = given.source)"
    " AND (d.since IS NULL OR given.said_at >= d.since)"
    " AND (d.until IS NULL OR given.said_at <= d.until)"
    f" AND (d.speaker_name IS NULL OR d.speaker_name = {SPEAKER_NAME.format('given')})"
    f" AND (d.speaker_id IS NULL OR d.speaker_id = {SPEAKER_ID.format('given')})"
    " AND (d.contains IS NULL OR strpos(lower(given.content), lower(d.contains)) > 0)"
)
