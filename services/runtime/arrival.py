"""Arrival of the entries of the stream: when each was said to the system, by which deletions go."""

from __future__ import annotations

from keepsake_client.times import time_of_event


def arrival(entry_id: bytes, arrived: bytes, now: float) -> float:
    """When the event of an entry arrived, in seconds since 1970.

    Args:
        arrived: `STREAM_ARRIVED_FIELD` of an entry that was written later than its event arrived; empty for the others,
            which arrived when they were written, by their ids.
        now: for an entry whose publisher has made up its id.
    """
    noted = arrived.decode("ascii", "replace")
    arrived_at, _ = time_of_event(noted or int(entry_id.partition(b"-")[0]) / 1000, now)
    return arrived_at
