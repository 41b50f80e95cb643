"""Cost of the metrics: `python -m bench.latency.metrics [--times N] [--also NAME=REDIS_URL]`.

Searches over the wire, one after the other and in turns, of a stack without metrics and of one whose processes all
serve them; two searching processes each, so that they share their values through files. Every query repeats, so that no
embedding hides a difference. Before that, what is observed of a request and of a message, called in this process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from keepsake_client import Client

from bench.harness.stack import running_stack
from bench.harness.statistics import quantile, timed
from bench.harness.tables import show, track
from services.runtime.metrics import NO_METRICS, Metrics
from services.runtime.prometheus import PrometheusMetrics
from services.runtime.traces import Traces
from services.stack.processes import CHAT, GATEWAY, MEMORY, SERVICES
from tests.support import free_ports

WARM_UP = 50
TIMES = {"pushed": 10.0, "taken": 10.001, "queued": 10.002, "started": 10.004, "answered": 10.02}
STAGES = {"embed_ms": 12.3, "database_ms": 1.2, "rank_ms": 0.4}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1_500)
    parser.add_argument("--also", action="append", default=[], help="a further stack, such as one of another release")
    given = parser.parse_args()
    show("microseconds for a record, median", {"a request": _in_process(given.times)}, 2)
    with ExitStack() as stacks:
        urls = dict(name.split("=", 1) for name in given.also)
        measured: dict[str, dict[str, Any]] = {
            "without": {},
            "with metrics": {"LTM_METRICS_PORT": str(free_ports(len(SERVICES)))},
        }
        for name, variables in measured.items():
            stack = running_stack(without=(CHAT, MEMORY, GATEWAY), LTM_INTERACTIVE_PROCESSES="2", **variables)
            urls[name] = stacks.enter_context(stack).redis_url
        clients = {name: stacks.enter_context(Client(url)) for name, url in urls.items()}
        rows = _over_the_wire(clients, given.times)
    show("milliseconds for a search over the wire", rows, 3)


def _in_process(times: int) -> dict[str, float]:
    """What a record costs: neither written nor observed, written, observed, both; in turns."""
    kept = PrometheusMetrics()
    kinds: dict[str, tuple[int, Metrics]] = {
        "neither": (0, NO_METRICS),
        "trace": (10_000, NO_METRICS),
        "metrics": (0, kept),
        "both": (10_000, kept),
    }
    traces = {name: Traces(max_len, "bench", metrics=metrics) for name, (max_len, metrics) in kinds.items()}

    def record(of: Traces) -> None:
        if of.wanted:
            of.record("request", "bench-user", type="search", outcome="ok", times=TIMES, ms=STAGES, deadline_ms=300)

    took: dict[str, list[float]] = {name: [] for name in traces}
    for _ in range(times):
        for name, of in traces.items():
            took[name].append(timed(lambda of=of: record(of))[1] * 1000)  # type: ignore[misc]
    return {name: statistics.median(column) for name, column in took.items()}


def _over_the_wire(clients: Mapping[str, Client], times: int) -> dict[str, dict[str, float]]:
    took: dict[str, list[float]] = {name: [] for name in clients}
    for number in track(range(WARM_UP + times), "in turns"):
        for name, client in clients.items():
            begun = time.perf_counter()
            client.search("bench-user", "Where were we?", limit=5)
            if number >= WARM_UP:
                took[name].append((time.perf_counter() - begun) * 1000)
    base = statistics.median(took["without"])
    return {
        name: {
            "p50": statistics.median(all_),
            "p99": quantile(all_, 0.99),
            "p50 / without": statistics.median(all_) / base,
        }
        for name, all_ in took.items()
    }


if __name__ == "__main__":
    main()
