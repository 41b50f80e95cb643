"""Fault injection run: is anything lost, duplicated or given to the wrong user?

`python -m bench.resilience.faults [--extraction] [--seeds 5] [--seed N] [--json PATH]`

Starts the stack on real servers and sends messages and requests at a steady rate, while it kills, freezes, restarts
and cuts off each of its processes on a schedule that the seed decides. Then it waits until nothing is pending, and
compares what was acknowledged with what is stored and answered. With `--extraction`, an LLM by rules reads the
messages, its process is a target too, and it misbehaves meanwhile on a schedule of its own. It measures: the exit code
is 0 whatever it finds. A short run: `--seeds 1 --messages 300 --seconds 40`.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.extraction import OutboxClock, llm_settings, wait_until_read
from bench.harness.llm_server import LLMServer
from bench.harness.responses import ResponseListener
from bench.harness.stack import Stack, proxied_stack
from bench.harness.tables import show, write_json
from bench.resilience.fault_injection import FaultInjector, InjectedFault
from bench.resilience.fault_schedule import HARMLESS, RUN_S, schedule
from bench.resilience.fault_verification import read_state, verify
from bench.resilience.fault_workload import MESSAGES, USERS, WorkloadThread, foreign_data, plan
from bench.resilience.llm_faults import LLMFaults
from bench.resilience.log_inspection import restarts, show_tracebacks, tracebacks
from bench.resilience.recovery import IndexingMonitor, recovery
from bench.resilience.statements import read_facts, verify_facts
from services.stack.processes import CHAT, GATEWAY

IDLE_WITHIN_S = 60.0
MAX_SHOWN_PROBLEMS = 10


def unexpected_restarts(restarted: Counter[str], injected: Sequence[InjectedFault]) -> Counter[str]:
    """How often each process was started again without a fault that ended it."""
    return restarted - Counter(one.fault.target for one in injected if one.fault.kind not in HARMLESS)


def all_restarts(stack: Stack) -> Counter[str]:
    """How often each process and server was started again."""
    return restarts(stack) + (restarts(stack.servers) if stack.servers else Counter())


@dataclass(frozen=True)
class Extracting:
    """The LLM of a run with extraction, its faults, and the clock of what waits for it."""

    llm: LLMServer
    faults: LLMFaults
    clock: OutboxClock

    def figures(self, stack: Stack) -> dict[str, float]:
        """The figures of the facts, once everything has been read, or nothing more is."""
        self.faults.join()
        begun = time.monotonic()
        wait_until_read(stack.database_url)
        self.clock.stop()
        return {
            **verify_facts(read_facts(stack.database_url)),
            "  calls of the LLM": self.llm.calls,
            "  of these while it was at fault": self.faults.calls_at_fault,
            "  resumed by the operator": self.clock.resumed,
            "  read after, s": time.monotonic() - begun,
        }


@contextmanager
def extracting(llm: LLMServer, stack: Stack, seed: int, seconds: float) -> Iterator[Extracting]:
    """The LLM of a running stack, at fault by turns, in the block."""
    faults = LLMFaults(llm, seed, seconds)
    clock = OutboxClock(stack.database_url, faults.well)
    faults.start()
    clock.start()
    try:
        yield Extracting(llm, faults, clock)
    finally:
        faults.stop()
        clock.stop()


def run(seed: int, messages: int, seconds: float, logs: Path | None, *, extraction: bool) -> dict[str, Any]:
    """One run with one seed, and its figures."""
    faults, operations = schedule(seed, seconds, extraction=extraction), plan(seed, messages, seconds)
    print(f"seed {seed}: {len(operations)} operations in {seconds:.0f} s, {len(faults)} faults:", flush=True)
    keep_logs = logs and logs / f"seed-{seed}"
    with (
        LLMServer() if extraction else nullcontext() as llm,
        proxied_stack(
            without=(CHAT, GATEWAY),
            keep_logs=keep_logs,
            MEMORY_MAX_MESSAGES="100000",
            **(llm_settings(llm) if llm else {}),
        ) as (stack, proxies),
        extracting(llm, stack, seed, seconds) if llm else nullcontext() as facts,
    ):
        channel = stack.settings.ltm_responses_channel
        listener = ResponseListener(stack.redis_url, channel, clock=time.monotonic, check=foreign_data)
        monitor, workload = IndexingMonitor(stack.database_url), WorkloadThread(stack, operations)
        for thread in (listener, monitor, workload):
            thread.start()
        try:
            injected = FaultInjector(stack, proxies).inject_all(faults)
            workload.join()
        finally:
            workload.stopped.set()
        idle_after, pending = stack.wait_until_idle(IDLE_WITHIN_S)
        monitor.stop()
        listener.stop()
        of_facts = facts.figures(stack) if facts else {}
        figures = {**verify(workload.sent, read_state(stack), listener.by_request), **of_facts}
        last_lines, unexpected = tracebacks(stack), unexpected_restarts(all_restarts(stack), injected)
    table = recovery(injected, listener.by_request, monitor.indexed_at)
    for column in ("searches", "writes", "indexing"):
        figures[f"longest time to recover, {column}, s"] = max(row[column] for row in table.values())
    figures["idle after, s"] = idle_after
    figures["still pending"] = sum(pending.values())
    figures["TRACEBACKS IN THE LOGS"] = sum(number.total() for number in last_lines.values())
    figures["UNEXPECTED RESTARTS"] = unexpected.total()
    responses = [response for found in listener.by_request.values() for response in found]
    errors = Counter(response.error.partition(":")[0] for response in responses if response.error)
    show(f"seed {seed}: seconds without a success, from the end of each fault", table, 1)
    print(f"  error responses: {dict(errors)}  still pending: {pending}  unexpected restarts: {dict(unexpected)}")
    show_promises(figures)
    for problem in [response.problem for response in responses if response.problem][:MAX_SHOWN_PROBLEMS]:
        print(f"  wrong user: {problem}")
    show_tracebacks(last_lines)
    print(flush=True)
    return {
        "figures": figures,
        "recovery": table,
        "errors": errors,
        "restarts": unexpected,
        "tracebacks": last_lines,
        "schedule": [vars(fault) for fault in faults],
    }


def show_promises(figures: Mapping[str, float]) -> None:
    """Print the figures that should be 0."""
    print(f"  {', '.join(f'{name.strip()} {value:.0f}' for name, value in figures.items() if name.isupper())}")


def show_runs(title: str, runs: Mapping[str, dict[str, Any]], path: Path | None) -> None:
    """Print the figures of several runs side by side, and write the runs as JSON where a path is given."""
    names = list(next(iter(runs.values()))["figures"])
    show(title, {name: {seed: one["figures"][name] for seed, one in runs.items()} for name in names}, 0)
    write_json(path, runs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--seeds", type=int, default=5, help="how many, one after the other")
    parser.add_argument("--messages", type=int, default=MESSAGES, help="adds, updates and searches are in proportion")
    parser.add_argument("--seconds", type=float, default=RUN_S, help="how long they are sent")
    parser.add_argument("--extraction", action="store_true", help="with an LLM by rules, at fault by turns")
    parser.add_argument("--logs", type=Path, help="keep the logs here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    runs = {
        f"seed {seed}": run(seed, given.messages, given.seconds, given.logs, extraction=given.extraction)
        for seed in range(given.seed, given.seed + given.seeds)
    }
    title = f"{given.messages} messages of {USERS} users in {given.seconds:.0f} s under fault injection"
    show_runs(title, runs, given.json)


if __name__ == "__main__":
    main()
