"""The list of requests -> the actor that serves each request's type."""

from __future__ import annotations

import time
from typing import Any

import dramatiq
import redis
import structlog
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import parse_request

from adapters.ltm_responses import ResponsePublisher, failure
from adapters.membership import Membership
from adapters.rejected import Rejected
from tasks.queues import request_message

POLL_TIMEOUT_S = 1
#: How often the dead are looked for.
ADOPT_INTERVAL_S = 2.0

log = structlog.get_logger()


class RequestAdapter:
    """Takes requests off the list, first come, first served: producers LPUSH, so it takes from the right.

    A request moves into a list of this adapter's own and leaves it when its actor has it. What a dead adapter held is
    served next, as if it had come when that one last lived: its add is done, its search has likely expired.

    Args:
        client: connects to the pipeline's Redis.
        queue: the list's name.
    """

    def __init__(
        self,
        client: redis.Redis,
        queue: str,
        membership: Membership,
        broker: dramatiq.Broker,
        responses: ResponsePublisher,
        rejected: Rejected,
        max_content_chars: int,
    ) -> None:
        self._client: Any = client  # redis-py's types of replies are those of every protocol at once
        self._queue = queue
        self._taken = _taken(queue, membership.name)
        self._membership = membership
        self._broker = broker
        self._responses = responses
        self._rejected = rejected
        self._max_content_chars = max_content_chars
        self._received_at = 0.0
        self._unsettled = False
        self._adopt_at = 0.0

    def connect(self) -> None:
        """Be known before anything is taken: what an unknown adapter holds is nobody's."""
        self._membership.heartbeat()

    def turn(self) -> None:
        """Wait up to a second for a request and hand it to its actor, or answer why not."""
        if self._unsettled:
            self._serve_what_is_in_hand()
        if time.monotonic() >= self._adopt_at:
            self._adopt()
            self._adopt_at = time.monotonic() + ADOPT_INTERVAL_S
        # Until it is done, or known that there was none: a move whose reply is lost has been made.
        self._unsettled, self._received_at = True, time.time()
        raw = self._client.blmove(self._queue, self._taken, POLL_TIMEOUT_S, "RIGHT", "LEFT")
        if raw is not None:  # it may be empty
            self._received_at = time.time()
            self._settle(raw)
        self._unsettled = False

    def release(self) -> None:
        """Put what is in hand back where it came from, to be taken next."""
        while self._client.lmove(self._taken, self._queue, "LEFT", "RIGHT") is not None:
            log.info("request_given_back", at=self._queue)

    def _serve_what_is_in_hand(self) -> None:
        while (raw := self._client.lindex(self._taken, -1)) is not None:
            self._settle(raw)
        self._unsettled = False

    def _adopt(self) -> None:
        for name, last_sign in self._membership.failed().items():
            self._unsettled, self._received_at = True, last_sign
            while (raw := self._client.lmove(_taken(self._queue, name), self._taken, "RIGHT", "LEFT")) is not None:
                log.warning("request_adopted", at=self._queue, dead=name)
                self._settle(raw)
            self._unsettled = False
            self._membership.evict(name)

    def _settle(self, raw: bytes) -> None:
        self._serve(raw)
        self._client.lrem(self._taken, -1, raw)

    def _serve(self, raw: bytes) -> None:
        try:
            request = parse_request(raw, self._max_content_chars)
        except InvalidMessage as error:
            if error.request_id is None:
                self._rejected.take(raw, error)
            else:
                self._responses.publish(failure(error.request_id, error.user_id or "", error))
            return
        try:
            self._broker.enqueue(request_message(request, self._received_at))
        except (redis.RedisError, dramatiq.BrokerError):
            raise  # it stays in hand until the broker takes it
        except Exception as error:
            # One request that nobody can hand over must not be tried for ever, in front of all others.
            log.exception("request_not_handed_over", request_id=request.request_id)
            self._responses.publish(failure(request.request_id, request.user_id, error))


def _taken(queue: str, adapter: str) -> str:
    """The list of requests that an adapter has in hand."""
    return f"{queue}:taken:{adapter}"
