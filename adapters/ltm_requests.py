"""RequestAdapter: moves requests from the list `ltm_requests` to the queue of the actor that serves their type."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, tzinfo
from typing import Any

import dramatiq
import redis
import structlog
from keepsake_client.errors import Forbidden, InvalidMessage
from keepsake_client.protocol import MANAGING, LTMRequest, parse_request

from adapters.loop import POLL_TIMEOUT_S
from adapters.ltm_responses import ResponsePublisher
from adapters.membership import Membership
from services.runtime.queues import taken_list
from services.runtime.rejected import RejectSink
from tasks.queues import request_message

#: How often failed adapters are looked for.
CLAIM_INTERVAL_S = 2.0

log = structlog.get_logger()


class RequestAdapter:
    """Adapter of the list of requests, which it serves in order: producers LPUSH, so it takes from the right.

    A request moves to a list of this adapter, its claimed requests, and leaves that list when it is on its actor's
    queue: at-least-once delivery. The claimed requests of a failed adapter are served next, as if they had come at its
    last heartbeat: an `add` is done, a search has most likely expired.

    Args:
        client: connects to the pipeline's Redis.
        queue: the list's name.
        managed_at: another list, which the types of `MANAGING` are taken from alone; the adapter of that list, in this
            process, takes the claimed requests of failed adapters from there, and leaves it to this one to evict them.
        manages: whether this is the adapter of that list.
        zone: that of times which name none.
        poll_timeout_s: the longest wait for a request.
        claim_interval_s: how often failed adapters are looked for.
        clock: the time in seconds since 1970, which workers compare with theirs.
    """

    def __init__(
        self,
        client: redis.Redis,
        queue: str,
        membership: Membership,
        broker: dramatiq.Broker,
        responses: ResponsePublisher,
        rejects: RejectSink,
        max_content_chars: int,
        *,
        managed_at: str | None = None,
        manages: bool = False,
        zone: tzinfo = UTC,
        poll_timeout_s: float = POLL_TIMEOUT_S,
        claim_interval_s: float = CLAIM_INTERVAL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client: Any = client  # redis-py's types of replies are those of every protocol at once
        self._queue = queue
        self._claimed = taken_list(queue, membership.name)
        self._membership = membership
        self._broker = broker
        self._responses = responses
        self._rejects = rejects
        self._max_content_chars = max_content_chars
        self._managed_at = managed_at
        self._manages = manages
        self._zone = zone
        self._poll_timeout_s = poll_timeout_s
        self._claim_interval_s = claim_interval_s
        self._clock = clock
        self._received_at = 0.0
        self._unconfirmed: tuple[bytes, dramatiq.Message[Any]] | None = None
        self._may_hold_claimed = False
        self._claim_at = 0.0

    def connect(self) -> None:
        """Become a member before anything is claimed: nothing looks for the requests of an adapter that is none."""
        self._membership.heartbeat()

    def run_once(self) -> None:
        """Wait up to a second for a request and enqueue it for its actor, or answer why not."""
        if self._may_hold_claimed:
            self._serve_claimed()
        if time.monotonic() >= self._claim_at:
            self._claim_from_failed()
            self._claim_at = time.monotonic() + self._claim_interval_s
        # Set until the request is served, or known not to be there: a move whose reply is lost has been made.
        self._may_hold_claimed, self._received_at = True, self._clock()
        raw = self._client.blmove(self._queue, self._claimed, self._poll_timeout_s, "RIGHT", "LEFT")
        if raw is not None:  # it may be empty
            self._received_at = self._clock()
            self._serve_and_acknowledge(raw)
        self._may_hold_claimed = False

    def release(self) -> None:
        """Put the claimed requests back on the list, to be taken next."""
        while self._client.lmove(self._claimed, self._queue, "LEFT", "RIGHT") is not None:
            log.info("request_released", at=self._queue)

    def _serve_claimed(self) -> None:
        while (raw := self._client.lindex(self._claimed, -1)) is not None:
            self._serve_and_acknowledge(raw)

    def _claim_from_failed(self) -> None:
        for name, last_heartbeat in self._membership.failed().items():
            self._may_hold_claimed, self._received_at = True, last_heartbeat
            theirs = taken_list(self._queue, name)
            while (raw := self._client.lmove(theirs, self._claimed, "RIGHT", "LEFT")) is not None:
                log.warning("request_claimed", at=self._queue, failed_adapter=name)
                self._serve_and_acknowledge(raw)
            if not self._manages and not self._others_claimed(name):
                self._membership.evict(name)

    def _others_claimed(self, adapter: str) -> bool:
        """Whether a failed adapter still holds requests of the other list, which are found by its membership alone."""
        if self._managed_at is None:
            return False
        return self._client.lindex(taken_list(self._managed_at, adapter), -1) is not None

    def _serve_and_acknowledge(self, raw: bytes) -> None:
        self._serve(raw)
        self._client.lrem(self._claimed, -1, raw)

    def _enqueue(self, raw: bytes, request: LTMRequest) -> None:
        """Enqueue a request; the next try after a failure sends the same message, which may be there already.

        Of both, one response is published: they have one id.
        """
        if self._unconfirmed is None or self._unconfirmed[0] != raw:
            self._unconfirmed = raw, request_message(request, self._received_at, self._clock())
        self._broker.enqueue(self._unconfirmed[1])
        self._unconfirmed = None

    def _serve(self, raw: bytes) -> None:
        try:
            request = parse_request(raw, self._max_content_chars, self._zone)
            if self._managed_at is not None and request.type in MANAGING:
                reason = f"{request.type} is taken from {self._managed_at} alone (LTM_MANAGE_QUEUE)"
                ids = {"request_id": request.request_id, "user_id": request.user_id}
                raise Forbidden(reason, **ids, traceparent=request.traceparent)
        except InvalidMessage as error:
            if error.request_id is None:
                self._rejects.add(raw, error)
            else:
                repeat = b'"deadline_ms"' not in raw  # it may be no JSON
                user_id = error.user_id or ""
                self._responses.refuse(
                    error.request_id,
                    user_id,
                    error,
                    self._received_at,
                    repeat=repeat,
                    traceparent=error.traceparent,
                )
            return
        try:
            self._enqueue(raw, request)
        except (redis.RedisError, dramatiq.BrokerError):
            raise  # it stays claimed until the broker takes it
        except Exception as error:
            # A request that can never be enqueued must not be tried for ever, in front of all others.
            log.exception("request_not_enqueued", request_id=request.request_id)
            repeat = request.data.get("deadline_ms") is None
            self._responses.refuse(
                request.request_id,
                request.user_id,
                error,
                self._received_at,
                repeat=repeat,
                traceparent=request.traceparent,
            )
