"""Live messages and searches during an import: `python -m bench.latency.importing [--rounds 2] [--json PATH]`.

In each round, live messages and searches of some users arrive for `--seconds`, first alone, and then while `ltm import`
brings in a large file of another user. A message is timed from just before its PUBLISH until its row is visible, as in
`bench.latency.indexing`; a search until its response is received.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from bench.harness.load import ROOT, Load, poisson
from bench.harness.outcomes import summary
from bench.harness.stack import Stack, stack_at
from bench.harness.statistics import mean, percentiles
from bench.harness.tables import show, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import message_event, run_with_progress, search_event
from bench.latency.indexing import IDLE_S, RowWatcher
from services.runtime.errors import StackError

IMPORTED_USER = "bench-import"
#: More than are imported in any round.
RECORDS = 50_000
BEGUN_WITHIN_S = 60.0
ENDED_WITHIN_S = 60.0
BUDGET_MS = 300
#: The first is of an import with four years before now.
SINCE = time.time() - 4 * 365 * 86_400


def write_export(path: Path, texts: TextGenerator) -> None:
    """A file of plain JSON Lines that takes longer to import than a round."""
    with path.open("w") as file:
        for number in range(RECORDS):
            record = {"content": f"{texts.statement(number % 2)} {number}", "timestamp": SINCE + 60 * number}
            file.write(json.dumps(record) + "\n")


def imported(stack: Stack) -> int:
    """How many memories the import has brought in."""
    with psycopg.connect(stack.database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM memories WHERE user_number IN (SELECT number FROM users WHERE user_id = %s)",
            (IMPORTED_USER,),
        ).fetchone()
    return int(row[0]) if row else 0


@contextmanager
def importing(stack: Stack, export: Path) -> Iterator[None]:
    """`ltm import` in a process of its own, at work at the beginning of the block, and interrupted after it.

    Raises:
        StackError: it imports nothing, or ends before the block does.
    """
    already = imported(stack)
    addresses = {"REDIS_URL": stack.redis_url, "DATABASE_URL": stack.database_url}
    command = [sys.executable, "-c", "from services.cli import main; main()", "import", IMPORTED_USER, str(export)]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | addresses, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        until = time.monotonic() + BEGUN_WITHIN_S
        try:
            while imported(stack) == already:
                if process.poll() is not None:
                    raise StackError(f"`ltm import` failed: {process.communicate()[0].decode()}")
                if time.monotonic() > until:
                    raise StackError("`ltm import` imports nothing")
                time.sleep(0.1)
            yield
            if process.poll() is not None:
                raise StackError("`ltm import` ended too early")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=ENDED_WITHIN_S)


def measure(stack: Stack, given: argparse.Namespace, texts: TextGenerator, name: str) -> dict[str, dict[str, float]]:
    """Milliseconds of messages until they are searchable, and of searches."""
    rng = random.Random(given.seed)
    messages, searches = (poisson(rate, given.seconds, rng) for rate in (given.rate, given.search_rate))
    events = [
        message_event(due, n % given.users, n, texts.statement(n % given.users)) for n, due in enumerate(messages)
    ]
    events += [
        search_event(due, n % given.users, texts.query(n % given.users), BUDGET_MS) for n, due in enumerate(searches)
    ]
    already = imported(stack)
    watcher = RowWatcher(stack.database_url)
    watcher.start()
    result = run_with_progress(Load(stack.wire, events), name)
    brought_in = imported(stack) - already
    until = time.monotonic() + IDLE_S
    while not result.published.keys() <= watcher.seen.keys() and time.monotonic() < until:
        time.sleep(0.1)
    watcher.done.set()
    watcher.join()
    took = [(watcher.seen[one] - at) * 1000 for one, at in result.published.items() if one in watcher.seen]
    return {
        "messages": {
            "messages": float(len(result.published)),
            "never seen": float(len(result.published) - len(took)),
            **percentiles(took),
            "max": max(took, default=float("nan")),
            "imported a second": brought_in / given.seconds,
        },
        "searches": summary(result.outcomes, BUDGET_MS),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-url", help="of a running stack, with DATABASE_URL; the memories stay there")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each half of a round")
    parser.add_argument("--rate", type=float, default=5.0, help="live messages a second")
    parser.add_argument("--search-rate", type=float, default=5.0, help="searches a second")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    texts = TextGenerator(given.seed)
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {"alone": [], "during an import": []}
    with stack_at(given.redis_url) as stack, tempfile.TemporaryDirectory() as directory:
        export = Path(directory) / "export.jsonl"
        write_export(export, texts)
        for _ in range(given.rounds):
            rounds["alone"].append(measure(stack, given, texts, "alone"))
            with importing(stack, export):
                rounds["during an import"].append(measure(stack, given, texts, "during an import"))
            stack.wait_until_indexed()
    figures = {
        of: {
            when: {figure: mean([one[of][figure] for one in found]) for figure in found[0][of]}
            for when, found in rounds.items()
        }
        for of in ("messages", "searches")
    }
    show("live messages, publish -> searchable, ms: means of the rounds", figures["messages"], 1)
    show("searches, ms: means of the rounds", figures["searches"], 1)
    write_json(given.json, {"rounds": rounds, **figures})


if __name__ == "__main__":
    main()
