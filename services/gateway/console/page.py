"""ConsolePages: registers the console's pages with NiceGUI, each in the frame that all share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlencode

import structlog
from keepsake_client.errors import KeepsakeError
from nicegui import ui
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.access import Right
from services.gateway.app import Gateway
from services.gateway.console.components import empty, failure, link
from services.gateway.console.document import document_of
from services.gateway.console.feed import LiveFeed
from services.gateway.console.guard import ROOT
from services.gateway.console.sessions import SessionCallers
from services.gateway.console.static_files import file_url
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import HIDDEN, THEMES, Viewer

#: The pages of the navigation, in its order, by name and path.
NAVIGATION: Final = {
    "live": f"{ROOT}/",
    "turn": f"{ROOT}/turn",
    "people": f"{ROOT}/people",
    "ask": f"{ROOT}/ask",
    "queues": f"{ROOT}/queues",
    "settings": f"{ROOT}/settings",
}
_DARK: Final = {"auto": None, "light": False, "dark": True}

#: Builds a page's content for a viewer, from the parameters of its query.
Build = Callable[[Viewer, Texts, dict[str, str]], Awaitable[None]]

log = structlog.get_logger()


class ConsolePages:
    """The pages of the console.

    Args:
        gateway: whose memory, Redis and settings they show.
        callers: finds who looks.

    Attributes:
        feed: what passes, read once for all pages.
    """

    def __init__(self, gateway: Gateway, callers: SessionCallers) -> None:
        self.gateway = gateway
        self.feed = LiveFeed(gateway)
        self._callers = callers

    def add(self, name: str, path: str, build: Build, *rights: Right) -> None:
        """Register a page.

        Args:
            name: of its texts, and in the navigation.
            path: below the console's root.
            build: builds its content, in NiceGUI's slot for it. What takes longer than a look at Redis it leaves to
                `components.loaded`, so that the page itself comes at once.
            rights: those that a key needs, each of them.
        """

        async def show(request: Request) -> Response:
            viewer = Viewer.of(request, self._callers, self.gateway.settings.timezone)
            text = viewer.texts(name)
            with _frame(viewer, name, text):
                if missing := [right for right in rights if not viewer.may(right)]:
                    empty(text("no_right", right=missing[0]))
                else:
                    await self._build(name, build(viewer, text, dict(request.query_params)), text)
            return document_of(request, ui.context.client, viewer.language)

        ui.page(path)(show)

    async def _build(self, name: str, building: Awaitable[None], text: Texts) -> None:
        try:
            await building
        except (KeepsakeError, RedisError, OSError) as error:
            failure(text, error)
        except Exception as error:
            log.exception("console_failed", page=name)
            self.gateway.counts.count("gateway_failed")
            failure(text, error)

    def report(self, error: Exception) -> None:
        """Log and count a fault of the console: what is no domain error."""
        log.error("console_failed", exc_info=error)
        self.gateway.counts.count("gateway_failed")


@contextmanager
def _frame(viewer: Viewer, name: str, text: Texts) -> Iterator[None]:
    """The frame of a page: navigation, preferences, and the place of its content, within the block."""
    styles = "".join(f'<link rel="stylesheet" href="{file_url(file)}">' for file in ("console.css", f"{name}.css"))
    ui.add_head_html(f'{styles}<script src="{file_url("console.js")}" defer></script>')
    ui.dark_mode(_DARK[viewer.theme])
    ui.page_title(f"{text('title')} · Keepsake")
    link(text("skip"), "#main").classes("skip")
    with ui.element("div").classes("top"):
        link("Keepsake", f"{ROOT}/").classes("brand")
        with _labelled("nav", text("pages")):
            for page, path in NAVIGATION.items():
                item = link(text(page), path)
                if page == name:
                    item.props('aria-current="page"')
        _preferences(viewer, text)
    # Quasar draws the page as `main`, in which no other one may be.
    with ui.element("div").props('id="main" tabindex="-1"').classes(f"page page-{name} theme-{viewer.theme}"):
        yield


def _preferences(viewer: Viewer, text: Texts) -> None:
    def prefer(label: str, **values: str) -> ui.element:
        return _form_button(label, f"{ROOT}/preferences?{urlencode({**values, 'back': viewer.url})}")

    with _labelled("div", text("preferences")).props('role="group"').classes("preferences"):
        if viewer.may(Right.READ):
            shown = not viewer.hides
            prefer(text("hide_contents" if shown else "show_contents"), contents=HIDDEN if shown else "shown")
        following = THEMES[(THEMES.index(viewer.theme) + 1) % len(THEMES)]
        prefer(text(f"theme_{viewer.theme}"), theme=following)
        other = "zh" if viewer.language == "en" else "en"
        prefer(text("other_language"), language=other).props(f'lang="{other}"')
        if viewer.caller_name != "open":
            ui.label(text("signed_in", key=viewer.caller_name)).classes("quiet")
            _form_button(text("sign_out"), f"{ROOT}/sign-out")


def _form_button(label: str, url: str) -> ui.element:
    """A button that sends a form without fields."""
    with ui.element("form").props('method="post"') as form:
        form.props["action"] = url
        with ui.element("button").props('type="submit"').classes("plain") as button:
            ui.label(label)
    return button


def _labelled(tag: str, label: str) -> ui.element:
    element = ui.element(tag)
    element.props["aria-label"] = label
    return element
