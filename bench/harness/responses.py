"""The listener of responses that load generator, fault run and fuzzer share.

It is written with redis-py and the standard library alone: the load generator imports it, and has to start at once.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

SOCKET_TIMEOUT_S = 5.0
RECONNECT_AFTER_S = 0.05
SUBSCRIBED_WITHIN_S = 10.0


@dataclass(frozen=True)
class Response:
    """The parts of one response on the channel that a benchmark keeps.

    Args:
        received_at: seconds on the listener's clock.
        error: the whole error text; None of a success.
        partial: time was short, and the memories were ranked by words alone.
        memories: how many memories it holds.
        timings: the moments and durations that the processing recorded, where the request wanted them.
        problem: why the listener's check refused it; None if it passed.
    """

    received_at: float
    request_id: str
    error: str | None = None
    partial: bool = False
    memories: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)
    problem: str | None = None


class ResponseListener(threading.Thread):
    """A thread that collects every response, and subscribes again after a lost connection.

    Args:
        url: of the pipeline's Redis.
        channel: of the responses.
        clock: what `received_at` is read from. Wall clock time compares with the moments that other processes record;
            monotonic time does not jump.
        check: returns what is wrong with a response, or None.
    """

    def __init__(
        self,
        url: str,
        channel: str,
        *,
        clock: Callable[[], float] = time.time,
        check: Callable[[dict[str, Any]], str | None] = lambda _: None,
    ) -> None:
        super().__init__(name="responses", daemon=True)
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._channel = channel
        self._clock = clock
        self._check = check
        self._subscribed = threading.Event()
        self._stopped = threading.Event()
        self.by_request: dict[str, list[Response]] = {}

    def start(self) -> None:
        """Start the thread; return once Redis has confirmed the subscription, so that no later response is missed.

        Raises:
            TimeoutError: Redis has not confirmed it in time.
        """
        super().start()
        if not self._subscribed.wait(SUBSCRIBED_WITHIN_S):
            raise TimeoutError(f"no subscription to {self._channel} within {SUBSCRIBED_WITHIN_S:g} s")

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._client.pubsub() as pubsub:  # type: ignore[no-untyped-call]  # redis-py's lacks annotations
                    pubsub.subscribe(self._channel)
                    while not self._stopped.is_set():
                        message = pubsub.get_message(timeout=0.5)
                        if message and message["type"] == "subscribe":
                            self._subscribed.set()
                        elif message and message["type"] == "message":
                            self._collect(message["data"])
            except (redis.RedisError, OSError):
                time.sleep(RECONNECT_AFTER_S)

    def _collect(self, raw: bytes) -> None:
        received_at = self._clock()
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            body = {}  # counts as a response to a request that was not sent
        response = Response(
            received_at,
            str(body.get("request_id")),
            None if body.get("success") else str(body.get("error")),
            bool(body.get("partial")),
            len(body.get("memories") or ()),
            body.get("timings") or {},
            self._check(body),
        )
        self.by_request.setdefault(response.request_id, []).append(response)

    def stop(self) -> None:
        """Unsubscribe and end the thread."""
        self._stopped.set()
        self.join()
