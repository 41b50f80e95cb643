"""What could not be understood: counted, logged, and kept in a capped stream for whoever looks."""

from __future__ import annotations

import redis
import structlog
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import COUNTERS, REJECTED_CHARS, REJECTED_STREAM
from redis.typing import EncodableT

#: Entries kept; the trim is approximate, so a few more may stay.
KEPT = 1_000

log = structlog.get_logger()


class Rejected:
    """Takes rejected messages.

    Args:
        at: the list or channel that they arrive on.
    """

    def __init__(self, client: redis.Redis, at: str) -> None:
        self._client = client
        self._at = at
        self.count = 0

    def take(self, raw: bytes, error: InvalidMessage) -> None:
        """Keep the reason and the first 1,000 characters."""
        self.count += 1
        log.warning("rejected", at=self._at, reason=error.code, size=len(raw), rejected=self.count)
        # Four bytes a character are enough for any cut, and spare decoding the rest.
        shown = raw[: 4 * REJECTED_CHARS].decode("utf-8", "replace")[:REJECTED_CHARS]
        entry: dict[EncodableT, EncodableT] = {"at": self._at, "reason": error.wire, "message": shown}
        with self._client.pipeline() as transaction:
            transaction.xadd(REJECTED_STREAM, entry, maxlen=KEPT, approximate=True)
            transaction.hincrby(COUNTERS, "rejected", 1)
            transaction.execute()
