"""The client of the long-term memory, for any asyncio service: it needs redis-py and the contract, nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from typing import Any, Self
from uuid import uuid4

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from keepsake_client.errors import Disabled, InvalidMessage, KeepsakeError, RequestFailed, RequestTimeout, Unavailable
from keepsake_client.protocol import (
    REQUESTS_QUEUE,
    RESPONSES_CHANNEL,
    LTMRequest,
    LTMResponse,
    Memory,
    RequestType,
)

FIRST_WAIT_S = 0.1
MAX_WAIT_S = 5.0
_LONGEST_DEADLINE_MS = 600_000

log = logging.getLogger(__name__)


class AsyncClient:
    """Asks the long-term memory over Redis; one subscription serves every request of the process.

    Use it as an async context manager, or call `start` and `close`. It reconnects by itself; while the connection is
    known to be broken, requests fail at once instead of keeping their caller waiting.

    Args:
        redis: a client to share, which stays open, or the URL to connect to.
        requests_queue, responses_channel: LTM_REQUESTS_QUEUE and LTM_RESPONSES_CHANNEL of the pipeline.
        search_timeout_ms: how long a search is waited for, unless it says otherwise.
        write_timeout_ms: how long the other requests are waited for.
        enabled: False (ENABLE_LTM=false) touches no key, list or channel: searches find nothing, the rest raises.
    """

    def __init__(
        self,
        redis: Redis | str,
        *,
        requests_queue: str = REQUESTS_QUEUE,
        responses_channel: str = RESPONSES_CHANNEL,
        search_timeout_ms: int = 600,
        write_timeout_ms: int = 2_000,
        enabled: bool = True,
    ) -> None:
        self._owned = isinstance(redis, str)
        self._redis = Redis.from_url(redis, retry=Retry(NoBackoff(), 0)) if isinstance(redis, str) else redis
        self._requests_queue = requests_queue
        self._responses_channel = responses_channel
        self._search_timeout_ms = search_timeout_ms
        self._write_timeout_ms = write_timeout_ms
        self._enabled = enabled
        self._listener: asyncio.Task[None] | None = None
        # Once the first try to subscribe has ended, `_broken` is None exactly while the subscription stands.
        self._tried = asyncio.Event()
        self._broken: Exception | None = None
        self._pending: dict[str, tuple[str, asyncio.Future[LTMResponse]]] = {}
        #: How often a request ended how: ok, or an error's code (timeout, request_failed, unavailable, ...).
        self.counts: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Begin to listen for responses. A Redis that is down is no error: the client keeps trying."""
        if self._enabled and self._listener is None:
            self._broken = None
            self._tried.clear()
            self._listener = asyncio.create_task(self._listen(), name="ltm-responses")

    async def close(self) -> None:
        """Stop listening; whoever still waits gets `Unavailable`."""
        if self._listener is not None:
            # redis-py uses `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that comes in the
            # moment its own wait is over.
            while not self._listener.done():
                self._listener.cancel()
                await asyncio.wait([self._listener], timeout=0.1)
            self._listener = None
        self._lose(Unavailable("the client was closed"))
        if self._owned:
            await self._redis.aclose()

    async def search(
        self, user_id: str, query: str, limit: int = 5, timeout_ms: int | None = None, **data: Any
    ) -> list[Memory]:
        """The user's memories that fit the query, best first; none when no answer came, for whatever reason.

        Args:
            timeout_ms: how long to wait; the long-term memory is told, so that it drops what nobody waits for.
            data: further fields of the request's `data`.
        """
        try:
            response = await self._ask("search", user_id, {**data, "query": query, "limit": limit}, timeout_ms)
        except Disabled:
            return []
        except KeepsakeError as error:
            # A response's own words may quote contents, which belong in no log: its code says enough.
            code = str(error).partition(":")[0][:64] if isinstance(error, RequestFailed) else error.code
            log.warning("ltm search failed: %r", code, extra={"user_id": user_id})
            return []
        return response.memories

    async def add(self, user_id: str, content: str, metadata: dict[str, Any] | None = None) -> LTMResponse:
        """Remember `content`; the response holds the memory.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        return await self._ask("add", user_id, {"content": content, "metadata": metadata or {}})

    async def profile_get(self, user_id: str) -> LTMResponse:
        """The user's profile, as `user_profile` and `profile_version` of the response.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        return await self._ask("profile_get", user_id, {})

    async def profile_update(
        self, user_id: str, updates: dict[str, Any], expected_version: int | None = None
    ) -> LTMResponse:
        """Merge `updates` into the profile (JSON Merge Patch: null removes a key); the response holds the new one.

        Args:
            expected_version: refuse the update when the profile has moved on (`RequestFailed`: "conflict: ...").

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        expected = {} if expected_version is None else {"expected_version": expected_version}
        return await self._ask("profile_update", user_id, {"updates": updates, **expected})

    async def _ask(
        self, kind: RequestType, user_id: str, data: dict[str, Any], timeout_ms: int | None = None
    ) -> LTMResponse:
        if not self._enabled:
            raise Disabled("long-term memory is switched off by ENABLE_LTM")
        if timeout_ms is None:
            timeout_ms = self._search_timeout_ms if kind == "search" else self._write_timeout_ms
        try:
            request = _request(kind, user_id, {**data, "deadline_ms": min(max(timeout_ms, 1), _LONGEST_DEADLINE_MS)})
            response = await self._answer(request, timeout_ms)
            if not response.success:
                raise RequestFailed(response.error or "internal: the response gives no reason")
        except KeepsakeError as error:
            self.counts[error.code] += 1
            raise
        self.counts["ok"] += 1
        return response

    async def _answer(self, request: LTMRequest, timeout_ms: int) -> LTMResponse:
        answer: asyncio.Future[LTMResponse] = asyncio.get_running_loop().create_future()
        deadline = asyncio.get_running_loop().time() + timeout_ms / 1000
        try:
            async with asyncio.timeout_at(deadline):
                await self._listening()
            # Registered before it is pushed: the answer may be there before the push returns.
            self._pending[request.request_id] = (request.user_id, answer)
            # Each step has a limit of its own: one limit is one cancellation, and redis-py can swallow that (`close`).
            async with asyncio.timeout_at(deadline):
                await self._redis.lpush(self._requests_queue, json.dumps(request.model_dump()))
            async with asyncio.timeout_at(deadline):
                return await answer
        except TimeoutError:
            raise RequestTimeout(f"no response to {request.type} within {timeout_ms} ms") from None
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer: {type(error).__name__}") from error
        finally:
            self._pending.pop(request.request_id, None)
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # looked at, or asyncio complains where the wait ended in the same moment

    async def _listening(self) -> None:
        """Wait for the subscription; an answer that nobody listens for is lost."""
        if self._listener is None:
            raise Unavailable("the client is not started")
        await self._tried.wait()
        if self._broken is not None:
            raise Unavailable(f"Redis does not answer: {type(self._broken).__name__}")

    async def _listen(self) -> None:
        wait = FIRST_WAIT_S
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(self._responses_channel)
                    while True:
                        message = await pubsub.get_message(timeout=1)
                        if message is None:
                            continue
                        if message["type"] == "subscribe":
                            wait = FIRST_WAIT_S
                            self._found()
                        elif message["type"] == "message":
                            self._receive(message["data"])
            except (RedisError, OSError) as error:
                self._lose(error)
            except Exception as error:
                # The way back is the same; a listener that ended would leave every later request unanswered.
                log.exception("ltm responses: listening failed")
                self._lose(error)
            await asyncio.sleep(wait)
            wait = min(wait * 2, MAX_WAIT_S)

    def _found(self) -> None:
        if self._broken is not None:
            log.info("ltm responses: connected again")
        self._broken = None
        self._tried.set()

    def _lose(self, error: Exception) -> None:
        if self._broken is None and self._listener is not None:
            log.warning("ltm responses: connection lost: %r", error)
        self._broken = error
        self._tried.set()
        for _, answer in self._pending.values():
            if not answer.done():
                answer.set_exception(Unavailable("the connection broke while waiting for the response"))

    def _receive(self, raw: bytes | str) -> None:
        try:
            payload = json.loads(raw)
        except (ValueError, RecursionError):
            return  # nothing in it says whom it is for
        request_id = payload.get("request_id") if isinstance(payload, dict) else None
        user_id, answer = self._pending.get(request_id, (None, None)) if isinstance(request_id, str) else (None, None)
        if answer is None or answer.done() or payload.get("user_id") != user_id:
            return  # another asker's, or too late
        try:
            answer.set_result(LTMResponse.model_validate(payload))
        except ValidationError:
            answer.set_exception(RequestFailed("invalid_response: the response cannot be read"))


def _request(kind: RequestType, user_id: str, data: dict[str, Any]) -> LTMRequest:
    try:
        return LTMRequest(request_id=f"req-{uuid4().hex}", type=kind, user_id=user_id, data=data)
    except ValidationError as error:
        fields = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors(include_input=False)}))
        raise InvalidMessage(f"{kind} cannot be asked: {fields} is not as the contract has it") from None
