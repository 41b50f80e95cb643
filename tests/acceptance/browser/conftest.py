"""Fixtures: people who look at the console of the stack in Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from keepsake_client import Client
from playwright.sync_api import Browser, sync_playwright

from tests.acceptance.browser.person import CHROMIUM_OPTIONS, Person, signed_in
from tests.acceptance.conftest import Stack


# Not for the session: until it ends, Playwright's event loop runs in this thread, where other tests run their own.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: .ci/install-chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def people(browser: Browser, stack: Stack) -> Iterator[dict[str, Person]]:
    """Those who look at the console, by the role of their key, each signed in, with a browser profile of their own."""
    with ExitStack() as opened:
        yield {
            role: opened.enter_context(signed_in(browser, stack.gateway_url, key)) for role, key in stack.keys.items()
        }


@pytest.fixture
def person(people: dict[str, Person]) -> Person:
    """Someone who may do everything."""
    return people["full"]


@pytest.fixture(scope="package")
def memory(stack: Stack) -> Iterator[Client]:
    """A client of the memory, for what has to be there before someone looks at it."""
    with Client(stack.redis_url, search_timeout_ms=30_000, write_timeout_ms=30_000) as client:
        yield client
