"""UpdateAdapter: writes events of the channel `memory_updates` to the stream where their publisher has not."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import redis
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import parse_update
from keepsake_client.tolerance import DEFAULTS, MessageDefaults

from adapters.leader import LEASE_S, Lease
from adapters.loop import POLL_TIMEOUT_S
from adapters.stream import UpdateStream, digest
from services.runtime.rejected import RejectSink

#: Messages are kept for longer than it takes a new leader to follow a failed one.
KEPT_S = 3 * LEASE_S
MAX_KEPT = 10_000
#: On a busy host one adapter may receive a message this much later than another has written it.
SLACK_S = 2.0


class _Received(NamedTuple):
    at: float
    raw: bytes


class UpdateAdapter:
    """Listens to the channel and writes to the stream what its publisher has not.

    Every adapter receives every message; the leader writes it. The others keep the last few seconds, and a new leader
    writes what its predecessor had not.

    Args:
        client: connects to the pipeline's Redis.
        channel: the channel's name.
        defaults: what events that leave something out are read by.
        poll_timeout_s: the longest wait for a message.
        max_kept: how many messages are kept at most.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        client: redis.Redis,
        channel: str,
        stream: UpdateStream,
        lease: Lease,
        rejects: RejectSink,
        max_content_chars: int,
        *,
        defaults: MessageDefaults = DEFAULTS,
        poll_timeout_s: float = POLL_TIMEOUT_S,
        max_kept: int = MAX_KEPT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._subscription = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._channel = channel
        self._stream = stream
        self._lease = lease
        self._rejects = rejects
        self._max_content_chars = max_content_chars
        self._defaults = defaults
        self._poll_timeout_s = poll_timeout_s
        self._clock = clock
        self._kept: deque[_Received] = deque(maxlen=max_kept)
        self._subscribed_at = 0.0
        self._leading = False

    def connect(self) -> None:
        """Subscribe; again after an outage."""
        self._subscription.reset()
        self._subscription.subscribe(self._channel)
        self._subscribed_at = self._clock()

    def run_once(self) -> None:
        """Wait up to a second for a message, and write it to the stream if this adapter leads."""
        self._receive(self._poll_timeout_s)
        if self._lease.held():
            if not self._leading:
                self._begin_to_lead()
            self._write()
        else:
            self._leading = False
            while self._kept and self._kept[0].at < self._clock() - KEPT_S:
                self._kept.popleft()

    def _receive(self, timeout_s: float) -> bool:
        """Wait for a message, and keep it if its publisher has not written it; whether one came."""
        message = self._subscription.get_message(timeout=timeout_s)
        if message is not None and not says_logged(message["data"]):
            self._kept.append(_Received(self._clock(), message["data"]))
        return message is not None

    def _begin_to_lead(self) -> None:
        # What has arrived and was not read yet may have been written too.
        while self._receive(0.0):
            pass
        self._drop_written()
        self._leading = True

    def _write(self) -> None:
        while self._kept:
            at, raw = self._kept[0]
            try:
                update = parse_update(raw, self._max_content_chars, self._defaults, arrived_at=at)
            except InvalidMessage as error:
                self._rejects.add(raw, error)
            else:
                self._stream.append(update, raw)
            self._kept.popleft()

    def _drop_written(self) -> None:
        """Forget the kept messages that the last leader has written."""
        if not self._kept:
            return
        # From the time since when every message is kept, not from that of the first one, which may have come late.
        since = max(self._subscribed_at, self._clock() - KEPT_S)
        written = self._stream.digests_since(since - SLACK_S)
        missing = []
        for received in self._kept:
            if written[key := digest(received.raw)] > 0:
                written[key] -= 1
            else:
                missing.append(received)
        self._kept = deque(missing, maxlen=self._kept.maxlen)


def says_logged(raw: bytes) -> bool:
    """Whether the event's publisher has written it to the stream."""
    if b'"logged"' not in raw:
        return False
    try:
        event = json.loads(raw)
    except (ValueError, RecursionError):
        return False  # parsing it says what is wrong
    return isinstance(event, dict) and event.get("logged") is True
