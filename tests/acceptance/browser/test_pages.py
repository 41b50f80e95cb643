"""Every page of the console in Chromium, in both languages, themes and widths: what holds for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser

from tests.acceptance.browser.person import AXE, NARROW, WIDE, Person, Theme, signed_in
from tests.acceptance.conftest import Stack

PAGES = ["/", "/people", "/ask", "/queues", "/settings", "/turn"]
#: Each language with a theme: what one does to a page does not depend on the other.
READERS: dict[str, tuple[str, Theme]] = {"en": ("en-GB", "light"), "zh": ("zh-CN", "dark")}


@dataclass
class Seen:
    """What was seen of a page.

    Args:
        language: that the page says it is in.
        faults: that the browser has reported.
        violations: the serious accessibility faults.
        overflow: the elements that make the page wider than a telephone.
    """

    language: str
    faults: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    overflow: list[str] = field(default_factory=list)


@pytest.fixture(scope="module", params=READERS)
def reader(request: pytest.FixtureRequest, browser: Browser, stack: Stack) -> Iterator[tuple[str, Person]]:
    """The language of someone's browser, and who it is."""
    locale, theme = READERS[request.param]
    with signed_in(browser, stack.gateway_url, stack.keys["full"], locale, theme) as person:
        yield request.param, person


@pytest.fixture(scope="module", params=PAGES)
def seen(request: pytest.FixtureRequest, reader: tuple[str, Person]) -> tuple[str, Seen]:
    """The language of the browser, and what is seen of a page in it."""
    language, person = reader
    person.faults.clear()
    page = person.go(request.param)
    found = Seen(page.evaluate("document.documentElement.lang"))
    page.set_viewport_size(NARROW)
    found.overflow = person.overflow()
    page.set_viewport_size(WIDE)
    if AXE.exists():
        found.violations = person.violations()
    found.faults = list(person.faults)
    return language, found


def test_a_page_is_in_the_language_of_the_browser(seen: tuple[str, Seen]) -> None:
    """Given a browser in English or Chinese, I expect the page to say that it is in that language."""
    language, found = seen

    assert found.language == language


def test_the_browser_has_nothing_to_report(seen: tuple[str, Seen]) -> None:
    """Given a page, I expect no error in the browser's console, and no request to another host."""
    assert seen[1].faults == []


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: .ci/install-chromium")
def test_axe_finds_no_serious_accessibility_fault(seen: tuple[str, Seen]) -> None:
    """Given a page, I expect no serious or critical violation of axe-core's rules."""
    assert seen[1].violations == []


def test_a_telephone_needs_no_scrolling_sideways(seen: tuple[str, Seen]) -> None:
    """Given a page at 390 pixels, I expect nothing to be wider."""
    assert seen[1].overflow == []
