"""Connections to the master that Redis Sentinel names: they follow it, wherever it moves.

They are redis-py's, with what those lack: a connection in use, above all a subscription, leaves a master that is none
any more though it still answers (it is cut off from the sentinels, or was frozen); one that broke asks the sentinels
before it connects again; and of sentinels that contradict each other, those that know of the last failover count.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any

from redis import sentinel as blocking
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import sentinel as awaiting
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from keepsake_client.sentinel_url import SentinelURL

#: How often the connections of a client that are in use have the sentinels asked whether their master still is it.
LOOK_INTERVAL_S = 2.0
#: Of each sentinel: one that does not answer must not cost a search its time. `sentinel_socket_timeout` sets it.
TIMEOUT_S = 0.5
_TIMEOUTS = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}

Address = tuple[str, int]


def sentinel_pool(url: SentinelURL, **options: Any) -> blocking.SentinelConnectionPool:
    """A pool of connections to the master.

    Args:
        options: of the connections; those of the URL win.
    """
    asked = _Sentinels(
        list(url.sentinels),
        sentinel_kwargs={**_TIMEOUTS, "retry": Retry(NoBackoff(), 0), **url.sentinel_options},
    )
    options = {"connection_class": _TLSConnection if url.tls else _Connection, **options, **url.options}
    return _Pool(url.service, asked, **options)  # type: ignore[no-untyped-call]  # redis-py's lack annotations


def async_sentinel_pool(url: SentinelURL, *, waits: bool, **options: Any) -> awaiting.SentinelConnectionPool:
    """`sentinel_pool` for asyncio.

    Args:
        waits: as redis-py's BlockingConnectionPool does, where all connections are in use.
    """
    asked = _AsyncSentinels(
        list(url.sentinels),
        sentinel_kwargs={**_TIMEOUTS, "retry": AsyncRetry(NoBackoff(), 0), **url.sentinel_options},
    )
    options = {"connection_class": _AsyncTLSConnection if url.tls else _AsyncConnection, **options, **url.options}
    pool = _AsyncWaitingPool if waits else _AsyncPool
    return pool(url.service, asked, **options)  # type: ignore[no-untyped-call]


class _Selection:
    """Selection of the master among the answers of the sentinels."""

    def __init__(self) -> None:
        self._epoch = -1
        self._look_at = 0.0

    def look_due(self) -> bool:
        """Whether to look now whether the master still is it; True once for each interval."""
        now = time.monotonic()
        due = now >= self._look_at
        if due:
            self._look_at = now + LOOK_INTERVAL_S
        return due

    def master(self, service: str, masters: Any) -> Address | str:
        """The address of the master, as one sentinel says, or why it is of no use."""
        state = masters.get(service)
        if state is None:
            return f"knows no service {service!r}"
        if state["config-epoch"] < self._epoch:
            return "has not learnt of the last failover"
        if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
            return "finds the master down"
        return state["ip"], state["port"]

    def in_order(self, states: list[tuple[Any, dict[str, Any] | None]]) -> list[Any]:
        """The sentinels, those of the last failover first, and those without an answer last."""
        epochs = [(-1 if state is None else int(state["config-epoch"]), sentinel) for sentinel, state in states]
        if (highest := max(epoch for epoch, _ in epochs)) >= 0:
            self._epoch = highest
        return [sentinel for _, sentinel in sorted(epochs, key=lambda pair: pair[0], reverse=True)]


def _reason(error: RedisError | OSError) -> str:
    if isinstance(error, AuthenticationError):
        return "asks for another user or password (sentinel_username and sentinel_password of the URL)"
    if isinstance(error, NoPermissionError):
        return "does not permit its user SENTINEL MASTERS"
    return f"does not answer ({type(error).__name__})"


def _no_master(service: str, reasons: list[tuple[Any, str]]) -> str:
    places = [(sentinel.connection_pool.connection_kwargs, reason) for sentinel, reason in reasons]
    return f"no master of {service!r}: " + ", ".join(
        f"sentinel {place['host']}:{place['port']} {reason}" for place, reason in places
    )


class _Sentinels(_Selection, blocking.Sentinel):
    """The sentinels of one pool."""

    def __init__(self, sentinels: list[Address], **options: Any) -> None:
        blocking.Sentinel.__init__(self, sentinels, **options)  # type: ignore[no-untyped-call]
        _Selection.__init__(self)

    def discover_master(self, service_name: str) -> Address:
        """The address of the master.

        Raises:
            MasterNotFoundError: no sentinel names one, for now.
        """
        reasons = []
        for sentinel in self.sentinels:
            try:
                found = self.master(service_name, sentinel.sentinel_masters())
            except (RedisError, OSError) as error:
                found = _reason(error)
            if not isinstance(found, str):
                return found
            reasons.append((sentinel, found))
        raise blocking.MasterNotFoundError(_no_master(service_name, reasons))

    def look(self, pool: Any) -> None:
        """Have the pool's connections follow, in the background, if it is time to look."""
        if self.look_due():
            with suppress(RuntimeError):  # Python is ending
                threading.Thread(target=self._look, args=(pool,), name="redis-sentinel", daemon=True).start()

    def _look(self, pool: Any) -> None:
        self.sentinels = self.in_order([(each, self._state(each, pool.service_name)) for each in self.sentinels])
        with suppress(RedisError, OSError):  # the connections that there are go on
            pool.get_master_address()

    def _state(self, sentinel: Any, service: str) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] | None = sentinel.sentinel_masters().get(service)
        except (RedisError, OSError):
            return None
        return state


