"""Connections to the master that Redis Sentinel names: they follow it, wherever it moves.

They are redis-py's, with what those lack: a connection in use, above all a subscription, leaves a master that is none
any more though it is connected still (it is cut off from the sentinels, or frozen); one that broke asks the sentinels
before it connects again; and of sentinels that contradict each other, those that know of the last failover count.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import weakref
from contextlib import suppress
from typing import Any

from redis import sentinel as blocking
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import sentinel as awaiting
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.retry import Retry

from keepsake_client.sentinel_url import SentinelURL

#: How often each client asks the sentinels whether the master still is the one that it is connected to.
WATCH_INTERVAL_S = 2.0
#: Of each sentinel: one that does not answer must not cost a search its time. `sentinel_socket_timeout` sets it.
TIMEOUT_S = 0.5
_TIMEOUTS = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}

#: Of the reason that a sentinel gives for its silence; three of them are to fit into a line of the log.
MAX_REASON_CHARS = 100

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
    """Selection of the master among the answers of the sentinels, and the connections that are to follow it."""

    def __init__(self) -> None:
        self._epoch = -1
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def add(self, connection: Any) -> None:
        """Have a connection follow the master."""
        with self._lock:
            self._connections.add(connection)

    @property
    def connections(self) -> list[Any]:
        """Those that follow the master."""
        with self._lock:
            return list(self._connections)

    def master(self, service: str, masters: Any) -> Address | str:
        """The address of the master, as one sentinel says, or why its answer is of no use."""
        state = masters.get(service)
        if state is None:
            return f"knows no service {service!r}"
        if state["config-epoch"] < self._epoch:
            return "has not learnt of the last failover"
        if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
            return "finds the master down"
        return state["ip"], state["port"]

    def in_order(self, states: list[tuple[Any, dict[str, Any] | None]]) -> list[Any]:
        """The sentinels, those that know of the last failover first, and those without an answer last."""
        epochs = [(-1 if state is None else int(state["config-epoch"]), sentinel) for sentinel, state in states]
        # It may be lower than before, where all sentinels were set up anew.
        if (highest := max((epoch for epoch, _ in epochs), default=-1)) >= 0:
            self._epoch = highest
        return [sentinel for _, sentinel in sorted(epochs, key=lambda pair: pair[0], reverse=True)]


def _reason(error: RedisError | OSError) -> str:
    if isinstance(error, AuthenticationError):
        return "asks for another user or password (sentinel_username and sentinel_password of the URL)"
    if isinstance(error, NoPermissionError):
        return "does not permit its user SENTINEL MASTERS"
    if isinstance(error, ResponseError):
        return "is no sentinel, or refuses SENTINEL MASTERS"
    return f"does not answer ({' '.join(str(error).split())[:MAX_REASON_CHARS] or type(error).__name__})"


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
        self._watcher: threading.Thread | None = None
        self._closed = threading.Event()

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

    def watch(self, pool: Any) -> None:
        """Have the connections of a pool follow the master from now on, in the background."""
        with self._lock:
            if self._watcher is not None and self._watcher.is_alive():  # it is not, in a forked process
                return
            self._closed.clear()
            self._watcher = threading.Thread(target=self._watch, args=(pool,), name="redis-sentinel", daemon=True)
        with suppress(RuntimeError):  # Python is ending
            self._watcher.start()

    def _watch(self, pool: Any) -> None:
        while not self._closed.wait(WATCH_INTERVAL_S) and pool.connection_pool_ref() is not None:
            self.follow(pool)

    def follow(self, pool: Any) -> None:
        """Ask all sentinels, and end the connections to another server than the master."""
        self.sentinels = self.in_order([(each, self._state(each, pool.service_name)) for each in self.sentinels])
        try:
            master = pool.get_master_address()
        except (RedisError, OSError):
            return  # the connections that there are go on
        for connection in self.connections:
            connection.leave_unless(master)

    def close_all(self) -> None:
        """End the connections to the sentinels."""
        self._closed.set()
        with self._lock:
            watcher = self._watcher
        if watcher is not None and watcher.is_alive():
            watcher.join(2 * TIMEOUT_S)
        for sentinel in self.sentinels:
            sentinel.close()

    def _state(self, sentinel: Any, service: str) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] | None = sentinel.sentinel_masters().get(service)
        except (RedisError, OSError):
            return None
        return state


class _Pool(blocking.SentinelConnectionPool):
    """A pool of connections to the master, and those to the sentinels."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        if inuse_connections:
            self.sentinel_manager.close_all()
        super().disconnect(inuse_connections)


