"""A client of the public wire, as any foreign service would write one: for the commands and `ltm up`'s last check."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from keepsake_client.errors import RequestFailed, RequestTimeout, Unavailable
from keepsake_client.protocol import RequestType
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.retry import Retry

from services.runtime.settings import Settings

SUBSCRIBE_TIMEOUT_S = 5.0
#: A user whose memories are asked for to see whether anybody answers; nobody ever says anything under this name.
PROBE_USER = "ltm-probe"


def connect(url: str, timeout_s: float = 5.0) -> redis.Redis:
    """A client that reports a lost Redis at once instead of trying ten times."""
    return redis.Redis.from_url(
        url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
    )


class Subscription:
    """JSON objects published on channels since it was made, in order."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub

    def next(self, until: float) -> tuple[str, dict[str, Any]] | None:
        """The next channel and object, or None when time (of `time.monotonic`) has run out."""
        while (left := until - time.monotonic()) > 0:
            message = self._pubsub.get_message(ignore_subscribe_messages=True, timeout=left)
            if message is None:
                continue
            try:
                payload = json.loads(message["data"])
            except ValueError:
                continue  # others may publish what they like
            if isinstance(payload, dict):
                return message["channel"].decode(), payload
        return None


@contextmanager
def subscribed(client: redis.Redis, *channels: str) -> Iterator[Subscription]:
    """A subscription that Redis has confirmed: nothing published from now on is missed.

    Raises:
        Unavailable: Redis is away, now or later within the block.
    """
    try:
        with client.pubsub() as pubsub:  # type: ignore[no-untyped-call]  # redis-py's lacks annotations
            pubsub.subscribe(*channels)
            until = time.monotonic() + SUBSCRIBE_TIMEOUT_S
            confirmed = 0
            while confirmed < len(channels):
                if time.monotonic() > until:
                    raise Unavailable("Redis does not confirm a subscription")
                confirmed += pubsub.get_message(timeout=0.1) is not None
            yield Subscription(pubsub)
    except (redis.RedisError, OSError) as error:
        raise Unavailable(f"Redis does not answer: {error}") from error


class WireClient:
    """Asks over the list and the channel of the protocol.

    Args:
        client: connects to the pipeline's Redis.
        settings: names the list and the channel.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._client = client
        self._queue = settings.ltm_requests_queue
        self._channel = settings.ltm_responses_channel

    def ask(self, kind: RequestType, user_id: str, data: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The response, as it came.

        Raises:
            RequestTimeout: none came in time. The request is taken back if nobody has taken it.
            RequestFailed: it says that the request failed.
            Unavailable: Redis is away.
        """
        request_id = f"req-{uuid.uuid4()}"
        data = {"deadline_ms": max(1, round(timeout_s * 1000)), **data}
        request = json.dumps({"request_id": request_id, "type": kind, "user_id": user_id, "data": data})
        with subscribed(self._client, self._channel) as responses:
            until = time.monotonic() + timeout_s
            self._client.lpush(self._queue, request)
            while received := responses.next(until):
                _, response = received
                if response.get("request_id") == request_id:
                    if not response.get("success"):
                        raise RequestFailed(str(response.get("error")))
                    return response
            self._client.lrem(self._queue, 1, request)
        raise RequestTimeout(
            f"no response to a {kind} within {timeout_s:g} s; do long-term-memory-worker and "
            "long-term-memory-adapters run? `ltm status` tells"
        )

    def search(
        self, user_id: str, query: str, limit: int = 5, timeout_s: float = 5.0, **options: Any
    ) -> list[dict[str, Any]]:
        """The user's memories, best first; raises as `ask` does.

        Args:
            options: further fields of a search's data.
        """
        response = self.ask("search", user_id, {"query": query, "limit": limit, **options}, timeout_s)
        memories: list[dict[str, Any]] = response["memories"]
        return memories

    def probe(self, timeout_s: float) -> str | None:
        """None if a real search is answered, or else what is wrong."""
        try:
            self.search(PROBE_USER, "does anybody answer?", limit=1, timeout_s=timeout_s)
        except (RequestTimeout, RequestFailed, Unavailable) as error:
            return error.wire
        return None
