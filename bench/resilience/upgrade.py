"""Rolling upgrade: an earlier release is replaced by this one under load, process by process, and by turns back again.

`python -m bench.resilience.upgrade [--from COMMIT] [--order documented|beside] [--seconds 20] [--json PATH]`

Starts servers, and the processes of the earlier release on them, from the git history. While messages, adds and profile
updates are sent, and a search every 50 ms, its processes are replaced in the order of docs/deployment.md; with `--order
beside`, in the wrong one: all of this release start beside all of the earlier one, which are stopped afterwards. Then
it waits until nothing is pending, and compares what was acknowledged with what is stored and answered. It measures: the
exit code is 0 whatever it finds.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.releases import RELEASES, THIS_RELEASE, Fleet, Release, earlier_release
from bench.harness.responses import Response, ResponseListener
from bench.harness.stack import Stack, running_stack
from bench.harness.tables import show, write_json
from bench.resilience.fault_verification import read_state, verify
from bench.resilience.fault_workload import DEADLINE_MS, USERS, Operation, WorkloadThread, foreign_data
from bench.resilience.recovery import longest_gap
from services.stack.processes import ADAPTERS, INDEXER, MEMORY, SERVICES, WORKER, WRITER

PROCESSES = (WORKER, WRITER, INDEXER, ADAPTERS, MEMORY)
SEARCH_EVERY_S = 0.05
#: A second, besides the searches.
MESSAGES, ADDS, UPDATES = 10, 2, 2
#: More than any run lasts.
MAX_RUN_S = 900
IDLE_WITHIN_S = 90.0
MAX_SHOWN_ERRORS = 10

Steps = Iterator[str]


def operations(seed: int, seconds: float, deadline_ms: int, share: float = 1.0) -> list[Operation]:
    """Messages, adds and profile updates of users that the seed decides, evenly, and a search every 50 ms.

    Args:
        share: of the load.
    """
    rng = random.Random(seed)
    rates = {"message": MESSAGES, "add": ADDS, "update": UPDATES, "search": 1 / SEARCH_EVERY_S}
    rates = {kind: rate * share for kind, rate in rates.items()}
    due = sorted((place / rate, kind) for kind, rate in rates.items() for place in range(round(seconds * rate)))
    return [
        Operation(at, kind, f"u{rng.randrange(USERS):02d}", number, deadline_ms)  # type: ignore[arg-type]  # the keys above
        for number, (at, kind) in enumerate(due)
    ]


@dataclass
class Load:
    """The load of a run, and what was answered to it."""

    workload: WorkloadThread
    listener: ResponseListener
    share: float

    def go_on(self, seconds: float) -> None:
        """Let the load go on until so many seconds' searches more are answered."""
        wanted, until = self.answered() + self.share * seconds / SEARCH_EVERY_S, time.monotonic() + 10 * seconds + 10
        while self.answered() < wanted and time.monotonic() < until:
            time.sleep(SEARCH_EVERY_S)

    def stop(self) -> None:
        """Send nothing more."""
        self.workload.stopped.set()
        self.workload.join()

    def answered(self) -> int:
        """How many searches were answered so far."""
        return sum(":search:" in request_id for request_id in list(self.listener.by_request))


@contextmanager
def load(stack: Stack, seed: int, deadline_ms: int, share: float) -> Iterator[Load]:
    """The load, in the block."""
    channel = stack.settings.ltm_responses_channel
    listener = ResponseListener(stack.redis_url, channel, clock=time.monotonic, check=foreign_data)
    workload = WorkloadThread(stack, operations(seed, MAX_RUN_S, deadline_ms, share))
    listener.start()
    workload.start()
    going = Load(workload, listener, share)
    try:
        yield going
    finally:
        going.stop()
        listener.stop()


def documented(fleet: Fleet, old: Release, new: Release) -> Steps:
    """The steps of an upgrade as docs/deployment.md gives them, with what each has done."""
    fleet.stop(old, INDEXER, WRITER)
    yield "old indexer and writer stopped"
    fleet.start(new, INDEXER)
    fleet.start(new, WRITER)
    yield "new indexer, which migrates, and writer"
    fleet.start(new, WORKER)
    yield "new worker for searches beside the old one"
    fleet.stop(old, WORKER)
    yield "old worker stopped"
    fleet.start(new, ADAPTERS)
    yield "new adapters beside the old ones"
    fleet.stop(old, ADAPTERS)
    yield "old adapters stopped"
    fleet.stop(old, MEMORY)
    fleet.start(new, MEMORY)
    yield "memory"


