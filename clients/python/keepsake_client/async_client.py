"""The asyncio client: one Redis subscription serves every request of the process."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self, TypedDict
from uuid import uuid4

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from keepsake_client.cancellation import cancel_all
from keepsake_client.connections import address, connect_async
from keepsake_client.errors import (
    CREDENTIALS_REFUSED,
    Disabled,
    InvalidMessage,
    KeepsakeError,
    MessageTooLarge,
    RequestFailed,
    RequestTimeout,
    Unavailable,
)
from keepsake_client.protocol import (
    ADAPTER_FAILED_AFTER_S,
    COUNTERS,
    MANAGING,
    MAX_DEADLINE_MS,
    MAX_MESSAGE_BYTES,
    MEMBERSHIP_KEY,
    REQUESTS_QUEUE,
    RESPONSES_CHANNEL,
    STREAM_EVENT_FIELD,
    STREAM_MAX_LEN,
    UPDATES_CHANNEL,
    UPDATES_STREAM,
    LTMRequest,
    LTMResponse,
    MemoryUpdateMessage,
    RequestType,
    Source,
    validate,
)
from keepsake_client.refusals import refusal, refuses_writes
from keepsake_client.subscription import (
    MAX_SILENCE_S,
    PING_INTERVAL_S,
    HalfOpen,
    SubscriptionMonitor,
    next_message,
)
from keepsake_client.verbs import Verbs

#: How long the removal of an expired request may take on top of its deadline, and the closing of half-open connections.
CLEANUP_TIMEOUT_S = 0.1
#: Connections of a client made from a URL; a request holds one for less than a millisecond.
MAX_CONNECTIONS = 32
_BACKOFF = ExponentialBackoff(cap=5.0, base=0.1)
#: By then the cap is reached; an outage of hours would count to 2**1024, which no float holds.
_MAX_DOUBLINGS = 10

#: Requests that a reply waits for.
_BEFORE_A_REPLY: tuple[RequestType, ...] = ("search", "context")

log = logging.getLogger(__name__)


class ClientOptions(TypedDict, total=False):
    """The optional arguments of both clients; see `AsyncClient`."""

    requests_queue: str
    manage_queue: str | None
    responses_channel: str
    updates_channel: str
    updates_stream: str
    stream_max_len: int
    search_timeout_ms: int
    write_timeout_ms: int
    enabled: bool
    ping_interval_s: float
    max_silence_s: float
    traceparent: Callable[[], str | None] | None


class AsyncClient(Verbs):
    """Client of the long-term memory for asyncio services; needs redis-py and pydantic alone, and reads no environment.

    Use it as an async context manager, or call `start` and `close`. It reconnects with exponential backoff; while the
    subscription is known to be down, requests fail at once. A half-open connection is noticed by pings on the
    subscription. `counts` says how requests ended.

    Args:
        redis: the URL to connect to, or a redis-py client to share, which `close` leaves open. With
            `redis+sentinel://host1,host2,host3/SERVICE` it follows the master that Redis Sentinel names.
        requests_queue, responses_channel, updates_channel, updates_stream: names in Redis; equal to the pipeline's
            LTM_REQUESTS_QUEUE, LTM_RESPONSES_CHANNEL, MEMORY_UPDATES_CHANNEL and LTM_STREAM_KEY.
        manage_queue: the pipeline's LTM_MANAGE_QUEUE, where it has one: requests to correct, delete, forget, export and
            import are pushed there.
        stream_max_len: approximate length that `remember` trims the stream to; the pipeline's LTM_STREAM_MAX_LEN.
        search_timeout_ms: the deadline of a search or context that sets none.
        write_timeout_ms: the deadline of every other request, and of `remember`.
        enabled: False touches no key, list or channel: searches return nothing, every other call raises `Disabled`.
        ping_interval_s: a subscription that received nothing for this long is pinged.
        max_silence_s: one that received nothing for this long, not even the answer to a ping, is replaced, and with it
            every other connection of a client made from a URL. No connection of such a client waits longer for an
            answer.
        traceparent: called for each request and event in the caller's context; what it returns, the current span as W3C
            Trace Context writes it, is sent along. None, and what is no traceparent, is not sent. It must not raise.
    """

    def __init__(
        self,
        redis: Redis | str,
        *,
        requests_queue: str = REQUESTS_QUEUE,
        manage_queue: str | None = None,
        responses_channel: str = RESPONSES_CHANNEL,
        updates_channel: str = UPDATES_CHANNEL,
        updates_stream: str = UPDATES_STREAM,
        stream_max_len: int = STREAM_MAX_LEN,
        search_timeout_ms: int = 600,
        write_timeout_ms: int = 2_000,
        enabled: bool = True,
        ping_interval_s: float = PING_INTERVAL_S,
        max_silence_s: float = MAX_SILENCE_S,
        traceparent: Callable[[], str | None] | None = None,
    ) -> None:
        self._url = redis if isinstance(redis, str) else None
        self._requests_queue = requests_queue
        self._manage_queue = manage_queue or requests_queue
        self._responses_channel = responses_channel
        self._updates_channel = updates_channel
        self._updates_stream = updates_stream
        self._stream_max_len = stream_max_len
        self._search_timeout_ms = search_timeout_ms
        self._write_timeout_ms = write_timeout_ms
        self._enabled = enabled
        self._ping_interval_s = ping_interval_s
        self._max_silence_s = max_silence_s
        self._traceparent = traceparent
        self._redis = self._connect(redis) if isinstance(redis, str) else redis
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriber: asyncio.Task[None] | None = None
        self._failures = 0
        self._half_open = False
        # After the first attempt to subscribe, `_error` is None exactly while the subscription is up.
        self._attempted = asyncio.Event()
        self._error: Unavailable | None = None
        self._pending: dict[str, tuple[str, asyncio.Future[LTMResponse]]] = {}
        self._may_look = True
        self._unserved = False
        #: Number of requests by outcome: `ok` or an error's code (`timeout`, `unavailable`, `too_large`, ...), and of
        #: remembered messages that the stream did not take (`unlogged`); unexpected errors of the subscriber are
        #: `subscriber_failed`.
        self.counts: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def subscribed(self) -> bool:
        """Whether the subscription to the responses is up."""
        return self._subscriber is not None and self._attempted.is_set() and self._error is None

    async def start(self) -> None:
        """Subscribe to the responses, in the background. Redis may be down: the client keeps trying."""
        self._enter_loop()
        if self._enabled and self._subscriber is None:
            self._error = None
            self._attempted = asyncio.Event()
            self._subscriber = asyncio.create_task(self._subscribe(), name="keepsake-responses")

    async def close(self) -> None:
        """Unsubscribe; pending requests raise `Unavailable`."""
        self._enter_loop()
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            await cancel_all([subscriber])
        self._down(Unavailable("the client is closed"))
        if self._url is not None:
            await self._redis.aclose()

    async def request(
        self,
        request_type: RequestType,
        user_id: str,
        data: Mapping[str, Any],
        *,
        deadline_ms: int | None = None,
        request_id: str | None = None,
    ) -> LTMResponse:
        """Send one request and return its response; the verbs are built on it.

        A request that no adapter takes before the deadline is removed from the list.

        Args:
            data: the request's `data` as in the contract, without `deadline_ms`.
            request_id: one that no other request has, such as a UUID, for a caller that logs it; a new one where it is
                missing.

        Raises:
            RequestTimeout: no response came before the deadline. A write may have been done, or be done later.
            RequestFailed: the response reports a failure.
            Unavailable: Redis does not respond, or the client is not started. A write that was sent may have been done.
            InvalidMessage: the request does not have the shape of the contract; nothing was sent.
            Disabled: the client has `enabled=False`.
        """
        self._check_enabled()
        if deadline_ms is None:
            deadline_ms = self._search_timeout_ms if request_type in _BEFORE_A_REPLY else self._write_timeout_ms
        with self._counted():
            with _checked_arguments():
                deadline_ms = min(max(round(deadline_ms), 1), MAX_DEADLINE_MS)
                objects = {name: dict(value) if isinstance(value, Mapping) else value for name, value in data.items()}
                request = validate(
                    LTMRequest,
                    {
                        "request_id": f"req-{uuid4().hex}" if request_id is None else request_id,
                        "type": request_type,
                        "user_id": user_id,
                        "data": {**objects, "deadline_ms": deadline_ms},
                        "pushed_at": time.time(),
                        "traceparent": self._traceparent and self._traceparent(),
                    },
                )
                wire = json.dumps(request.to_fields())
            response = await self._respond(request, wire, deadline_ms)
            if not response.success:
                raise RequestFailed(response.error or "internal: the response has no error")
        return response

    async def remember(
        self,
        user_id: str,
        content: str,
        *,
        source: Source = "user",
        session: str | None = None,
        timestamp: float | str | None = None,
        meta: Mapping[str, Any] | None = None,
        message_id: str | None = None,
        task_id: str | None = None,
        require_ai_response: bool | None = None,
        agent_id: str | None = None,
        speaker: Mapping[str, str] | str | None = None,
        ttl_days: float | None = None,
    ) -> str:
        """Publish a message of a user or the AI, to be indexed; returns its message_id.

        The event is written to the stream and published on the channel in one transaction, so it outlives an outage of
        the adapters. Where Redis does not permit writing the stream, it is published alone, without `logged`: the
        adapters then take it from the channel, if they are subscribed. Needs no `start`.

        Repeating a call that raised is idempotent with the same `message_id`: the same event is one memory.

        Args:
            source: who wrote it, `"user"` or `"ai"`.
            session: the conversation it belongs to, as `meta.session_id`.
            timestamp: when, in any form of the contract; now where it is missing.
            meta: an object of the caller's own, returned in a memory's `metadata`.
            message_id: identifies the message; a new id where it is missing.
            task_id: another id of the caller's, passed on with the event.
            require_ai_response: False asks the chat service for no reply, as for the messages of an imported history.
            agent_id: the character of the AI that it belongs to; shared by all where it is missing.
            speaker: who of several people said it: a name, or a mapping with `id`, `name` or both.
            ttl_days: its memory is deleted so many days after `timestamp`.

        Raises:
            RequestTimeout, Unavailable: it is not known to be published.
            InvalidMessage, Disabled: nothing was published.
        """
        self._check_enabled()
        with self._counted():
            with _checked_arguments():
                session_id = {} if session is None else {"session_id": session}
                message = validate(
                    MemoryUpdateMessage,
                    {
                        "user_id": user_id,
                        "content": content,
                        "source": source,
                        "timestamp": timestamp,
                        "meta": {**(meta or {}), **session_id},
                        "message_id": uuid4().hex if message_id is None else message_id,
                        "task_id": task_id,
                        "require_ai_response": require_ai_response,
                        "agent_id": agent_id,
                        "speaker": speaker,
                        "ttl_days": ttl_days,
                        "traceparent": self._traceparent and self._traceparent(),
                    },
                )
                # A text may name no zone; the pipeline knows which one it is.
                as_sent = timestamp if isinstance(timestamp, str) else None
                event = message.to_wire(logged=True, timestamp=as_sent)
            self._enter_loop()
            with _translated(f"remember was not confirmed within {self._write_timeout_ms} ms"):
                async with asyncio.timeout(self._write_timeout_ms / 1000):
                    await self._publish(event, message.to_wire(timestamp=as_sent))
        return str(message.message_id)

    async def _publish(self, event: str, unlogged: str) -> None:
        """Write the event to the stream and publish it.

        Args:
            unlogged: the event for the channel alone, where the stream refuses it.
        """
        if len(event) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"the event has {len(event)} bytes; {MAX_MESSAGE_BYTES} are allowed")
        async with self._redis.pipeline(transaction=True) as transaction:
            transaction.xadd(
                self._updates_stream, {STREAM_EVENT_FIELD: event}, maxlen=self._stream_max_len, approximate=True
            )
            transaction.publish(self._updates_channel, event)
            try:
                # A command that Redis does not even queue, as without the right to it, aborts the transaction.
                results = await transaction.execute(raise_on_error=False)
            except ResponseError as error:
                if refuses_writes(error):
                    raise
                await self._publish_unlogged(unlogged, error)
                return
        # One that fails when it is executed, as on a key of another type, does not keep the other from running.
        for result in results:
            if isinstance(result, ResponseError) and not refuses_writes(result):
                await self._publish_unlogged(unlogged, result)
                return
            if isinstance(result, Exception):
                raise result

    async def _publish_unlogged(self, event: str, reason: ResponseError) -> None:
        """Publish for the adapters to take from the channel: they skip an event that says it is logged."""
        await self._redis.publish(self._updates_channel, event)
        if not self.counts["unlogged"]:
            log.warning("ltm remember: the stream is not written: %s", type(reason).__name__)
        self.counts["unlogged"] += 1

    def _enter_loop(self) -> None:
        """Leave what belongs to an earlier event loop: its connections and tasks cannot be used in another one."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            self._subscriber = None
            self._pending.clear()
            if self._url is not None:
                self._redis = self._connect(self._url)
        self._loop = loop

    def _check_enabled(self) -> None:
        if not self._enabled:
            raise Disabled("long-term memory is disabled: the client has enabled=False")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except KeepsakeError as error:
            self.counts[error.code] += 1
            raise
        self.counts["ok"] += 1

    async def _respond(self, request: LTMRequest, wire: str, deadline_ms: int) -> LTMResponse:
        queue = self._manage_queue if request.type in MANAGING else self._requests_queue
        response: asyncio.Future[LTMResponse] = asyncio.get_running_loop().create_future()
        deadline = asyncio.get_running_loop().time() + deadline_ms / 1000
        try:
            with _translated(f"no response to {request.type} within {deadline_ms} ms"):
                async with asyncio.timeout_at(deadline):
                    await self._subscribed()
                # Registered before it is pushed: the response may arrive before the push returns.
                self._pending[request.request_id] = (request.user_id, response)
                # Each step has a timeout of its own: one timeout is one cancellation, which redis-py may swallow (see
                # `cancel_all`).
                async with asyncio.timeout_at(deadline):
                    await self._redis.lpush(queue, wire)
                async with asyncio.timeout_at(deadline):
                    answer = await response
            self._unserved = False
            return answer
        except RequestTimeout as error:
            served = await self._withdraw(queue, wire)
            raise RequestTimeout(f"{error}; {self._asked(queue, served)}") from None
        finally:
            self._pending.pop(request.request_id, None)
            response.cancel()  # or asyncio logs its exception, where the wait ended in the same moment

    async def _withdraw(self, queue: str, wire: str) -> bool:
        """Remove a request that was not answered from the list, and look whether anything serves the list.

        Returns:
            False if no adapter is alive; True also where Redis does not say.
        """
        try:
            async with asyncio.timeout(CLEANUP_TIMEOUT_S):
                with suppress(ResponseError):
                    await self._redis.lrem(queue, 1, wire)
                return not self._may_look or await any_adapter(self._redis)
        except NoPermissionError:
            self._may_look = False  # each refusal would be an entry in Redis's ACL LOG
        except (RedisError, OSError):
            pass
        return True

    def _asked(self, queue: str, served: bool) -> str:
        """Where the request was pushed; where nothing serves it, logged once until a request is answered again."""
        asked = f"asked {queue} on Redis {address(self._redis)}"
        if not served:
            asked += ", and nothing seems to serve it there: no adapter of Keepsake is alive"
            if not self._unserved:
                log.warning("ltm requests are not answered: %s", asked)
            self._unserved = True
        return asked

    async def _subscribed(self) -> None:
        """Wait for the subscription: a response published before it is lost."""
        if self._subscriber is None:
            raise Unavailable("the client is not started")
        await self._attempted.wait()
        if self._error is not None:
            raise Unavailable(str(self._error))

    async def _subscribe(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    async with asyncio.timeout(self._max_silence_s):
                        await pubsub.subscribe(self._responses_channel)
                    await self._receive_all(pubsub)
            except HalfOpen as error:
                self._half_open = True
                self._down(Unavailable(_describe(error)))
                await self._replace_connections()
            except (RedisError, OSError) as error:
                self._down(Unavailable(_describe(error)))
            except Exception:
                # Reconnecting is right here too: without a subscriber, every later request would time out.
                self.counts["subscriber_failed"] += 1
                log.exception("ltm responses: subscriber failed")
                self._down(Unavailable("the subscription failed"))
            await asyncio.sleep(_BACKOFF.compute(min(self._failures, _MAX_DOUBLINGS)))
            self._failures += 1

    async def _receive_all(self, pubsub: PubSub) -> None:
        """Receive until the connection breaks, or is silent for too long."""
        monitor = SubscriptionMonitor(self._ping_interval_s, self._max_silence_s, clock=asyncio.get_running_loop().time)
        while True:
            message = await next_message(pubsub, monitor, self._ping_interval_s)
            if message is None:
                continue
            if message["type"] == "subscribe":
                self._up()
                await self._count_replaced()
            elif message["type"] == "message":
                self._receive(message["data"])

    async def _count_replaced(self) -> None:
        if self._half_open:
            self._half_open = False
            with suppress(RedisError, OSError):  # not every client may write the counter
                async with asyncio.timeout(CLEANUP_TIMEOUT_S):
                    await self._redis.hincrby(COUNTERS, "subscriptions_replaced", 1)

    def _connect(self, url: str) -> Redis:
        # Without redis-py's own retries: the subscriber backs off by itself, and a request fails at once.
        # With a pool that waits for a free connection: redis-py's own refuses the 101st concurrent request.
        return connect_async(
            url,
            waits=True,
            max_connections=MAX_CONNECTIONS,
            timeout=self._max_silence_s,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=self._max_silence_s,
        )

    async def _replace_connections(self) -> None:
        """Drop every connection: those of the pool are half-open too, and each would cost one request its deadline."""
        if self._url is not None:
            half_open, self._redis = self._redis, self._connect(self._url)
            with suppress(RedisError, OSError):
                async with asyncio.timeout(CLEANUP_TIMEOUT_S):
                    await half_open.aclose()

    def _up(self) -> None:
        if self._error is not None:
            log.info("ltm responses: reconnected")
        self._error = None
        self._failures = 0
        self._attempted.set()

    def _down(self, error: Unavailable) -> None:
        if self._error is None and self._subscriber is not None:
            log.warning("ltm responses: %s", error)
        self._error = error
        self._attempted.set()
        for _, response in self._pending.values():
            if not response.done():
                response.set_exception(Unavailable("the connection was lost before the response arrived"))

    def _receive(self, raw: bytes | str) -> None:
        try:
            payload = json.loads(raw)
        except (ValueError, RecursionError):
            return  # it has no readable request_id
        request_id = payload.get("request_id") if isinstance(payload, dict) else None
        user_id, response = self._pending.get(request_id, (None, None)) if isinstance(request_id, str) else (None, None)
        if response is None or response.done() or payload.get("user_id") != user_id:
            return  # of another client, or too late
        try:
            response.set_result(LTMResponse.model_validate(payload))
        except ValidationError:
            response.set_exception(RequestFailed("invalid_response: the response does not have the contract's shape"))


@contextmanager
def _translated(on_timeout: str) -> Iterator[None]:
    """Raise the errors of Redis and of asyncio as the client's own."""
    try:
        yield
    except TimeoutError:
        raise RequestTimeout(on_timeout) from None
    except (RedisError, OSError) as error:
        raise Unavailable(_describe(error)) from error


@contextmanager
def _checked_arguments() -> Iterator[None]:
    """Raise what arguments that are no JSON raise as the client's own error."""
    try:
        yield
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidMessage(f"an argument is not valid JSON: {type(error).__name__}") from None


def _describe(error: RedisError | OSError) -> str:
    if reason := refusal(error):
        return f"Redis refuses writes: {reason}"
    if isinstance(error, ResponseError):  # its message quotes the command, which has contents
        return f"Redis refused the command: {type(error).__name__}"
    if isinstance(error, AuthenticationError):
        return f"Redis refuses the connection: {CREDENTIALS_REFUSED}"
    return f"Redis does not answer: {str(error) or type(error).__name__}"


async def any_adapter(redis: Any) -> bool:
    """Whether an adapter has sent a heartbeat lately, by Redis's clock.

    Args:
        redis: an asyncio client; redis-py's types of replies are those of every protocol at once.
    """
    seconds, _ = await redis.time()
    latest = await redis.zrevrange(MEMBERSHIP_KEY, 0, 0, withscores=True)
    return any(seconds - heartbeat < ADAPTER_FAILED_AFTER_S for _, heartbeat in latest)
