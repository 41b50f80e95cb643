"""The channel of updates -> the log of updates, for those who publish without the log."""

from __future__ import annotations

import json
import time
from collections import deque
from typing import NamedTuple

import redis
import structlog
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import parse_update

from adapters.membership import LEASE_S, Lease
from adapters.rejected import Rejected
from adapters.stream import UpdateStream, digest

POLL_TIMEOUT_S = 1.0
#: More than the holder of the lease may be dead before another has it.
REMEMBERED_S = 3 * LEASE_S
REMEMBERED = 10_000
#: One adapter may have written what another, on a busy host, has yet to hear.
SLACK_S = 2.0

log = structlog.get_logger()


class _Heard(NamedTuple):
    at: float
    raw: bytes


class UpdateAdapter:
    """Listens to the channel and writes to the log what its publisher has not.

    Every adapter hears everything; the one that holds the lease writes. The others remember the last few seconds, and
    when one of them gets the lease, it writes what its predecessor had not.

    Args:
        client: connects to the pipeline's Redis.
        channel: the channel's name.
    """

    def __init__(
        self,
        client: redis.Redis,
        channel: str,
        updates: UpdateStream,
        lease: Lease,
        rejected: Rejected,
        max_content_chars: int,
    ) -> None:
        self._subscription = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._channel = channel
        self._stream = updates
        self._lease = lease
        self._rejected = rejected
        self._max_content_chars = max_content_chars
        self._heard: deque[_Heard] = deque(maxlen=REMEMBERED)
        self._listening_since = 0.0
        self._writing = False

    def listen(self) -> None:
        """Subscribe; again after a lost connection."""
        self._subscription.reset()
        self._subscription.subscribe(self._channel)
        self._listening_since = time.time()

    def turn(self) -> None:
        """Wait up to a second for an event, and have it in the log."""
        message = self._subscription.get_message(timeout=POLL_TIMEOUT_S)
        if message is not None and not says_logged(message["data"]):
            self._heard.append(_Heard(time.time(), message["data"]))
        if self._lease.held():
            self._write()
        else:
            self._writing = False
            while self._heard and self._heard[0].at < time.time() - REMEMBERED_S:
                self._heard.popleft()

    def _write(self) -> None:
        if not self._writing:
            self._skip_what_is_written()
            self._writing = True
        while self._heard:
            at, raw = self._heard[0]
            try:
                update = parse_update(raw, self._max_content_chars)
            except InvalidMessage as error:
                self._rejected.take(raw, error)
            else:
                if "timestamp" not in update.model_fields_set:
                    update = update.model_copy(update={"timestamp": at})
                self._stream.append(update, raw)
            self._heard.popleft()

    def _skip_what_is_written(self) -> None:
        if not self._heard:
            return
        # From where on we remember everything, not from the first that we do: that one may have come to us late.
        since = max(self._listening_since, time.time() - REMEMBERED_S)
        written = self._stream.heard_since(since - SLACK_S)
        missing = []
        for heard in self._heard:
            if written[key := digest(heard.raw)] > 0:
                written[key] -= 1
            else:
                missing.append(heard)
        self._heard = deque(missing, maxlen=REMEMBERED)


def says_logged(raw: bytes) -> bool:
    """Whether the event's publisher has written it to the log."""
    if b'"logged"' not in raw:
        return False
    try:
        event = json.loads(raw)
    except (ValueError, RecursionError):
        return False  # whoever reads it says what is wrong
    return isinstance(event, dict) and event.get("logged") is True
