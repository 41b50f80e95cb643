"""A TCP proxy on loopback that delays what it carries, as a network with a round-trip time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class DelayingProxy:
    """Forwards to a port of 127.0.0.1, each way half a round trip later.

    The handshake of a connection costs a round trip on a network and none on loopback, so the first bytes that a client
    sends are delayed by one more.

    Args:
        target: the port that it forwards to.
        round_trip_s: the round-trip time.
    """

    def __init__(self, target: int, round_trip_s: float) -> None:
        self._target = target
        self._round_trip_s = round_trip_s

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side closes it."""
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        connected_at = asyncio.get_running_loop().time() + self._round_trip_s
        pumps = [
            asyncio.create_task(self._pump(reader, to_server, connected_at)),
            asyncio.create_task(self._pump(from_server, writer, 0.0)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # asyncio's streams would log it
        finally:
            for pump in pumps:
                pump.cancel()
            writer.close()
            to_server.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, not_before: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await reader.read(65_536):
                # Timers of equal times fire in their order, so the bytes stay in theirs.
                loop.call_at(max(loop.time(), not_before) + self._round_trip_s / 2, writer.write, data)
        except OSError:
            return


@contextmanager
def delaying_proxy(target: int, round_trip_s: float) -> Iterator[str]:
    """The URL of a proxy to the Redis on a port of 127.0.0.1, which runs in a thread of its own."""
    proxy = DelayingProxy(target, round_trip_s)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="delaying-proxy", daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(proxy.serve, "127.0.0.1", 0), loop).result(10)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:

        async def close() -> None:
            server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
