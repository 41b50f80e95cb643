"""Round trip of searches under load: `python -m bench.latency.roundtrip [--scenario idle|capacity|...|all]`.

Starts a stack (or takes `--redis-url`, with DATABASE_URL) and sends it an open-loop load over the public wire: arrivals
do not wait for responses. The same run measures bare Redis, Keepsake's and Mem0's search called in this process, and
the plain process, one asyncio process that calls Mem0 directly, under the same load.

Latency is from just before LPUSH until the response is received. Every query is a new text unless --repeat, so that no
cache answers. Without --scenario: --rate for --seconds with --backlog, on the plain process and on Keepsake.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness.load import GRACE_S, Event, Load, Result, Wire, poisson
from bench.harness.outcomes import faults, summary, waits
from bench.harness.stack import Stack, stack_at
from bench.harness.statistics import mean, quantile
from bench.harness.tables import show, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import backlog, past_messages, run_with_progress, search_event
from bench.latency.capacity import highest_rate, lowered_until_held
from bench.latency.embedders import embedder_rate
from bench.latency.floors import bare_redis, fill, keepsake_search, mem0_as_shipped, mem0_search, scratch_table
from bench.latency.plain import plain_process
from bench.latency.report import Report
from services.long_term_memory.factory import LongTermMemory, open_long_term_memory

SCENARIOS = ("idle", "capacity", "overload", "plain", "backlog")
CALM_RATE = 5.0
CALM_S = 10.0
RECOVERED_AFTER_S = 2.0
PROBE_S = 10.0
PLAIN_GRACE_S = 20.0


class Roundtrip:
    """The scenarios on one stack.

    Args:
        ltm: the same services as in the workers, in this process.
        given: the command's options.
    """

    def __init__(self, stack: Stack, ltm: LongTermMemory, given: argparse.Namespace) -> None:
        self._stack = stack
        self._ltm = ltm
        self._given = given
        self._random = random.Random(given.seed)
        self._texts = TextGenerator(given.seed, 20 if given.repeat else None)
        self._capacity: float | None = None
        self.report = Report()

    def prepare(self) -> None:
        """Fill the tables, and measure the floors."""
        given, floors = self._given, self.report.floors
        updates = past_messages(given.users, given.memories_per_user, self._texts)
        fill(self._ltm, self._stack.database_url, updates)
        floors["bare Redis"] = bare_redis(self._stack.redis_url, given.samples)
        floors["Keepsake's search in process"] = keepsake_search(self._ltm, self._queries(given.samples))
        with mem0_as_shipped(self._stack.database_url, self._ltm.embedder) as mem0:
            floors["Mem0's search in process"] = mem0_search(mem0, self._queries(given.samples))

    def custom(self) -> None:
        """--rate for --seconds with --backlog, on the plain process and on Keepsake."""
        given = self._given
        rate, seconds, size = given.rate or 20.0, given.seconds or 60.0, given.backlog or 0
        self._under_load("the plain process", rate, seconds, size, plain=True)
        self._under_load("Keepsake", rate, seconds, size)
        self._compare("the plain process", "Keepsake", size)

    def idle(self) -> None:
        """One request a second, and as many searches in this process meanwhile, so that a disturbance affects both."""
        rate, seconds = self._given.rate or 1.0, self._given.seconds or 120.0
        alone = self.report.floors["Keepsake's search in process, meanwhile"] = []

        def search_at_rate(moment: float) -> None:
            if moment * rate > len(alone) + 0.5 and moment < seconds:
                alone.extend(keepsake_search(self._ltm, self._queries(1)))

        result = self._run("idle", self._searches(rate, seconds), tick=search_at_rate)
        took = [ms for outcome in result.outcomes if (ms := outcome.ms) is not None]
        over = {f"p{share * 100:g}": quantile(took, share) - quantile(alone, share) for share in (0.5, 0.99)}
        self.report.figures["idle"]["round trip less search in process"] = over
        hops = self.report.figures["idle"]["stages"].get("all but the search", {})
        for name, limit in (("p50", 4), ("p99", 12)):
            # A round trip is never shorter than the search in it: a negative difference is noise.
            reached = None if over[name] < 0 else over[name] <= limit
            measured = f"{over[name]:.1f} ms (by the processes' own clocks {hops.get(name, float('nan')):.1f} ms)"
            self.report.target(f"idle: round trip less search, {name}", f"<= {limit} ms", measured, reached=reached)
        worst = max(took, default=float("nan"))
        self.report.target("idle: the longest", "<= 100 ms", f"{worst:.1f} ms", reached=worst <= 100)

    def backlog(self) -> None:
        """Requests while thousands of messages wait to be indexed."""
        rate, seconds, size = self._load_with_backlog()
        figures = self._under_load("backlog", rate, seconds, size)
        found = faults(figures)
        target = self.report.target
        line = f"{rate:g}/s for {seconds:g} s, {size} messages waiting"
        target(f"{line}: none over the budget", "0", found or "0", reached=not found)
        target(f"{line}: p99", "<= 120 ms", f"{figures['p99']:.0f} ms", reached=figures["p99"] <= 120)

    def plain(self) -> None:
        """The same load and backlog on the plain process."""
        self._under_load("plain", *self._load_with_backlog(), plain=True)

    def compare(self) -> None:
        """The plain process compared with Keepsake, if both were measured under the same backlog."""
        if {"plain", "backlog"} <= self.report.results.keys():
            self._compare("plain", "backlog", self._load_with_backlog()[2])

    def capacity(self) -> None:
        """The highest rate without a fault, as a share of the rate of one embedder alone."""
        given = self._given
        rates = [self._embedder_alone()]
        probes: list[dict[str, float]] = []
        seconds = given.seconds or 3 * PROBE_S

        def held(rate: float, lasting: float = given.probe_seconds) -> bool:
            result = self._run(f"capacity: {rate:.1f}/s", self._searches(rate, lasting), keep=False)
            figures = summary(result.outcomes, given.budget_ms)
            probes.append({"rate": rate, "seconds": lasting, **figures})
            time.sleep(1)  # an overload leaves requests behind
            return not faults(figures)

        rate = highest_rate(held, 0.2 * rates[0], 1.8 * rates[0], 0.05)
        # A short run can be lucky: the rate that counts is held for longer.
        rate = lowered_until_held(lambda lower: held(lower, seconds), rate)
        rates.append(self._embedder_alone())
        share = rate / mean(rates)
        self._capacity = rate or None
        self.report.figures["capacity"] = {"rate": rate, "embedder": rates, "share": share, "probes": probes}
        show("capacity: every probe", {f"{probe['rate']:.1f}/s": probe for probe in probes}, 1)
        line = f"highest rate held, of one embedder alone ({rates[0]:.1f}/s before, {rates[1]:.1f}/s after)"
        self.report.target(line, ">= 0.8", f"{rate:.1f}/s: {share:.2f}", reached=share >= 0.8)

    def overload(self) -> None:
        """A low rate, a burst at twice the sustained rate, and the low rate again."""
        given = self._given
        held = given.rate or self._capacity or 0.8 * self._embedder_alone()
        rate, seconds = given.overload * held, given.seconds or 30.0
        events = self._searches(CALM_RATE, CALM_S)
        events += self._searches(rate, seconds, CALM_S)
        events += self._searches(CALM_RATE, RECOVERED_AFTER_S + CALM_S, CALM_S + seconds)
        result = self._run("overload", events)
        ends = CALM_S + seconds
        parts = {"before": (0, CALM_S), "burst": (CALM_S, ends), "after 2 s": (ends + RECOVERED_AFTER_S, 1e9)}
        figures = {name: summary(result.due_between(*span), given.budget_ms) for name, span in parts.items()}
        self.report.figures["overload"] = {"rate": rate, **figures}
        show(f"overload: {rate:.0f}/s for {seconds:g} s", figures, 1)
        burst, after = figures["burst"], figures["after 2 s"]
        answered = f"{burst['answered']:.0f} of {burst['asked']:.0f} answered, {burst['partial']:.0f} of them partial"
        target = self.report.target
        line = f"overload: answers later than {given.budget_ms} ms"
        reached = not (burst["late"] or burst["unanswered"] or burst["failed"])
        target(line, "0", f"{burst['late']:g}; {answered}, the longest {burst['max']:.0f} ms", reached=reached)
        line = "overload: p99 2 s after the burst, and before it"
        shown = [f"{part['p99']:.0f} ms ({faults(part) or 'no faults'})" for part in (after, figures["before"])]
        back = not faults(after) and after["p99"] <= max(100.0, 1.5 * figures["before"]["p99"])
        target(line, "back", ", ".join(shown), reached=back)

    def finish(self) -> dict[str, Any]:
        """Print the report; return everything for --json."""
        given = vars(self._given).items()
        return {
            "options": {name: str(value) if isinstance(value, Path) else value for name, value in given},
            "cores": os.cpu_count(),
            "load average": os.getloadavg(),
            **self.report.finish(),
        }

    def _load_with_backlog(self) -> tuple[float, float, int]:
        given = self._given
        return given.rate or 20.0, given.seconds or 60.0, 5_000 if given.backlog is None else given.backlog

    def _under_load(
        self, name: str, rate: float, seconds: float, size: int, *, plain: bool = False
    ) -> dict[str, float]:
        waiting = backlog(size, self._given.users, self._texts)
        events = self._searches(rate, seconds)
        if plain:
            names = ("bench:plain:requests", "bench:plain:responses", "bench:plain:updates")
            wire = Wire(self._stack.redis_url, *names)
            with plain_process(wire, self._stack.database_url):
                self._run(name, events, waiting, wire=wire, grace_s=PLAIN_GRACE_S)
        else:
            self._stack.wait_until_indexed()
            self._run(name, events, waiting)
            left = self._stack.indexing_pending()
            self.report.figures[name]["messages still waiting at the end"] = left
            print(f"{name}: {left} of {size} messages still waited at the end")
        figures: dict[str, float] = self.report.figures[name]["summary"]
        return figures

    def _compare(self, plain: str, keepsake: str, size: int) -> None:
        results = self.report.results
        p99 = {
            name: quantile(waits(results[name].outcomes, results[name].ended_at), 0.99) for name in (plain, keepsake)
        }
        ratio = p99[plain] / p99[keepsake]
        self.report.figures["p99, plain / Keepsake"] = ratio
        pair = f"{p99[plain]:.0f} ms / {p99[keepsake]:.0f} ms = {ratio:.1f}"
        line = f"p99 of the plain process / Keepsake, {size} messages waiting (unanswered: until the end of the run)"
        self.report.target(line, ">= 5", pair, reached=ratio >= 5)

    def _run(
        self,
        name: str,
        events: list[Event],
        waiting: list[str] | None = None,
        *,
        wire: Wire | None = None,
        grace_s: float = GRACE_S,
        keep: bool = True,
        tick: Callable[[float], None] = lambda _: None,
    ) -> Result:
        result = run_with_progress(Load(wire or self._stack.wire, events, waiting or (), grace_s), name, tick)
        if keep:
            self.report.add(name, result, self._given.budget_ms)
        return result

    def _searches(self, rate: float, seconds: float, begin: float = 0.0) -> list[Event]:
        deadline = None if self._given.no_deadline else self._given.budget_ms
        moments = poisson(rate, seconds, self._random, begin)
        return [
            search_event(due, user, query, deadline)
            for due, (user, query) in zip(moments, self._queries(len(moments)), strict=True)
        ]

    def _queries(self, number: int) -> list[tuple[int, str]]:
        users = [self._random.randrange(self._given.users) for _ in range(number)]
        return [(user, self._texts.query(user)) for user in users]

    def _embedder_alone(self) -> float:
        return embedder_rate(self._ltm.embedder, (query for _, query in self._queries(self._given.samples)), "search")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=[*SCENARIOS, "all"], action="append", help="repeatable")
    parser.add_argument(
        "--redis-url", help="of a running stack, with DATABASE_URL; the memories of bench-user-* stay there"
    )
    parser.add_argument("--rate", type=float, help="requests a second, in place of the scenario's own")
    parser.add_argument("--seconds", type=float, help="in place of the scenario's own")
    parser.add_argument("--backlog", type=int, help="messages to be indexed, published at once before the load")
    parser.add_argument(
        "--budget-ms", type=int, default=300, help="a later answer counts as late; also each request's deadline_ms"
    )
    parser.add_argument(
        "--no-deadline", action="store_true", help="send no deadline_ms: the worker's own budget applies"
    )
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--memories-per-user", type=int, default=100)
    parser.add_argument("--overload", type=float, default=2.0, help="the burst as a multiple of the sustained rate")
    parser.add_argument("--repeat", action="store_true", help="repeat 20 queries a language")
    parser.add_argument("--samples", type=int, default=300, help="measurements of each floor")
    parser.add_argument("--probe-seconds", type=float, default=PROBE_S, help="length of each step of the bisection")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw latency over time and its distribution here, as PNG")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    given = _options()
    logging.getLogger("mem0").setLevel(logging.ERROR)  # it warns that spaCy is missing, which is optional
    wanted = SCENARIOS if "all" in (given.scenario or ()) else given.scenario or ()
    # In the order of SCENARIOS: those that leave a backlog come last.
    chosen = [name for name in SCENARIOS if name in wanted or (name == "backlog" and "plain" in wanted)]
    with stack_at(given.redis_url) as stack, scratch_table(stack.database_url):
        ltm = open_long_term_memory(stack.settings, 1)
        try:
            roundtrip = Roundtrip(stack, ltm, given)
            roundtrip.prepare()
            steps: list[Callable[[], None]] = [getattr(roundtrip, name) for name in chosen or ["custom"]]
            for step in steps:
                step()
            roundtrip.compare()
            figures = roundtrip.finish()
        finally:
            ltm.close()
    write_json(given.json, figures)
    if given.plot:
        from bench.harness.plot import draw  # noqa: PLC0415 - matplotlib is optional, and slow to import

        draw(given.plot, roundtrip.report.results, roundtrip.report.floors, given.budget_ms)


if __name__ == "__main__":
    main()
