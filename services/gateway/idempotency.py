"""Idempotency keys: a write that is sent again with the same `Idempotency-Key` takes effect once.

The id of the request on the wire is derived from the key, so that the pipeline itself recognises a repeat, also after
the gateway was killed in between. For a day, Redis has a keyed hash of the request and, once it has succeeded, the
counts of its answer or the id of the memory that was added; no contents and no user ids.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, Final
from uuid import UUID, uuid4, uuid5

from fastapi import Header, Request
from keepsake_client.errors import InvalidMessage, KeepsakeError, Unavailable
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.gateway.access import Caller

KEY_PREFIX: Final = "ltm:gateway:idempotency:"
#: How long a repeat is recognised.
REMEMBERED_S: Final = 24 * 3600
#: How much longer than its deadline a request counts as under way whose gateway was killed.
LEASE_MARGIN_MS: Final = 5_000
#: Of a write without a deadline; see `AsyncClient.write_timeout_ms`.
DEFAULT_DEADLINE_MS: Final = 2_000
_NAMESPACE: Final = UUID("0f6b3c1e-5b7a-4a57-9a5c-2f0d8f6f5f18")

#: Claims a key; the second one exists while a request is under way.
_CLAIM: Final = """
local found = redis.call('HMGET', KEYS[1], 'request', 'done')
if found[1] and found[1] ~= ARGV[1] then return {'other'} end
if found[2] then return {'done', found[2]} end
if not redis.call('SET', KEYS[2], 1, 'NX', 'PX', ARGV[2]) then return {'running'} end
redis.call('HSET', KEYS[1], 'request', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {found[1] and 'repeated' or 'new'}
"""

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="A new random text for each write, such as a UUID; the same one for its repeats, for a day.",
        examples=["8e03978e-40d5-43e8-bc93-6894a57f9324"],
    ),
]


class AnotherRequest(KeepsakeError):
    """The Idempotency-Key was used for another request."""

    code = "unprocessable"


class UnderWay(KeepsakeError):
    """A request with this Idempotency-Key is in progress."""

    code = "conflict"
    retry_after_s = 1


@dataclass(frozen=True)
class Attempt:
    """One attempt at a write.

    Args:
        request_id: of its request on the wire; the same for every attempt with one key.
        repeated: an earlier attempt has begun, and may have been done.
        done: what an earlier attempt has passed to `complete`; None where none has.
        complete: notes that the write is done, with what a repeat is answered.
        extend: has a long request count as in progress for longer.
    """

    request_id: str
    repeated: bool
    done: dict[str, Any] | None
    complete: Callable[[dict[str, Any]], Awaitable[None]]
    extend: Callable[[], Awaitable[None]]


@asynccontextmanager
async def attempt(
    request: Request,
    redis: Redis,
    caller: Caller,
    key: str | None,
    subject: Any,
    user_id: str = "",
    deadline_ms: int | None = None,
) -> AsyncIterator[Attempt]:
    """One attempt at a write; without a key, nothing is kept of it.

    Args:
        subject: what makes it another request, as JSON; without `deadline_ms`, which a repeat may change.
        user_id: whose data it writes; a key is one user's.

    Raises:
        AnotherRequest, UnderWay
        InvalidMessage: there are several keys.
        Unavailable: Redis does not answer.
    """
    if len(request.headers.getlist("Idempotency-Key")) > 1:
        raise InvalidMessage("there are several headers Idempotency-Key: send one")
    if key is None:
        yield Attempt(f"req-{uuid4().hex}", False, None, _nothing, _nothing)
        return
    identity = json.dumps([caller.name, user_id, key])
    secret = blake2b(identity.encode()).digest()
    place = KEY_PREFIX + blake2b(secret, digest_size=16).hexdigest()
    said = json.dumps([request.method, request.url.path, subject], sort_keys=True)
    fingerprint = blake2b(said.encode(), digest_size=16, key=secret).hexdigest()
    held = _Held(redis, place, fingerprint, (deadline_ms or DEFAULT_DEADLINE_MS) + LEASE_MARGIN_MS)
    repeated, done = await held.claim()
    try:
        yield Attempt(str(uuid5(_NAMESPACE, identity)), repeated, done, held.complete, held.extend)
    finally:
        if done is None:
            await held.release()


class _Held:
    """What Redis has of one key."""

    def __init__(self, redis: Any, place: str, fingerprint: str, lease_ms: int) -> None:
        self._redis = redis  # redis-py's types of replies are those of every protocol at once
        self._place = place
        self._running = f"{place}:running"
        self._fingerprint = fingerprint
        self._lease_ms = lease_ms

    async def claim(self) -> tuple[bool, dict[str, Any] | None]:
        """Claim the key; returns whether the write was begun before and, if it is done, what it was answered."""
        arguments = (self._fingerprint, self._lease_ms, REMEMBERED_S)
        with _available():
            state, *done = await self._redis.eval(_CLAIM, 2, self._place, self._running, *arguments)
        match state:
            case b"other":
                raise AnotherRequest("this Idempotency-Key was used for another request: a new request needs a new key")
            case b"running":
                raise UnderWay("a request with this Idempotency-Key is under way: send it again in a moment")
            case b"done":
                answer: dict[str, Any] = json.loads(done[0])
                return True, answer
        return state == b"repeated", None

    async def complete(self, answer: dict[str, Any]) -> None:
        with _available():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(self._place, mapping={"request": self._fingerprint, "done": json.dumps(answer)})
                pipeline.expire(self._place, REMEMBERED_S)
                await pipeline.execute()

    async def extend(self) -> None:
        with _available():
            await self._redis.set(self._running, 1, px=self._lease_ms)

    async def release(self) -> None:
        with suppress(RedisError, OSError):  # it expires
            await self._redis.delete(self._running)


async def _nothing(*_: Any) -> None:
    """What an attempt without a key does for `complete` and `extend`."""


@contextmanager
def _available() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable("Redis does not answer") from error
