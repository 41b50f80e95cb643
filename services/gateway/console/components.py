"""What the console's pages are made of: links, contents of people, times, states of a list, and what needs a moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from keepsake_client.errors import KeepsakeError, RequestTimeout, Unavailable
from keepsake_client.protocol import clean
from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement
from redis.exceptions import RedisError

from services.gateway.access import Unauthorized
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer
from services.runtime.controls import escape_controls

#: Characters of a content that are shown at first, and at most.
SHORT_CHARS: Final = 400
MAX_CHARS: Final = 40_000

T = TypeVar("T")


def link(label: str, url: str) -> ui.element:
    """A link."""
    element = ui.element("a")
    element.props["href"] = url
    with element:
        span(label)
    return element


def name_link(words: str, url: str) -> ui.element:
    """A link whose label is an id or a name that a person has given, as `name` shows it."""
    element = link(words, url).classes("name").props('dir="auto"')
    element.props["title"] = escape_controls(words)
    return element


def span(text: str, classes: str = "") -> ui.label:
    """A piece of text, which is never read as HTML; of what turns it around, as in an id, its escape is shown."""
    return ui.label(escape_controls(text)).classes(f"inline {classes}")


def cell(text: str, classes: str = "") -> ui.element:
    """A cell of a table, with a piece of text in it."""
    return TextElement(tag="td", text=escape_controls(text)).classes(classes)


def heading(text: str, level: int = 2) -> ui.element:
    """A heading."""
    with ui.element(f"h{level}") as element:
        span(text)
    return element


def panel(title: str) -> ui.element:
    """A section with a heading, to be filled in its block."""
    section = ui.element("section").classes("panel")
    with section:
        heading(title)
    return section


def content(viewer: Viewer, text: Texts, words: str | None) -> None:
    """What a person or a model said: as text, apart from what is around it, long ones cut; hidden where it has to be.

    Args:
        words: None where they were not kept.
    """
    if words is None:
        span(text("contents_not_kept"), "quiet")
        return
    if not viewer.sees_contents:
        span(text("contents_hidden", chars=len(words)), "quiet")
        return
    words = str(clean(words))
    shown = ui.label(words[:SHORT_CHARS] + ("…" if len(words) > SHORT_CHARS else "")).classes("content")
    shown.props('dir="auto"')
    if len(words) > SHORT_CHARS:

        def show_all() -> None:
            shown.set_text(words[:MAX_CHARS])
            more.delete()
            if len(words) > MAX_CHARS:
                span(text("cut", chars=len(words) - MAX_CHARS), "quiet")

        more = button(text("show_all", chars=len(words)), show_all)


def button(label: str, on_click: Callable[[], Any], *, danger: bool = False) -> ui.button:
    """A button, quiet but for what cannot be undone."""
    shown = ui.button(label, on_click=one_at_a_time(on_click), color="negative" if danger else None)
    return shown.props("no-caps dense unelevated" if danger else "no-caps dense outline")


def action(label: str, on_click: Callable[[], Any]) -> ui.element:
    """A button that looks like a link: of a row, which has several."""
    shown = TextElement(tag="button", text=label).props('type="button"').classes("plain")
    return shown.on("click", one_at_a_time(on_click))


def one_at_a_time(work: Callable[[], Any]) -> Callable[[], Any]:
    """The handler of an event that does nothing while it works on an earlier one: the first click of a double click."""
    is_working = False

    def handle() -> Any:
        nonlocal is_working
        if is_working:
            return None
        result = work()
        if not asyncio.iscoroutine(result):
            return result
        is_working = True
        return end(result)

    async def end(working: Awaitable[Any]) -> None:
        nonlocal is_working
        try:
            await working
        finally:
            is_working = False

    return handle


def name(text: str) -> ui.element:
    """An id or a name that a person has given, apart from the direction of what is around it; its own is not turned."""
    shown = span(text, "name").props('dir="auto"')
    shown.props["title"] = escape_controls(text)
    return shown


def moment(viewer: Viewer, text: Texts, seconds: float | None, *, relative: bool = False) -> None:
    """A time in the viewer's zone, with the exact one on hover.

    Args:
        seconds: since 1970; None shows nothing.
        relative: as an age.
    """
    if seconds is None:
        return
    if (shown := clock(viewer, seconds)) is None:
        span(str(seconds))
        return
    with ui.element("time") as element:
        element.props["datetime"] = element.props["title"] = shown.exact
        span(age(text, time.time() - seconds) if relative else shown.short)


class Clock(NamedTuple):
    """A time in a viewer's zone: of today without the date, and the exact one."""

    short: str
    exact: str


def clock(viewer: Viewer, seconds: float) -> Clock | None:
    """A time in the viewer's zone; None where it is beyond the calendar, of another program."""
    try:
        when = datetime.fromtimestamp(seconds, viewer.zone)
    except (ValueError, OverflowError, OSError):
        return None
    is_today = when.date() == datetime.now(viewer.zone).date()
    return Clock(f"{when:%H:%M:%S}" if is_today else f"{when:%Y-%m-%d %H:%M}", when.isoformat(" ", "milliseconds"))


