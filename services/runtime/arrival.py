"""Arrival of the entries of the stream: when each was said to the system, by which deletions go."""

from __future__ import annotations

from collections.abc import Mapping

from keepsake_client.times import time_of_event

#: Field beside the event, of an entry that was written later than its event was heard: seconds since 1970.
HEARD_AT_FIELD = "heard_at"


def arrival(entry_id: bytes, fields: Mapping[bytes, bytes], now: float) -> float:
    """When the event of an entry arrived, in seconds since 1970: when it was heard or else, by its id, written.

    Args:
        now: for an entry whose publisher has made up its id.
    """
    try:
        stated = float(fields[HEARD_AT_FIELD.encode()])
    except (KeyError, ValueError):
        stated = int(entry_id.partition(b"-")[0]) / 1000
    arrived_at, _ = time_of_event(stated, now)
    return arrived_at