class _Pool(blocking.SentinelConnectionPool):
    """A pool of connections to the master, and those to the sentinels."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                sentinel.close()


class _Follows:
    """Of a connection: it follows the master."""

    connection_pool: Any
    host: str
    port: int

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        self.connect()  # type: ignore[attr-defined]  # redis-py would connect to where it was connected before
        return super().send_packed_command(command, check_health)  # type: ignore[misc]

    def can_read(self, timeout: float = 0) -> bool:
        self._follow()
        return bool(super().can_read(timeout))  # type: ignore[misc]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        self._follow()
        return super().read_response(*arguments, **options)  # type: ignore[misc]

    def _follow(self) -> None:
        self.connection_pool.sentinel_manager.look(self.connection_pool)
        if self.connection_pool.master_address not in (None, (self.host, self.port)):
            self.disconnect()  # type: ignore[attr-defined]
            raise RedisConnectionError(f"{self.host}:{self.port} is not the master any more")


class _Connection(_Follows, blocking.SentinelManagedConnection):
    pass


class _TLSConnection(_Follows, blocking.SentinelManagedSSLConnection):
    pass


class _AsyncSentinels(_Selection, awaiting.Sentinel):
    """The sentinels of one pool."""

    def __init__(self, sentinels: list[Address], **options: Any) -> None:
        awaiting.Sentinel.__init__(self, sentinels, **options)  # type: ignore[no-untyped-call]
        _Selection.__init__(self)
        self.looking: asyncio.Task[None] | None = None
        self._followed: Address | None = None

    async def discover_master(self, service_name: str) -> Address:
        """The address of the master.

        Raises:
            MasterNotFoundError: no sentinel names one, for now.
        """
        reasons = []
        for sentinel in self.sentinels:
            try:
                found = self.master(service_name, await sentinel.sentinel_masters())
            except (RedisError, OSError) as error:
                found = _reason(error)
            if not isinstance(found, str):
                return found
            reasons.append((sentinel, found))
        raise awaiting.MasterNotFoundError(_no_master(service_name, reasons))

    def look(self, pool: Any) -> None:
        """Have the pool's connections follow, in the background, if it is time to look."""
        if self.look_due():
            self.looking = asyncio.get_running_loop().create_task(self._look(pool), name="redis-sentinel")

    async def _look(self, pool: Any) -> None:
        with suppress(RedisError, OSError, ReferenceError):  # or the pool is gone
            states = [(each, await self._state(each, pool.service_name)) for each in self.sentinels]
            self.sentinels = self.in_order(states)
            before, self._followed = self._followed, await pool.get_master_address()
            if before not in (None, self._followed):
                await pool.disconnect_all()

    async def _state(self, sentinel: Any, service: str) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] | None = (await sentinel.sentinel_masters()).get(service)
        except (RedisError, OSError):
            return None
        return state


class _AsyncPool(awaiting.SentinelConnectionPool):
    """A pool of connections to the master, and those to the sentinels."""

    async def disconnect_all(self) -> None:
        """Disconnect also what is in use, and waits for what an old master will never send."""
        await super().disconnect()

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            if (looking := self.sentinel_manager.looking) is not None:
                looking.cancel()
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


class _AsyncWaitingPool(_AsyncPool, BlockingConnectionPool):
    """One that waits for a connection, where all are in use."""


class _AsyncFollows:
    """Of a connection: it follows the master."""

    connection_pool: Any
    host: str
    port: int

    async def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        await self.connect()  # type: ignore[attr-defined]  # redis-py would connect to where it was connected before
        return await super().send_packed_command(command, check_health)  # type: ignore[misc]

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        self.connection_pool.sentinel_manager.look(self.connection_pool)
        if self.connection_pool.master_address not in (None, (self.host, self.port)):
            await self.disconnect()  # type: ignore[attr-defined]
            raise RedisConnectionError(f"{self.host}:{self.port} is not the master any more")
        return await super().read_response(*arguments, **options)  # type: ignore[misc]


class _AsyncConnection(_AsyncFollows, awaiting.SentinelManagedConnection):
    pass


class _AsyncTLSConnection(_AsyncFollows, awaiting.SentinelManagedSSLConnection):
    pass
