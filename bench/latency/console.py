"""Time of the console's pages, and what an open one costs the searches: `python -m bench.latency.console`.

First content: loads the page of a user with --memories memories in Chromium, with an empty cache and again with a full
one, and takes the time from the beginning of the navigation until the frame, and until the first memory, are there.

Cost: searches while messages wait to be indexed, as `bench.latency.roundtrip --scenario backlog` sends them, by turns
with the live page open in Chromium and without. A viewer's browser is on another machine: this one has the lowest
priority, so that what is measured is the gateway's work.

Needs chromium (.ci/install-chromium).
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from playwright.sync_api import Browser, Page, sync_playwright

from bench.harness.load import Load, poisson
from bench.harness.outcomes import summary
from bench.harness.stack import Stack, running_stack
from bench.harness.statistics import mean, percentiles
from bench.harness.tables import show, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import backlog, past_messages, run_with_progress, search_event
from bench.latency.scale import HEAVY_USER, fill, vectors
from services.long_term_memory.factory import open_long_term_memory
from services.stack.processes import CHAT, GATEWAY, MEMORY
from tests.acceptance.browser.person import CHROMIUM_OPTIONS

USERS = 50
MEMORIES_PER_USER = 20
BUDGET_MS = 300
WITHIN_MS = 120_000
OPEN, CLOSED = "live page open", "none open"
#: Notes when the first element of each kind is there, in milliseconds since the navigation began.
_WATCH = """
window.seen = {};
new MutationObserver(() => {
    for (const [name, selector] of Object.entries({frame: 'main h1', 'first memory': 'main article'}))
        if (!(name in window.seen) && document.querySelector(selector)) window.seen[name] = performance.now();
}).observe(document, {childList: true, subtree: true});
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


def loads(browser: Browser, url: str, times: int) -> dict[str, dict[str, float]]:
    """Quantiles of the time until each kind of content is there, by cache and kind."""
    took: dict[str, list[float]] = {}

    def load(page: Page, cache: str) -> None:
        page.goto(url)
        page.wait_for_function("'first memory' in window.seen", timeout=WITHIN_MS)
        for name, ms in page.evaluate("window.seen").items():
            took.setdefault(f"{cache}, {name}", []).append(ms)

    for _ in range(times):
        # The console sets the cookie of the time zone at the first visit, which later ones have.
        with browser.new_context() as context:
            context.add_init_script(_WATCH)
            page = context.new_page()
            load(page, "empty cache")
            load(page, "full cache")
    return {name: {**percentiles(ms, (0.5, 0.95)), "max": max(ms), "loads": len(ms)} for name, ms in took.items()}


def first_content(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The times of a page of a user with many memories."""
    owners = np.full(given.memories, HEAVY_USER)
    with running_stack(without=(CHAT, MEMORY)) as stack, chromium() as browser:
        fill(stack.database_url, owners, vectors(len(owners), np.random.default_rng(7)))
        address = f"{stack.ltm_up.gateway_url}/console/people?user=u{HEAVY_USER}"
        loads(browser, address, 1)  # the first page of a new process
        return loads(browser, address, given.loads)


def searches(stack: Stack, given: argparse.Namespace, texts: TextGenerator, name: str) -> dict[str, float]:
    """The figures of searches under a backlog, and the CPU time of the gateway meanwhile."""
    rng = random.Random(given.seed)
    users = [(due, rng.randrange(USERS)) for due in poisson(given.rate, given.seconds, rng)]
    events = [search_event(due, user, texts.query(user), BUDGET_MS) for due, user in users]
    gateway = psutil.Process(stack.pids()[GATEWAY])
    before = sum(gateway.cpu_times()[:2])
    result = run_with_progress(Load(stack.wire, events, backlog(given.backlog, USERS, texts)), name)
    spent = sum(gateway.cpu_times()[:2]) - before
    stack.wait_until_indexed()
    return {**summary(result.outcomes, BUDGET_MS), "gateway's CPU, s": spent}


def cost(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Means of the figures of blocks by turns with the live page open and without, and their ratio."""
    texts = TextGenerator(given.seed)
    blocks: dict[str, list[dict[str, float]]] = {CLOSED: [], OPEN: []}
    with running_stack(without=(CHAT, MEMORY)) as stack, chromium() as browser:
        for process in psutil.Process().children(recursive=True):
            if "chrom" in process.name():
                process.nice(19)
        ltm = open_long_term_memory(stack.settings, 1)
        try:
            updates = past_messages(USERS, MEMORIES_PER_USER, texts)
            for begin in range(0, len(updates), 50):
                ltm.memories.index_many(updates[begin : begin + 50])
        finally:
            ltm.close()
        searches(stack, given, texts, "warming up")
        for turn in range(given.blocks):
            for name in (CLOSED, OPEN) if turn % 2 else (OPEN, CLOSED):
                if name == CLOSED:
                    blocks[name].append(searches(stack, given, texts, name))
                    continue
                with browser.new_context() as context:
                    page = context.new_page()
                    page.goto(f"{stack.ltm_up.gateway_url}/console/")
                    page.locator("tbody tr").first.wait_for(timeout=WITHIN_MS)
                    blocks[name].append(searches(stack, given, texts, name))
    rows = {
        name: {figure: mean([block[figure] for block in found]) for figure in found[0]}
        for name, found in blocks.items()
    }
    rows["ratio"] = {name: rows[OPEN][name] / rows[CLOSED][name] for name in ("p50", "p95", "p99")}
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("content", "cost"))
    parser.add_argument("--memories", type=int, default=100_000, help="of the user whose page is loaded")
    parser.add_argument("--loads", type=int, default=10, help="with each kind of cache")
    parser.add_argument("--blocks", type=int, default=3, help="of searches, with the page and without")
    parser.add_argument("--rate", type=float, default=20.0, help="searches a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a block")
    parser.add_argument("--backlog", type=int, default=2_000, help="messages that begin to wait with each block")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    figures = {}
    if given.only != "cost":
        figures["first content"] = first_content(given)
        show(f"first content with {given.memories} memories, ms; at most 1,000 are wanted", figures["first content"], 0)
    if given.only != "content":
        figures["cost"] = cost(given)
        show(f"{given.rate:g} searches/s, {given.backlog} messages waiting, ms: means of blocks", figures["cost"], 1)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