def beside(fleet: Fleet, old: Release, new: Release) -> Steps:
    """All of the new release beside all of the old one, which are then stopped one by one."""
    for name in (WORKER, WRITER, INDEXER, ADAPTERS):
        fleet.start(new, name)
        yield f"new {name} beside the old one"
    for name in (WORKER, WRITER, INDEXER, ADAPTERS):
        fleet.stop(old, name)
        yield f"old {name} stopped"
    fleet.stop(old, MEMORY)
    fleet.start(new, MEMORY)
    yield "memory"


ORDERS: dict[str, Callable[[Fleet, Release, Release], Steps]] = {"documented": documented, "beside": beside}


def figures_of_searches(
    searches: Sequence[Operation], begun: float, answers: Mapping[str, Sequence[Response]], ended: float
) -> dict[str, float]:
    """How the searches were answered: late, not at all, with an error, and the longest time without an answer."""
    received = {one.id: answers[one.id][0] for one in searches if one.id in answers}
    moments = [one.received_at for one in received.values() if not one.error]
    return {
        "searches pushed": len(searches),
        "  SEARCHES NOT ANSWERED": len(searches) - len(received),
        "  SEARCHES ANSWERED WITH AN ERROR": sum(bool(one.error) and not _expired(one) for one in received.values()),
        "  searches expired: the machine is too busy": sum(_expired(one) for one in received.values()),
        "  searches answered late": sum(
            received[one.id].received_at > begun + one.due + one.deadline_ms / 1000
            for one in searches
            if one.id in received
        ),
        "  searches partial": sum(one.partial for one in received.values()),
        "  longest time without an answer, ms": 1000 * longest_gap(moments, begun, ended),
    }


def _expired(response: Response) -> bool:
    return (response.error or "").startswith("expired")


def run(
    release: Release,
    order: str,
    seed: int,
    seconds: float,
    logs: Path | None = None,
    deadline_ms: int = DEADLINE_MS,
    share: float = 1.0,
) -> dict[str, float]:
    """One upgrade under load, or a share of it, and its figures."""
    variables = {"MEMORY_MAX_MESSAGES": "100000", "LTM_RESPONSE_REPEATS_MS": ""}
    with (
        running_stack(without=SERVICES, durable=True, keep_logs=logs) as stack,
        Fleet(stack.redis_url, stack.database_url, stack.ltm_up.directory.logs, **variables) as fleet,
    ):
        fleet.start(release, *PROCESSES)
        with load(stack, seed, deadline_ms, share) as going:
            going.go_on(seconds)
            for done in ORDERS[order](fleet, release, THIS_RELEASE):
                going.go_on(seconds)
                print(f"  {time.monotonic() - going.workload.begun:6.1f} s  {done}", flush=True)
            going.stop()
            ended = time.monotonic()
            idle_after, pending = stack.wait_until_idle(IDLE_WITHIN_S)
        sent, answers = going.workload.sent, going.listener.by_request
        figures = verify(sent, read_state(stack), answers)
    errors = Counter(one.error for found in answers.values() for one in found if one.error and not _expired(one))
    for error, number in errors.most_common(MAX_SHOWN_ERRORS):
        print(f"  {number:>5} x {error}")
    figures |= figures_of_searches(sent.of("search"), going.workload.begun, answers, ended)
    return figures | {"idle after, s": idle_after, "STILL PENDING": sum(pending.values())}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="commits", action="append", help="a commit; by default 0.2.0, and 295cecd")
    parser.add_argument("--order", choices=list(ORDERS), default="documented")
    parser.add_argument("--seconds", type=float, default=20.0, help="of load between two steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--deadline-ms", type=int, default=DEADLINE_MS, help="of a search")
    parser.add_argument("--logs", type=Path, help="keep the logs here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    runs: dict[str, Any] = {}
    for name, commit in ({commit: commit for commit in given.commits} if given.commits else RELEASES).items():
        print(f"from {name}:", flush=True)
        with earlier_release(commit, name) as release:
            runs[name] = run(
                release, given.order, given.seed, given.seconds, given.logs and given.logs / name, given.deadline_ms
            )
    rows = {figure: {name: one[figure] for name, one in runs.items()} for figure in next(iter(runs.values()))}
    show(f"upgrade to this release, order {given.order}", rows, 0)
    write_json(given.json, runs)


if __name__ == "__main__":
    main()
