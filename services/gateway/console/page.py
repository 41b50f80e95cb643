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

from services.gateway.access import Right
from services.gateway.app import Gateway
from services.gateway.console.components import failure, link
from services.gateway.console.guard import ROOT
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import HIDDEN, THEMES, Viewer

#: The pages of the navigation, in its order, by name and path.
NAVIGATION: Final = {
    "live": f"{ROOT}/",
    "people": f"{ROOT}/people",
    "ask": f"{ROOT}/ask",
    "queues": f"{ROOT}/queues",
    "settings": f"{ROOT}/settings",
}
_DARK: Final = {"auto": None, "light": False, "dark": True}
_HEAD: Final = (
    f'<link rel="stylesheet" href="{ROOT}/static/console.css"><script src="{ROOT}/static/console.js" defer></script>'
)

#: Builds a page's content for a viewer, from the parameters of its query.
Build = Callable[[Viewer, Texts, dict[str, str]], Awaitable[None]]

log = structlog.get_logger()


class ConsolePages:
    """The pages of the console.

    Args:
        gateway: whose memory, Redis and settings they show.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def add(self, name: str, path: str, build: Build, *rights: Right) -> None:
        """Register a page.

        Args:
            name: of its texts, and in the navigation.
            path: below the console's root.
            build: builds its content, in NiceGUI's slot for it. What takes longer than a look at Redis it leaves to
                `components.loaded`, so that the page itself comes at once.
            rights: those that a key needs, each of them.
        """

        async def show(request: Request) -> None:
            viewer = Viewer.of(request, self.gateway.authenticator, self.gateway.settings.timezone)
            text = viewer.texts(name)
            with _frame(viewer, name, text):
                try:
                    caller = request.state.caller
                    for right in rights:
                        caller.check(right)
                    await build(viewer, text, dict(request.query_params))
                except (KeepsakeError, RedisError, OSError) as error:
                    failure(text, error)
                except Exception as error:
                    log.exception("console_failed", page=name)
                    self.gateway.counts.count("gateway_failed")
                    failure(text, error)

        ui.page(path)(show)

    def report(self, error: Exception) -> None:
        """Log and count a fault of the console: what is no domain error."""
        log.error("console_failed", exc_info=error)
        self.gateway.counts.count("gateway_failed")


@contextmanager
def _frame(viewer: Viewer, name: str, text: Texts) -> Iterator[None]:
    """The frame of a page: navigation, preferences, and the place of its content, within the block."""
    ui.add_head_html(f'{_HEAD}<link rel="stylesheet" href="{ROOT}/static/{name}.css">')
    ui.dark_mode(_DARK[viewer.theme])
    ui.page_title(f"{text('title')} · Keepsake")
    link(text("skip"), "#main").classes("skip")
    with ui.element("header").classes("top"):
        link("Keepsake", f"{ROOT}/").classes("brand")
        with _labelled("nav", text("pages")):
            for page, path in NAVIGATION.items():
                item = link(text(page), path)
                if page == name:
                    item.props('aria-current="page"')
        _preferences(viewer, text)
    with ui.element("main").props('id="main" tabindex="-1"').classes(f"page page-{name}"):
        ui.element("span").props(f'hidden id="console" data-language="{viewer.language}" data-zone="{viewer.zone}"')
        yield


def _preferences(viewer: Viewer, text: Texts) -> None:
    def set_to(**values: str) -> str:
        return f"{ROOT}/preferences?{urlencode({**values, 'back': viewer.url})}"

    with _labelled("div", text("preferences")).props('role="group"').classes("preferences"):
        if viewer.may(Right.READ):
            is_shown = not viewer.hides
            label = text("hide_contents" if is_shown else "show_contents")
            link(label, set_to(contents=HIDDEN if is_shown else "shown"))
        following = THEMES[(THEMES.index(viewer.theme) + 1) % len(THEMES)]
        link(text(f"theme_{viewer.theme}"), set_to(theme=following))
        other = "zh" if viewer.language == "en" else "en"
        link(text("other_language"), set_to(language=other)).props(f'lang="{other}"')
        if viewer.caller_name != "open":
            with ui.element("form").props(f'method="post" action="{ROOT}/sign-out"'):
                ui.label(text("signed_in", key=viewer.caller_name)).classes("quiet")
                with ui.element("button").props('type="submit"').classes("plain"):
                    ui.label(text("sign_out"))


def _labelled(tag: str, label: str) -> ui.element:
    element = ui.element(tag)
    element.props["aria-label"] = label
    return element
