"""Soak run: memory and latency under a steady load, `python -m bench.resilience.soak [--seconds S] [--json PATH]`.

Prints the memory of each process over time and its growth in the second half, the messages that still waited at the
end, and the round trip minute by minute. PostgreSQL's shared buffers are a line of their own: they fill as the table
grows, up to their configured size, and would hide any other growth. `--warm-up S` runs the load for so long before the
first sample, so that caches have reached their bounds, and with `LTM_STREAM_MAX_LEN=5000` in the environment the stream
has too.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness.load import Load, poisson
from bench.harness.memory_usage import memory_by_process
from bench.harness.outcomes import summary
from bench.harness.stack import Stack, running_stack
from bench.harness.tables import show, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import message_event, run_with_progress, search_event

MAX_SHOWN = 10


def slope(moments: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of the values in units an hour; 0 with fewer than two moments.

    Args:
        moments: in seconds.
    """
    if len(set(moments)) < 2:
        return 0.0
    return statistics.linear_regression(moments, values).slope * 3_600


class Samples:
    """Samples of the memory of each process.

    Args:
        every_s: the time between samples.
    """

    def __init__(self, stack: Stack, every_s: float) -> None:
        self._stack = stack
        self._every_s = every_s
        self.moments: list[float] = []
        self.megabytes: dict[str, list[float]] = {}

    def take(self, moment: float) -> None:
        """Take a sample if one is due at this moment, in seconds after the beginning."""
        if self.moments and moment < self.moments[-1] + self._every_s:
            return
        self.moments.append(moment)
        for name, memory in memory_by_process(self._stack).items():
            # Shared pages do not change; PSS is 0 where the system does not report it.
            parts = {name: (memory["pss"] or memory["rss"]) - memory["buffers"], f"{name}: buffers": memory["buffers"]}
            for part, megabytes in parts.items():
                if megabytes:
                    self.megabytes.setdefault(part, []).append(megabytes)

    def rows(self) -> dict[str, dict[str, float]]:
        """By process: up to `MAX_SHOWN` samples, and the growth in the second half."""
        step = max(1, len(self.moments) // MAX_SHOWN)
        half = len(self.moments) // 2
        return {
            name: {
                **{f"{self.moments[n]:.0f} s": values[n] for n in range(0, len(values), step)},
                "MB/hour": slope(self.moments[half:], values[half:]),
            }
            for name, values in self.megabytes.items()
        }


def measure(stack: Stack, given: argparse.Namespace) -> dict[str, Any]:
    """Run the load, and sample memory meanwhile."""
    rng, texts, users = random.Random(given.seed), TextGenerator(given.seed), given.users
    lasting = given.warm_up + given.seconds
    messages = [
        message_event(due, user := rng.randrange(users), number, texts.statement(user))
        for number, due in enumerate(poisson(given.messages_rate, lasting, rng))
    ]
    searches = [
        search_event(due, user := rng.randrange(users), texts.query(user), given.budget_ms)
        for due in poisson(given.searches_rate, lasting, rng)
    ]
    samples = Samples(stack, given.every_seconds)
    result = run_with_progress(
        Load(stack.wire, [*messages, *searches]),
        "soaking",
        lambda moment: samples.take(moment) if moment >= given.warm_up else None,
    )
    waiting = stack.indexing_pending()
    part = lasting / min(MAX_SHOWN, max(1, lasting // 60))
    minutes = {
        f"{n * part:.0f} to {(n + 1) * part:.0f} s": summary(
            result.due_between(n * part, (n + 1) * part), given.budget_ms
        )
        for n in range(round(lasting / part))
    }
    return {
        "moments": samples.moments,
        "megabytes": samples.megabytes,
        "growth": samples.rows(),
        "round trip": minutes,
        "all": summary(result.outcomes, given.budget_ms),
        "messages": len(messages),
        "messages still waiting at the end": waiting,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--warm-up", type=float, default=0.0, help="seconds of the same load before the first sample")
    parser.add_argument("--messages-rate", type=float, default=20.0, help="messages a second")
    parser.add_argument("--searches-rate", type=float, default=10.0, help="searches a second")
    parser.add_argument("--every-seconds", type=float, default=10.0, help="between samples of the memory")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--budget-ms", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    with running_stack() as stack:
        figures = measure(stack, given)
    show("megabytes of each process (PSS) over time", figures["growth"], 1)
    show("round trip in ms, and how many", {**figures["round trip"], "all": figures["all"]}, 1)
    print(f"{figures['messages still waiting at the end']} of {figures['messages']} messages still waited at the end")
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
