"""Person: who looks at the console in a browser, and does what a person does there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode, urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request, ViewportSize

from tests.support import PATIENCE_S

#: Without a sandbox, which root has none of in a container, and without what Chromium does on its own.
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
WIDE, NARROW = ViewportSize(width=1280, height=900), ViewportSize(width=390, height=844)
#: Of the browser's system, which the console follows.
Theme = Literal["light", "dark"]
AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"
SERIOUS = ("serious", "critical")
#: The violations of axe-core with these impacts, each with the elements that have it.
_VIOLATIONS = """impacts => axe.run(document, {preload: false, resultTypes: ['violations']}).then(
    found => found.violations.filter(one => impacts.includes(one.impact)).map(
        one => `${one.id}: ${one.nodes.map(node => node.html.slice(0, 200)).join(' | ')}`))"""
#: What reaches beyond the right edge of the window, if the page can be scrolled sideways.
_OVERFLOW = """() => document.documentElement.scrollWidth <= window.innerWidth ? [] :
    [...document.querySelectorAll('body *')]
        .filter(one => one.getBoundingClientRect().right > window.innerWidth + 1 && !one.closest('.scroll'))
        .map(one => one.outerHTML.slice(0, 200))"""

#: Words that would run, or become elements, where they are taken for HTML or for a template, and turn the text around.
HOSTILE = (
    "<script>window.pwned = 'script'</script><img src=x onerror=\"window.pwned = 'image'\">"
    "<svg onload=\"window.pwned = 'svg'\"></svg><a href=\"javascript:window.pwned = 'link'\">click</a>{{ 7 * 6 }}"
    "\u202edesrever\u202c 👩‍👩‍👧‍👦 "
)
_INJECTED = """() => [
    ...('pwned' in window ? [`it ran: ${window.pwned}`] : []),
    ...[...document.querySelectorAll('img[src=x], svg[onload], a[href^="javascript:"], [onerror], [onload]')]
        .map(one => one.outerHTML),
    ...[...document.scripts].filter(one => one.text.startsWith('window.pwned')).map(one => one.outerHTML),
]"""


@dataclass
class Person:
    """Who looks at the console: a page of a browser profile.

    Args:
        url: of the gateway.
        faults: what the browser has reported as wrong, and the requests to other hosts.
    """

    page: Page
    url: str
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_S * 1000)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))
        self.page.on("requestfailed", self._on_failure)
        self.page.on("request", self._on_request)
        self.page.on("dialog", self._on_dialog)

    def go(self, path: str) -> Page:
        """Open a page of the console, and wait until nothing in it is loading."""
        self.page.goto(f"{self.url}/console{path}")
        self.wait_until_loaded()
        return self.page

    def of(self, user_id: str) -> Page:
        """Open the page of a user."""
        return self.go(self.path_of(user_id))

    @staticmethod
    def path_of(user_id: str) -> str:
        """The path of the page of a user."""
        return f"/people?{urlencode({'user': user_id})}"

    def wait_until_loaded(self) -> None:
        """Wait until the page's scripts run, and nothing of it says that it is loading."""
        # Before that, the page is there as plain HTML, whose buttons do nothing.
        self.page.wait_for_function("window.did_handshake && !document.querySelector('.loaded > .state[role=status]')")

    def violations(self) -> list[str]:
        """The serious accessibility faults that axe-core finds in the page."""
        self.page.evaluate(AXE.read_text())
        found: list[str] = self.page.evaluate(_VIOLATIONS, SERIOUS)
        return found

    def injected(self) -> list[str]:
        """What has run or become an element of what people said, see `HOSTILE`."""
        found: list[str] = self.page.evaluate(_INJECTED)
        return found

    def overflow(self) -> list[str]:
        """The elements that make the page wider than the window."""
        found: list[str] = self.page.evaluate(_OVERFLOW)
        return found

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.faults.append(f"console: {message.text}")

    def _on_failure(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left
            self.faults.append(f"failed: {request.url} {request.failure}")

    def _on_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(self.url).netloc:
            self.faults.append(f"another host: {request.url}")

    def _on_dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()


@contextmanager
def signed_in(browser: Browser, url: str, key: str, locale: str = "en-GB", theme: Theme = "light") -> Iterator[Person]:
    """Someone who has signed in with a key, in a browser profile of their own."""
    with browser.new_context(viewport=WIDE, locale=locale, timezone_id="Asia/Shanghai", color_scheme=theme) as context:
        page = context.new_page()
        person = Person(page, url)
        page.goto(url)
        page.locator("input[type=password]").fill(key)
        page.get_by_role("button").click()
        person.wait_until_loaded()
        yield person
