"""The list of requests -> the actor that serves each request's type."""

from __future__ import annotations

import time

import dramatiq
import redis

from adapters.ltm_responses import Responses, failure
from adapters.rejected import Rejected
from services.contract import parse_request
from services.errors import InvalidMessage
from tasks.routes import request_message

WAIT_SECONDS = 1


class RequestAdapter:
    """Takes requests off the list, first come, first served: producers LPUSH, so it takes from the right.

    Args:
        client: connects to the pipeline's Redis.
        queue: the list's name.
    """

    def __init__(
        self,
        client: redis.Redis,
        queue: str,
        broker: dramatiq.Broker,
        responses: Responses,
        rejected: Rejected,
        max_content_chars: int,
    ) -> None:
        self._client = client
        self._queue = queue
        self._broker = broker
        self._responses = responses
        self._rejected = rejected
        self._max_content_chars = max_content_chars

    def turn(self) -> None:
        """Wait up to a second for a request and hand it to its actor, or answer why not."""
        taken = self._client.brpop([self._queue], timeout=WAIT_SECONDS)
        if taken is None:
            return
        raw = taken[1]
        assert isinstance(raw, bytes)  # noqa: S101 - the client does not decode
        try:
            request = parse_request(raw, self._max_content_chars)
        except InvalidMessage as error:
            if error.request_id is None:
                self._rejected.take(raw, error)
            else:
                self._responses.publish(failure(error.request_id, error.user_id or "", error))
            return
        self._broker.enqueue(request_message(request, time.time()))
