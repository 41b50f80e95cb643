"""Searches a second with one, two and three search workers: `python -m bench.latency.search_workers [--json PATH]`.

Each worker stands for one on a host of its own: it gets a `--share` of core 0 and no more (`cpu.cfs_quota_us` of a
control group, version 1, for which this must run as root). Redis, PostgreSQL, the adapters and the load have the
other cores. The load is more than the workers can do, with a deadline that none of it reaches, so that what is counted,
answers a second after the first `WARM_UP_S`, is what the workers do. Rounds of each number of workers, in random order.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from bench.harness.load import Load, poisson
from bench.harness.outcomes import FAULTS, summary
from bench.harness.stack import Stack, running_stack
from bench.harness.statistics import quantile
from bench.harness.tables import show, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import past_messages, run_with_progress, search_event
from bench.latency.floors import fill
from services.long_term_memory.factory import open_long_term_memory
from services.runtime.errors import StackError
from services.stack.processes import CHAT, GATEWAY, MEMORY, ROOT, WORKER, service_specs

GROUPS = Path("/sys/fs/cgroup/cpu")
#: A short period, so that a worker's pauses are shorter than a search.
PERIOD_US = 10_000
WARM_UP_S = 3.0
DEADLINE_MS = 600_000
#: The core of the workers; the others are for all else.
CORE = 0


@contextmanager
def limited_worker(stack: Stack, number: int, share: float) -> Iterator[None]:
    """A search worker of the stack that gets a share of one core; ended at the end of the block."""
    group = GROUPS / f"keepsake-bench-{os.getpid()}-{number}"
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(round(PERIOD_US * share)))
        (spec,) = (spec for spec in service_specs() if spec.name == WORKER)
        worker = subprocess.Popen(
            ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec taskset -c {CORE} "$@"', "sh", *spec.argv],
            cwd=ROOT,
            env=os.environ | {"REDIS_URL": stack.redis_url, "DATABASE_URL": stack.database_url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            worker.terminate()
            worker.wait()
    finally:
        group.rmdir()


def answered(stack: Stack, workers: int, given: argparse.Namespace, texts: TextGenerator) -> dict[str, float]:
    """Answers a second of so many workers, and what went wrong."""
    rng = random.Random(given.seed)
    seconds = WARM_UP_S + given.seconds
    events = [
        search_event(due, user, texts.query(user), DEADLINE_MS)
        for due in poisson(given.rate * workers, seconds, rng)
        for user in [rng.randrange(given.users)]
    ]
    with ExitStack() as running:
        for number in range(workers):
            running.enter_context(limited_worker(stack, number, given.share))
        # One search each, at least, so that the embedder of each is loaded.
        warm = [search_event(0.2 * n, n, texts.query(n), DEADLINE_MS) for n in range(20 * workers)]
        run_with_progress(Load(stack.wire, warm, grace_s=60), f"{workers} workers begin")
        result = run_with_progress(Load(stack.wire, events, grace_s=120), f"{workers} workers")
    moments = [each.answered_at - result.begun_at for each in result.outcomes if each.answered_at is not None]
    counted = sum(WARM_UP_S <= moment < seconds for moment in moments)
    faults = summary(result.outcomes, DEADLINE_MS)
    return {"a second": counted / given.seconds, **{name: faults[name] for name in FAULTS}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.25, help="of core 0, for each worker")
    parser.add_argument("--workers", type=int, default=3, help="the largest number of workers")
    parser.add_argument(
        "--rate", type=float, default=60.0, help="searches a second for each worker, more than it can do"
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--memories-per-user", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    if not (GROUPS / "cpu.cfs_quota_us").exists() and not (GROUPS / "cpu.shares").exists():
        raise StackError(f"this needs {GROUPS}, of control groups of version 1")
    os.sched_setaffinity(0, set(range(os.cpu_count() or 1)) - {CORE})
    texts, rng = TextGenerator(given.seed), random.Random(given.seed)
    numbers = range(1, given.workers + 1)
    rounds: dict[int, list[dict[str, float]]] = {number: [] for number in numbers}
    with running_stack(without=(CHAT, MEMORY, GATEWAY, WORKER)) as stack:
        with closing(open_long_term_memory(stack.settings, connections=2)) as ltm:
            fill(ltm, stack.database_url, past_messages(given.users, given.memories_per_user, texts))
        for _ in range(given.rounds):
            for workers in rng.sample(list(numbers), len(numbers)):
                rounds[workers].append(answered(stack, workers, given, texts))
                print(workers, rounds[workers][-1], time.strftime("%T"), flush=True)
    one = quantile([each["a second"] for each in rounds[1]], 0.5)
    figures = {
        f"{workers}": {
            "a second, median": quantile([each["a second"] for each in of], 0.5),
            "least": min(each["a second"] for each in of),
            "most": max(each["a second"] for each in of),
            "of linear": quantile([each["a second"] for each in of], 0.5) / (workers * one),
            **{name: sum(each[name] for each in of) for name in FAULTS},
        }
        for workers, of in rounds.items()
    }
    show("searches a second, by search workers", figures, 2)
    write_json(given.json, {"share": given.share, "rounds": rounds, "figures": figures})


if __name__ == "__main__":
    main()