def age(text: Texts, seconds: float) -> str:
    """A time span, roughly."""
    if seconds < 1:
        return text("now")
    for name, unit, below in (("ago_s", 1, 120), ("ago_min", 60, 7_200), ("ago_h", 3_600, 172_800)):
        if seconds < below:
            return text(name, n=int(seconds / unit))
    return text("ago_d", n=int(seconds / 86_400))


def duration(text: Texts, ms: float) -> str:
    """A time span, exactly enough to compare."""
    if ms < 10_000:
        return text("ms", n=f"{ms:,.0f}" if ms >= 10 else f"{ms:.1f}")
    return text("seconds", n=f"{ms / 1000:,.1f}")


def empty(words: str, command: str | None = None) -> None:
    """The state of a list without anything, and the command that makes something happen."""
    with ui.element("p").classes("state empty"):
        span(words)
        if command:
            with ui.element("code"):
                span(command)


def failure(text: Texts, error: BaseException) -> None:
    """The state of what could not be shown or done: in words, with what helps."""
    with ui.element("p").classes("state failure").props('role="alert"'):
        span(reason_of(text, error))


def reason_of(text: Texts, error: BaseException) -> str:
    """Why something did not work, in words."""
    if isinstance(error, RequestTimeout):
        return text("error_timeout")
    if isinstance(error, Unavailable | RedisError | OSError):
        return text("error_unavailable")
    if isinstance(error, Unauthorized):
        return text("error_unauthorized")
    if isinstance(error, KeepsakeError):
        code = f"error_{error.code}"
        return text(code) if text.has(code) else text("error", reason=str(error))
    return text("error_internal")


async def attempted(text: Texts, work: Awaitable[T]) -> T | None:
    """The result of what the viewer has asked for; None where it did not work, which is said.

    Args:
        work: it returns something.
    """
    try:
        return await work
    except (KeepsakeError, RedisError, OSError) as error:
        _notify_of(text, error)
        return None
    except Exception as error:
        _notify_of(text, error)
        raise  # a fault, which `door.add_console` has logged and counted


def _notify_of(text: Texts, error: BaseException) -> None:
    ui.notify(reason_of(text, error), type="negative", position="bottom", close_button=True, timeout=10_000)


def loaded(text: Texts, load: Callable[[], Awaitable[T]], show: Callable[[T], Any]) -> ui.element:
    """What needs a moment: says that it is loading, then shows it, or why it cannot be.

    Returns:
        Its place; what is in it is replaced.
    """
    place = ui.element("div").classes("loaded")

    async def fill() -> None:
        try:
            found = await load()
            if place.is_deleted:  # the page was closed meanwhile
                return
            with place:
                place.clear()
                shown = show(found)
                if asyncio.iscoroutine(shown):
                    await shown
        except Exception as error:
            if place.is_deleted:
                return
            with place:
                place.clear()
                failure(text, error)
                button(text("retry"), fill)
            if not isinstance(error, KeepsakeError | RedisError | OSError):
                raise  # a fault, which `door.add_console` has logged and counted

    with place:
        span(text("loading"), "state quiet").props('role="status"')
        ui.timer(0, fill, once=True)
    return place


def head(text: Texts, columns: Sequence[str], numbers: Sequence[str] = ()) -> None:
    """The head of a table.

    Args:
        columns, numbers: the names of their texts; figures are aligned to the right.
    """
    with ui.element("thead"), ui.element("tr"):
        for name in (*columns, *numbers):
            with ui.element("th").props('scope="col"').classes("number" if name in numbers else ""):
                span(text(name))


async def paced(rows: Iterable[T]) -> AsyncIterator[T]:
    """The rows of a long list one by one, between which the gateway serves others: a row takes it a millisecond or two.

    For an asynchronous `show` of `loaded`.
    """
    for row in rows:
        yield row
        await asyncio.sleep(0)


async def confirmed(text: Texts, question: str, lines: Sequence[str], action: str) -> bool:
    """Whether the viewer confirms what cannot be undone.

    Args:
        lines: what it does, each on a line of its own.
        action: the label of the button that does it.
    """
    with ui.dialog() as dialog, ui.card().classes("dialog"):
        heading(question)
        for line in lines:
            with ui.element("p"):
                span(line)
        with ui.element("div").classes("actions"):
            button(text("cancel"), lambda: dialog.submit(False))
            button(action, lambda: dialog.submit(True), danger=True)
    answer = await dialog
    dialog.delete()
    return bool(answer)


def bar(stages: Sequence[tuple[str, float]], longest_ms: float) -> None:
    """Times by stage as a bar, which says them in words, too.

    Args:
        stages: names and milliseconds, in order.
        longest_ms: the length of a whole bar.
    """
    words = ", ".join(f"{name} {ms:.1f} ms" for name, ms in stages)
    with ui.element("div").classes("bar").props('role="img"') as element:
        element.props["aria-label"] = element.props["title"] = words
        for place, (_, ms) in enumerate(stages):
            share = min(100.0, 100.0 * ms / longest_ms) if longest_ms > 0 else 0.0
            ui.element("div").classes(f"stage stage-{place}").style(f"width: {share:.2f}%")
