"""The channel of updates -> memory.index."""

from __future__ import annotations

import dramatiq
import redis

from adapters.rejected import Rejected
from services.contract import parse_update
from services.errors import InvalidMessage
from tasks.routes import index_message

WAIT_SECONDS = 1.0


class UpdateAdapter:
    """Listens to the channel and has every event indexed.

    Args:
        client: connects to the pipeline's Redis.
        channel: the channel's name.
    """

    def __init__(
        self, client: redis.Redis, channel: str, broker: dramatiq.Broker, rejected: Rejected, max_content_chars: int
    ) -> None:
        self._subscription = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._channel = channel
        self._broker = broker
        self._rejected = rejected
        self._max_content_chars = max_content_chars

    def listen(self) -> None:
        """Subscribe; again after a lost connection."""
        self._subscription.reset()
        self._subscription.subscribe(self._channel)

    def turn(self) -> None:
        """Wait up to a second for an event and have it indexed."""
        message = self._subscription.get_message(timeout=WAIT_SECONDS)
        if message is None:
            return
        raw: bytes = message["data"]
        try:
            update = parse_update(raw, self._max_content_chars)
        except InvalidMessage as error:
            self._rejected.take(raw, error)
            return
        self._broker.enqueue(index_message(update))
