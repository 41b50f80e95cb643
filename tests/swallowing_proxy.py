"""A TCP proxy on loopback that can swallow traffic, as a firewall that drops packets: connections become half-open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self


class SwallowingProxy:
    """Forwards to a port of 127.0.0.1 or a Unix socket; `swallow` and `forward` change what it does.

    Args:
        target: the port, or the path of the socket.
    """

    def __init__(self, target: int | str) -> None:
        self._target = target
        self._swallowing = False
        self._half_open: set[asyncio.Task[None]] = set()
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def swallow(self) -> None:
        """Forward nothing more, neither of the connections that exist nor of new ones; close none."""
        self._swallowing = True
        self._half_open |= self._connections

    def forward(self) -> None:
        """Forward new connections again. Those of before stay half-open."""
        self._swallowing = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        if self._swallowing:
            self._half_open.add(connection)
        to_server: asyncio.StreamWriter | None = None
        try:
            if isinstance(self._target, str):
                from_server, to_server = await asyncio.open_unix_connection(self._target)
            else:
                from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(connection, reader, to_server))
                pumps.create_task(self._pump(connection, from_server, writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(connection)
            for end in (writer, to_server):
                if end is not None:
                    end.close()

    async def _pump(
        self, connection: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65_536):
            if connection not in self._half_open:
                writer.write(data)
                await writer.drain()
        raise ConnectionResetError("one side closed")


class ThreadedProxy:
    """A `SwallowingProxy` in a thread of its own, for tests without an event loop."""

    def __init__(self, proxy: SwallowingProxy, loop: asyncio.AbstractEventLoop) -> None:
        self._proxy = proxy
        self._loop = loop
        self.port = proxy.port
        self.url = f"redis://127.0.0.1:{proxy.port}/0"

    def cut(self) -> None:
        """Make the connections that exist half-open; new ones work."""

        def swallow_and_forward() -> None:
            self._proxy.swallow()
            self._proxy.forward()

        self._call(swallow_and_forward)

    def swallow(self) -> None:
        """`SwallowingProxy.swallow`."""
        self._call(self._proxy.swallow)

    def forward(self) -> None:
        """`SwallowingProxy.forward`."""
        self._call(self._proxy.forward)

    def _call(self, function: Callable[[], None]) -> None:
        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)


@contextmanager
def threaded_proxy(target: int | str) -> Iterator[ThreadedProxy]:
    """A proxy to a port of 127.0.0.1 or a Unix socket, in a thread that ends with the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    proxy = SwallowingProxy(target)
    asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result(10)
    try:
        yield ThreadedProxy(proxy, loop)
    finally:
        asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