class _Follows:
    """A connection that follows the master."""

    connection_pool: Any
    host: str
    port: int
    pid: int  # of a forked process, which must leave its parent's connections alone

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.connection_pool.sentinel_manager.add(self)

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        self.connect()  # redis-py would connect to where it was connected before
        return super().send_packed_command(command, check_health)  # type: ignore[misc]

    def connect(self) -> Any:
        self.connection_pool.sentinel_manager.watch(self.connection_pool)
        return super().connect()  # type: ignore[misc]

    def leave_unless(self, master: Address) -> None:
        """End it, from another thread, unless it is connected to the master: who waits for an answer has an error."""
        # Before its address is looked at, which it has changed by the time that it has another socket.
        connected: socket.socket | None = getattr(self, "_sock", None)
        if connected is not None and (self.host, self.port) != master and self.pid == os.getpid():
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)


class _Connection(_Follows, blocking.SentinelManagedConnection):
    pass


class _TLSConnection(_Follows, blocking.SentinelManagedSSLConnection):
    pass


class _AsyncSentinels(_Selection, awaiting.Sentinel):
    """The sentinels of one pool."""

    def __init__(self, sentinels: list[Address], **options: Any) -> None:
        awaiting.Sentinel.__init__(self, sentinels, **options)  # type: ignore[no-untyped-call]
        _Selection.__init__(self)
        self._watcher: asyncio.Task[None] | None = None

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

    def watch(self, pool: Any) -> None:
        """Have the connections of a pool follow the master from now on, in the background."""
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.get_running_loop().create_task(self._watch(pool), name="redis-sentinel")

    async def _watch(self, pool: Any) -> None:
        with suppress(ReferenceError):  # the pool is gone
            while True:
                await asyncio.sleep(WATCH_INTERVAL_S)
                await self.follow(pool)

    async def follow(self, pool: Any) -> None:
        """Ask all sentinels, and end the connections to another server than the master."""
        states = [(each, await self._state(each, pool.service_name)) for each in self.sentinels]
        self.sentinels = self.in_order(states)
        try:
            master = await pool.get_master_address()
        except (RedisError, OSError):
            return  # the connections that there are go on
        for connection in self.connections:
            if (connection.host, connection.port) != master:
                with suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)

    async def close_all(self) -> None:
        """End the connections to the sentinels."""
        if self._watcher is not None:
            self._watcher.cancel()
        for sentinel in self.sentinels:
            await sentinel.aclose()

    async def _state(self, sentinel: Any, service: str) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] | None = (await sentinel.sentinel_masters()).get(service)
        except (RedisError, OSError):
            return None
        return state


class _AsyncPool(awaiting.SentinelConnectionPool):
    """A pool of connections to the master, and those to the sentinels."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        if inuse_connections:
            await self.sentinel_manager.close_all()
        await super().disconnect(inuse_connections)


class _AsyncWaitingPool(_AsyncPool, BlockingConnectionPool):
    """One that waits for a connection, where all are in use."""


class _AsyncFollows:
    """A connection that follows the master."""

    connection_pool: Any

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.connection_pool.sentinel_manager.add(self)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        await self.connect()  # redis-py would connect to where it was connected before
        return await super().send_packed_command(command, check_health)  # type: ignore[misc]

    async def connect(self) -> Any:
        self.connection_pool.sentinel_manager.watch(self.connection_pool)
        return await super().connect()  # type: ignore[misc]


class _AsyncConnection(_AsyncFollows, awaiting.SentinelManagedConnection):
    pass


class _AsyncTLSConnection(_AsyncFollows, awaiting.SentinelManagedSSLConnection):
    pass
