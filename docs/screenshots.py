"""Takes the pictures of docs/console.md in Chromium: `.venv/bin/python -m docs.screenshots`.

Starts a stack of its own and plays the demo, of whose conversation they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, sync_playwright

from bench.harness.stack import running_stack
from tests.acceptance.browser.person import CHROMIUM_OPTIONS

IMAGES = Path(__file__).parent / "images"
SIZE = ViewportSize(width=1280, height=860)
#: A question of the demo, of whose turn and user the pictures are.
QUESTION = "Where does my sister Anna live?"


def main() -> None:
    """Take them."""
    IMAGES.mkdir(exist_ok=True)
    with running_stack(without=()) as stack, sync_playwright() as playwright:
        ltm = str(Path(sys.executable).parent / "ltm")
        subprocess.run([ltm, "demo"], env={**os.environ, "REDIS_URL": stack.redis_url}, check=True)  # noqa: S603
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_OPTIONS)
        pictures(browser.new_page(viewport=SIZE, color_scheme="light", locale="en-GB"), stack.ltm_up.gateway_url)
        browser.close()


def pictures(page: Page, url: str) -> None:
    """Take the pictures of a gateway's console."""
    page.goto(f"{url}/console/")
    page.get_by_role("row").filter(has_text=QUESTION).first.wait_for()
    take(page, "live")
    page.get_by_role("link", name=QUESTION).first.click()
    page.get_by_text("Here is what I remember").first.wait_for()
    take(page, "turn")
    page.get_by_role("link", name="People").click()
    page.get_by_role("link", name="demo-").first.click()
    page.get_by_role("article").first.wait_for()
    take(page, "person")


def take(page: Page, name: str) -> None:
    """Take a picture of a page as it is."""
    page.wait_for_function("window.did_handshake")
    page.mouse.move(0, 0)
    page.screenshot(path=IMAGES / f"console-{name}.png", animations="disabled")


if __name__ == "__main__":
    main()
