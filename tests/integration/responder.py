"""A long-term memory for tests: responds to every request with one memory that names its user."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from keepsake_client.protocol import parse_request


class Responder(threading.Thread):
    """Takes requests from `ltm_requests`, responds on `ltm_responses`, and keeps the requests."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._ended = threading.Event()
        self.requests: list[dict[str, Any]] = []

    def run(self) -> None:
        with redis.Redis.from_url(self._url) as client:
            while not self._ended.is_set():
                popped: Any = client.brpop(["ltm_requests"], timeout=0.1)
                if popped is None:
                    continue
                parse_request(popped[1], 100_000)
                request = json.loads(popped[1])
                self.requests.append(request)
                if (fields := self.answer(request)) is not None:
                    response = {"request_id": request["request_id"], "user_id": request["user_id"], "success": True}
                    client.publish("ltm_responses", json.dumps({**response, **fields}))

    def answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Fields of the response; None for none."""
        memory = {"id": "m", "content": f"{request['user_id']} has a cat", "score": 0.5, "timestamp": 86_400}
        return {"memories": [memory]}

    def end(self) -> None:
        self._ended.set()
        self.join()


@contextmanager
def responding(url: str) -> Iterator[Responder]:
    """A running responder."""
    responder = Responder(url)
    responder.start()
    try:
        yield responder
    finally:
        responder.end()
