"""Removal from open pages of what is erased elsewhere, as memories are deleted or a user is forgotten."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from keepsake_client.errors import KeepsakeError
from nicegui import ui
from redis.exceptions import RedisError

from services.gateway.console.components import loaded
from services.gateway.console.feed import LiveFeed
from services.gateway.console.passed import ERASING, Passed
from services.gateway.console.texts import Texts

#: By how much the clocks of the gateway and of Redis may differ.
SKEW_S: Final = 60.0

T = TypeVar("T")


def when_erased(feed: LiveFeed, check: Callable[[], Awaitable[None]]) -> ui.element:
    """Call `check` whenever something may have been erased while this page is open: about a second after, or ten.

    Returns:
        The place in which it is called, for what the page shows.
    """
    place = ui.element("div")
    loads, since = feed.loads, time.time() - SKEW_S

    def changed(rows: list[Passed]) -> None:
        nonlocal loads, since
        if loads == feed.loads:
            return
        loads = feed.loads
        if erased_at := [row.at for row in rows if row.type in ERASING and row.at > since]:
            since = max(erased_at)
            with place:
                ui.timer(0, check, once=True)

    # With the browser's connection: without one, the page is deleted without a word.
    with ui.element("div"):
        ui.timer(0, lambda: ui.context.client.on_delete(feed.watch(changed)), once=True)
    return place


def loaded_until_erased(
    feed: LiveFeed, text: Texts, load: Callable[[], Awaitable[T]], show: Callable[[T], Any]
) -> None:
    """`loaded`, and loaded again where it is another by the time that something was erased."""
    known: list[T] = []

    async def keep() -> T:
        known[:] = [await load()]
        return known[0]

    async def check() -> None:
        try:
            is_same = known == [await load()]
        except (KeepsakeError, RedisError, OSError):
            is_same = False  # why, it says below
        if not is_same:
            fill()

    def fill() -> None:
        place.clear()
        with place:
            loaded(text, keep, show)

    place = when_erased(feed, check)
    fill()
