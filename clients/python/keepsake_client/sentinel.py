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
from contextlib import suppress
from typing import Any

from redis import sentinel as blocking
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import sentinel as awaiting
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from keepsake_client.cancellation import cancel_all
from keepsake_client.sentinel_selection import Address, Selection, State, no_master, of_service, reason_of
from keepsake_client.sentinel_url import SentinelURL

#: How often each client asks the sentinels whether the master still is the one that it is connected to.
WATCH_INTERVAL_S = 2.0
#: Of each sentinel: one that does not answer must not cost a search its time. `sentinel_socket_timeout` sets it.
TIMEOUT_S = 0.5
_TIMEOUTS = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}


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


class _Sentinels(Selection, blocking.Sentinel):
    """The sentinels of one pool."""

    def __init__(self, sentinels: list[Address], **options: Any) -> None:
        blocking.Sentinel.__init__(self, sentinels, **options)  # type: ignore[no-untyped-call]
        Selection.__init__(self)
        self._watcher: threading.Thread | None = None
        self._closed = threading.Event()

    def discover_master(self, service_name: str) -> Address:
        """The address of the master.

        Raises:
            MasterNotFoundError: no sentinel names one, for now.
        """
        reasons = []
        for sentinel in self.sentinels:
            found = self.master(self._ask(sentinel, service_name))
            if not isinstance(found, str):
                return found
            reasons.append((sentinel, found))
        raise blocking.MasterNotFoundError(no_master(service_name, reasons))

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
        self._disconnect()  # from those that it has connected to after they were closed

    def follow(self, pool: Any) -> None:
        """Ask all sentinels, and end the connections to another server than the master."""
        self.sentinels = self.in_order([(each, self._ask(each, pool.service_name)) for each in self.sentinels])
        try:
            master = pool.get_master_address()
        except (RedisError, OSError):
            return  # the connections that there are go on
        for connection in self.connections:
            connection.leave_unless(master)

    def close_all(self) -> None:
        """End the watcher and the connections to the sentinels."""
        self._closed.set()
        with self._lock:
            watcher = self._watcher
        if watcher is not None and watcher.is_alive():
            watcher.join(2 * TIMEOUT_S)
        self._disconnect()

    def _disconnect(self) -> None:
        for sentinel in self.sentinels:
            sentinel.close()

    def _ask(self, sentinel: Any, service: str) -> State | str:
        try:
            return of_service(service, sentinel.sentinel_masters())
        except (RedisError, OSError) as error:
            return reason_of(error)


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
                # Not the method of an SSLSocket, after which its user would send without TLS for a moment.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)


class _Connection(_Follows, blocking.SentinelManagedConnection):
    pass


class _TLSConnection(_Follows, blocking.SentinelManagedSSLConnection):
    pass


class _AsyncSentinels(Selection, awaiting.Sentinel):
    """The sentinels of one pool."""

    def __init__(self, sentinels: list[Address], **options: Any) -> None:
        awaiting.Sentinel.__init__(self, sentinels, **options)  # type: ignore[no-untyped-call]
        Selection.__init__(self)
        self._watcher: asyncio.Task[None] | None = None

    async def discover_master(self, service_name: str) -> Address:
        """The address of the master.

        Raises:
            MasterNotFoundError: no sentinel names one, for now.
        """
        reasons = []
        for sentinel in self.sentinels:
            found = self.master(await self._ask(sentinel, service_name))
            if not isinstance(found, str):
                return found
            reasons.append((sentinel, found))
        raise awaiting.MasterNotFoundError(no_master(service_name, reasons))

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
        states = [(each, await self._ask(each, pool.service_name)) for each in self.sentinels]
        self.sentinels = self.in_order(states)
        try:
            master = await pool.get_master_address()
        except (RedisError, OSError):
            return  # the connections that there are go on
        for connection in self.connections:
            connection.leave_unless(master)

    async def close_all(self) -> None:
        """End the watcher and the connections to the sentinels."""
        if self._watcher is not None:
            await cancel_all([self._watcher])  # first: while it runs, it connects again
        for sentinel in self.sentinels:
            await sentinel.aclose()

    async def _ask(self, sentinel: Any, service: str) -> State | str:
        try:
            return of_service(service, await sentinel.sentinel_masters())
        except (RedisError, OSError) as error:
            return reason_of(error)


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
    host: str
    port: int

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.connection_pool.sentinel_manager.add(self)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        await self.connect()  # redis-py would connect to where it was connected before
        return await super().send_packed_command(command, check_health)  # type: ignore[misc]

    async def connect(self) -> Any:
        self.connection_pool.sentinel_manager.watch(self.connection_pool)
        return await super().connect()  # type: ignore[misc]

    def leave_unless(self, master: Address) -> None:
        """End it unless it is connected to the master: its user has an error.

        After redis-py's `disconnect`, the user's next command would connect it again in silence, without what a WATCH
        watched; and with TLS the user of a frozen master would have to wait for its reply to that.
        """
        writer: asyncio.StreamWriter | None = getattr(self, "_writer", None)
        if writer is not None and (self.host, self.port) != master:
            writer.transport.abort()


class _AsyncConnection(_AsyncFollows, awaiting.SentinelManagedConnection):
    pass


class _AsyncTLSConnection(_AsyncFollows, awaiting.SentinelManagedSSLConnection):
    pass
