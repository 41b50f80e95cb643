"""Fault injection on several hosts: is anything lost, duplicated, answered twice or given to the wrong user?

`python -m bench.resilience.hosts [--seeds 2] [--seed N] [--seconds 420] [--json PATH]`

Runs a stack on six hosts (network namespaces, `bench.harness.hosts`) and sends messages and requests at a steady rate,
while hosts are cut off, killed, slowed down, and have clocks that are off, in an order that the seed decides. Then it
compares what was acknowledged with what is stored and answered, as `bench.resilience.faults` does on one host, and
prints how long each fault kept everything from succeeding. It measures: the exit code is 0 whatever it finds. It needs
Linux, root, `ip` and libfaketime.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness.hosts import PARTS, Hosts, libfaketime, running_hosts
from bench.harness.responses import ResponseListener
from bench.harness.tables import show
from bench.resilience.fault_injection import InjectedFault
from bench.resilience.fault_schedule import Fault
from bench.resilience.fault_verification import read_state, verify
from bench.resilience.fault_workload import MESSAGES, USERS, WorkloadThread, foreign_data, plan
from bench.resilience.faults import show_promises, show_runs
from bench.resilience.log_inspection import show_tracebacks, tracebacks
from bench.resilience.recovery import IndexingMonitor, recovery
from tests.network_namespaces import unavailable

RUN_S = 420.0
IDLE_WITHIN_S = 90.0
MAX_SHOWN_PROBLEMS = 10
#: How long a host is cut off. In a shorter run than `RUN_S`, every fault lasts less in proportion.
CUTS_S = (5.0, 20.0, 120.0)
POSTGRES_CUT_S = 20.0
DOWN_S = 10.0
SLOW_S = 30.0
CLOCK_S = 30.0
#: One way, of the slow host; and by how much a clock is off.
DELAY_S = 0.05
LOSS = 0.01
CLOCK_AHEAD_S = 30.0
WORKERS = ("work1", "work2")


def schedule(seed: int, seconds: float = RUN_S) -> list[Fault]:
    """Every fault once, on hosts and in an order that the seed decides, spread evenly over the run."""
    rng = random.Random(seed)
    scale = min(1.0, seconds / RUN_S)
    faults = [Fault(0.0, "cut off", rng.choice(tuple(PARTS)), lasting) for lasting in CUTS_S]
    faults += [Fault(0.0, "cut off from postgres", rng.choice(WORKERS), POSTGRES_CUT_S)]
    faults += [Fault(0.0, "kill host", target, DOWN_S) for target in (rng.choice(WORKERS), "adapters")]
    faults += [Fault(0.0, "slow down", rng.choice(tuple(PARTS)), SLOW_S)]
    faults += [Fault(0.0, kind, rng.choice(tuple(PARTS)), CLOCK_S) for kind in ("clock ahead", "clock behind")]
    rng.shuffle(faults)
    pause = (seconds - sum(fault.seconds for fault in faults) * scale) / (len(faults) + 1)
    scheduled, at = [], pause / 2
    for fault in faults:
        scheduled.append(Fault(at, fault.kind, fault.target, fault.seconds * scale))
        at += fault.seconds * scale + pause
    return scheduled


def inject(hosts: Hosts, fault: Fault) -> None:
    """Inject one fault, and undo it once it has lasted."""
    part = hosts.parts[fault.target]
    match fault.kind:
        case "cut off":
            part.host.cut_off()
            time.sleep(fault.seconds)
            part.host.heal()
        case "cut off from postgres":
            part.host.cut_off(hosts.postgres)
            time.sleep(fault.seconds)
            part.host.heal()
        case "kill host":
            part.host.cut_off()  # or its kernel would tell the servers that the connections have ended
            part.kill()
            time.sleep(fault.seconds)
            part.host.heal()
            part.start()
            part.wait_until_ready()
        case "slow down":
            part.host.slow(DELAY_S, LOSS)
            time.sleep(fault.seconds)
            part.host.slow(0.0)
        case "clock ahead" | "clock behind":
            part.stop()
            part.start(CLOCK_AHEAD_S if fault.kind == "clock ahead" else -CLOCK_AHEAD_S)
            part.wait_until_ready()
            time.sleep(fault.seconds)
            part.stop()
            part.start()
            part.wait_until_ready()
        case _:
            raise ValueError(f"{fault.kind} is no fault of a host")


def inject_all(hosts: Hosts, faults: Sequence[Fault]) -> list[InjectedFault]:
    """Inject each fault when it is due, and print it; return once the last is over."""
    begun = time.monotonic()
    injected = []
    for fault in faults:
        time.sleep(max(0.0, begun + fault.at - time.monotonic()))
        began = time.monotonic()
        inject(hosts, fault)
        injected.append(InjectedFault(fault, began, time.monotonic()))
        print(f"  {began - begun:6.1f} s  {fault}", flush=True)
    return injected


def run(seed: int, messages: int, seconds: float, logs: Path | None, faults: Sequence[Fault]) -> dict[str, Any]:
    """One run with one seed, and its figures."""
    operations = plan(seed, messages, seconds)
    print(f"seed {seed}: {len(operations)} operations in {seconds:.0f} s, {len(faults)} faults:", flush=True)
    with running_hosts(keep_logs=logs and logs / f"seed-{seed}", MEMORY_MAX_MESSAGES="100000") as hosts:
        stack = hosts.stack
        channel = stack.settings.ltm_responses_channel
        listener = ResponseListener(stack.redis_url, channel, clock=time.monotonic, check=foreign_data)
        monitor, workload = IndexingMonitor(stack.database_url), WorkloadThread(stack, operations)
        for thread in (listener, monitor, workload):
            thread.start()
        try:
            injected = inject_all(hosts, faults)
            workload.join()
        finally:
            workload.stopped.set()
        idle_after, pending = stack.wait_until_idle(IDLE_WITHIN_S)
        monitor.stop()
        listener.stop()
        figures = verify(workload.sent, read_state(stack), listener.by_request)
        last_lines = tracebacks(stack)
    table = recovery(injected, listener.by_request, monitor.indexed_at)
    for column in ("searches", "writes", "indexing"):
        figures[f"longest time to recover, {column}, s"] = max((row[column] for row in table.values()), default=0.0)
    figures["idle after, s"] = idle_after
    figures["still pending"] = sum(pending.values())
    figures["TRACEBACKS IN THE LOGS"] = sum(number.total() for number in last_lines.values())
    show(f"seed {seed}: seconds without a success, from the end of each fault", table, 1)
    show_promises(figures)
    for problem in [one.problem for found in listener.by_request.values() for one in found if one.problem][
        :MAX_SHOWN_PROBLEMS
    ]:
        print(f"  wrong user: {problem}")
    show_tracebacks(last_lines)
    print(flush=True)
    return {"figures": figures, "recovery": table, "schedule": [vars(fault) for fault in faults]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--seeds", type=int, default=2, help="how many, one after the other")
    parser.add_argument("--messages", type=int, default=MESSAGES, help="adds, updates and searches are in proportion")
    parser.add_argument("--seconds", type=float, default=RUN_S, help="how long they are sent")
    parser.add_argument("--logs", type=Path, help="keep the logs here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    if reason := unavailable():
        sys.exit(reason)
    if libfaketime() is None:
        sys.exit("clocks that are off need libfaketime: run .ci/install-libfaketime")
    runs = {
        f"seed {seed}": run(seed, given.messages, given.seconds, given.logs, schedule(seed, given.seconds))
        for seed in range(given.seed, given.seed + given.seeds)
    }
    title = f"{given.messages} messages of {USERS} users in {given.seconds:.0f} s on six hosts under faults"
    show_runs(title, runs, given.json)


if __name__ == "__main__":
    main()
