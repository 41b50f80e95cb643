"""Is every answer in time? `python -m bench.latency.roundtrip [--scenario idle|capacity|overload|backlog|plain|all]`.

Starts a stack of its own (or takes `--redis-url`, with DATABASE_URL) and drives it from outside, over the public wire,
with arrivals that do not wait for answers. In the same run: bare Redis, our search and Mem0's called in process, and
one asyncio process that calls Mem0 directly, under the same load.

Latency is from just before LPUSH to the moment the asker hears the response. Every query is a new text unless --repeat,
so that no cache flatters. Without --scenario: --rate for --seconds with --backlog, on the plain process and on ours.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.harness.common import mean, show, write_json
from bench.harness.load import (
    Event,
    Load,
    Outcome,
    Result,
    Wire,
    at_least,
    highest_held,
    poisson,
    quantile,
    stage_table,
    summary,
)
from bench.harness.stack import Stack, ask, backlog, embedder_rate, spoken, stack_at, watched
from bench.harness.texts import Speech
from bench.latency.floors import bare_redis, fill, mem0_as_shipped, mem0_search, our_search, scratch_table
from bench.latency.plain import plain_consumer
from services.long_term_memory.factory import LongTermMemory, open_long_term_memory

SCENARIOS = ("idle", "capacity", "overload", "plain", "backlog")
CALM_RATE = 5.0
CALM_S = 10.0
RECOVERED_AFTER_S = 2.0
PROBE_S = 10.0
#: A search that is answered by words alone was not held by the embedder.
FAULTS = ("late", "partial", "expired", "failed", "unanswered", "twice")
PLAIN_GRACE_S = 20.0
_VERDICTS = {True: "yes", False: "NO", None: "noise"}


@dataclass
class Target:
    """A line of "To reach", and what was measured; `reached` is None where noise drowned it."""

    line: str
    wanted: str
    measured: str
    reached: bool | None


@dataclass
class Report:
    """What the run has found so far."""

    floors: dict[str, list[float]] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)

    def reach(self, line: str, wanted: str, measured: str, *, reached: bool | None) -> None:
        """Note a line of "To reach"."""
        self.targets.append(Target(line, wanted, measured, reached))


class Roundtrip:
    """The scenarios on one stack.

    Args:
        ltm: the same services as the workers have, in this process.
        given: the options.
    """

    def __init__(self, stack: Stack, ltm: LongTermMemory, given: argparse.Namespace) -> None:
        self._stack = stack
        self._ltm = ltm
        self._given = given
        self._random = random.Random(given.seed)
        self._speech = Speech(given.seed, 20 if given.repeat else None)
        self._capacity: float | None = None
        self.report = Report()

    def prepare(self) -> None:
        """Fill the tables and measure the floors."""
        given, floors = self._given, self.report.floors
        fill(self._ltm, self._stack.database_url, spoken(given.users, given.memories_per_user, self._speech))
        floors["bare Redis"] = bare_redis(self._stack.redis_url, given.samples)
        floors["our search in process"] = our_search(self._ltm, self._asked(given.samples))
        with mem0_as_shipped(self._stack.database_url, self._ltm.embedder) as mem0:
            floors["Mem0's search in process"] = mem0_search(mem0, self._asked(given.samples))

    def custom(self) -> None:
        """--rate for --seconds with --backlog, on the plain process and on our stack."""
        given = self._given
        rate, seconds, size = given.rate or 20.0, given.seconds or 60.0, given.backlog or 0
        self._under_load("the plain process", rate, seconds, size, plain=True)
        self._under_load("Keepsake", rate, seconds, size)
        self._compare("the plain process", "Keepsake", size)

    def idle(self) -> None:
        """One request a second, and meanwhile as many searches in this process: what disturbs one disturbs both."""
        rate, seconds = self._given.rate or 1.0, self._given.seconds or 120.0
        alone = self.report.floors["our search in process, meanwhile"] = []

        def search_now_and_then(moment: float) -> None:
            if moment * rate > len(alone) + 0.5 and moment < seconds:
                alone.extend(our_search(self._ltm, self._asked(1)))

        result = self._run("idle", self._asks(rate, seconds), tick=search_now_and_then)
        took = [ms for outcome in result.outcomes if (ms := outcome.ms) is not None]
        over = {f"p{share * 100:g}": quantile(took, share) - quantile(alone, share) for share in (0.5, 0.99)}
        self.report.figures["idle"]["round trip less search in process"] = over
        hops = self.report.figures["idle"]["stages"].get("all but the search", {})
        for name, most in (("p50", 4), ("p99", 12)):
            # A round trip is never shorter than the search in it.
            reached = None if over[name] < 0 else over[name] <= most
            measured = f"{over[name]:.1f} ms (by the parts' own clocks {hops.get(name, float('nan')):.1f} ms)"
            self.report.reach(f"idle: round trip less search, {name}", f"<= {most} ms", measured, reached=reached)
        worst = max(took, default=float("nan"))
        self.report.reach("idle: the longest", "<= 100 ms", f"{worst:.1f} ms", reached=worst <= 100)

    def backlog(self) -> None:
        """Requests while thousands of messages wait to be indexed."""
        rate, seconds, size = self._load_with_backlog()
        figures = self._under_load("backlog", rate, seconds, size)
        faults = self._faults(figures)
        reach = self.report.reach
        line = f"{rate:g}/s for {seconds:g} s, {size} messages waiting"
        reach(f"{line}: none over the budget", "0", faults or "0", reached=not faults)
        reach(f"{line}: p99", "<= 120 ms", f"{figures['p99']:.0f} ms", reached=figures["p99"] <= 120)

    def plain(self) -> None:
        """The same load and backlog on the plain process."""
        self._under_load("plain", *self._load_with_backlog(), plain=True)

    def compare(self) -> None:
        """The plain process against our stack, where both were under the same backlog."""
        if {"plain", "backlog"} <= self.report.results.keys():
            self._compare("plain", "backlog", self._load_with_backlog()[2])

    def capacity(self) -> None:
        """The highest rate without a fault, as a share of what one embedder alone can do."""
        given = self._given
        rates = [self._embedder_alone()]
        probes: list[dict[str, float]] = []
        seconds = given.seconds or 3 * PROBE_S

        def held(rate: float, lasting: float = given.probe_seconds) -> bool:
            result = self._run(f"capacity: {rate:.1f}/s", self._asks(rate, lasting), keep=False)
            figures = summary(result.outcomes, given.budget_ms)
            probes.append({"rate": rate, "seconds": lasting, **figures})
            time.sleep(1)  # what an overload has left behind
            return not self._faults(figures)

        rate = highest_held(held, 0.2 * rates[0], 1.8 * rates[0], 0.05)
        # A short run can be lucky; the rate that counts is held for longer.
        for _ in range(6):
            if not rate or held(rate, seconds):
                break
            rate *= 0.93
        else:
            rate = 0.0
        rates.append(self._embedder_alone())
        share = rate / mean(rates)
        self._capacity = rate or None
        self.report.figures["capacity"] = {"rate": rate, "embedder": rates, "share": share, "probes": probes}
        show("capacity: every probe", {f"{probe['rate']:.1f}/s": probe for probe in probes}, 1)
        line = f"highest rate held, of one embedder alone ({rates[0]:.1f}/s before, {rates[1]:.1f}/s after)"
        self.report.reach(line, ">= 0.8", f"{rate:.1f}/s: {share:.2f}", reached=share >= 0.8)

    def overload(self) -> None:
        """A calm, a burst at twice what can be held, and a calm again."""
        given = self._given
        held = given.rate or self._capacity or 0.8 * self._embedder_alone()
        rate, seconds = given.overload * held, given.seconds or 30.0
        events = self._asks(CALM_RATE, CALM_S)
        events += self._asks(rate, seconds, CALM_S)
        events += self._asks(CALM_RATE, RECOVERED_AFTER_S + CALM_S, CALM_S + seconds)
        result = self._run("overload", events)
        ends = CALM_S + seconds
        parts = {"before": (0, CALM_S), "burst": (CALM_S, ends), "after 2 s": (ends + RECOVERED_AFTER_S, 1e9)}
        figures = {name: summary(_within(result, *span), given.budget_ms) for name, span in parts.items()}
        self.report.figures["overload"] = {"rate": rate, **figures}
        show(f"overload: {rate:.0f}/s for {seconds:g} s", figures, 1)
        burst, after = figures["burst"], figures["after 2 s"]
        answered = (
            f"{burst['answered']:.0f} of {burst['asked']:.0f} answered, {burst['partial']:.0f} of them by words alone,"
            f" the longest {burst['max']:.0f} ms"
        )
        reach = self.report.reach
        line = f"overload: answers later than {given.budget_ms} ms"
        reached = not (burst["late"] or burst["unanswered"] or burst["failed"])
        reach(line, "0", f"{burst['late']:g}; {answered}", reached=reached)
        line = "overload: p99 2 s after the burst, and before it"
        shown = [f"{part['p99']:.0f} ms ({self._faults(part) or 'no faults'})" for part in (after, figures["before"])]
        back = not self._faults(after) and after["p99"] <= max(100.0, 1.5 * figures["before"]["p99"])
        reach(line, "back", ", ".join(shown), reached=back)

    def finish(self) -> dict[str, Any]:
        """Print floors, ratios and targets; return everything for --json."""
        given, report = self._given, self.report
        floors = {name: _row(took) for name, took in report.floors.items()}
        show("floors, ms", floors, 2)
        # What failed has no latency, and would only make ours look better than it is.
        ratios = {
            name: {floor: quantile(ours, 0.5) / row["p50"] for floor, row in floors.items()}
            for name, result in report.results.items()
            if (ours := [ms for outcome in result.outcomes if (ms := outcome.ms) is not None])
        }
        show("median round trip in terms of each floor's median", ratios, 2)
        if report.targets:
            rows = [f"{_VERDICTS[t.reached]:<5} {t.line}: {t.measured} (wanted: {t.wanted})" for t in report.targets]
            Console(soft_wrap=True).print("\nTo reach\n" + "\n".join(rows), markup=False, highlight=False)
        return {
            "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()},
            "cores": os.cpu_count(),
            "load average": os.getloadavg(),
            "floors": floors,
            "ratios": ratios,
            "scenarios": report.figures,
            "to reach": [vars(target) for target in report.targets],
        }

    def _load_with_backlog(self) -> tuple[float, float, int]:
        given = self._given
        return given.rate or 20.0, given.seconds or 60.0, 5_000 if given.backlog is None else given.backlog

    def _under_load(
        self, name: str, rate: float, seconds: float, size: int, *, plain: bool = False
    ) -> dict[str, float]:
        waiting = backlog(size, self._given.users, self._speech)
        events = self._asks(rate, seconds)
        if plain:
            names = ("bench:plain:requests", "bench:plain:responses", "bench:plain:updates")
            wire = Wire(self._stack.redis_url, *names)
            with plain_consumer(wire, self._stack.database_url):
                self._run(name, events, waiting, wire=wire, grace_s=PLAIN_GRACE_S)
        else:
            self._stack.drained()
            self._run(name, events, waiting)
            left = self._stack.waiting()
            self.report.figures[name]["messages still waiting at the end"] = left
            print(f"{name}: {left} of {size} messages still waited at the end")
        figures: dict[str, float] = self.report.figures[name]["summary"]
        return figures

    def _compare(self, plain: str, ours: str, size: int) -> None:
        waits = {
            name: quantile(at_least(self.report.results[name].outcomes, self.report.results[name].ended_at), 0.99)
            for name in (plain, ours)
        }
        ratio = waits[plain] / waits[ours]
        self.report.figures["p99, plain / ours"] = ratio
        pair = f"{waits[plain]:.0f} ms / {waits[ours]:.0f} ms = {ratio:.1f}"
        line = f"p99 of the plain process / ours with {size} messages waiting (unanswered: as long as it was waited)"
        self.report.reach(line, ">= 5", pair, reached=ratio >= 5)

    def _run(
        self,
        name: str,
        events: list[Event],
        waiting: list[str] | None = None,
        *,
        wire: Wire | None = None,
        grace_s: float = 3.0,
        keep: bool = True,
        tick: Callable[[float], None] = lambda _: None,
    ) -> Result:
        result = watched(Load(wire or self._stack.wire, events, waiting or (), grace_s), name, tick)
        if keep:
            figures = summary(result.outcomes, self._given.budget_ms)
            stages = stage_table(result.outcomes)
            self.report.results[name] = result
            self.report.figures[name] = {"summary": figures, "stages": stages}
            show(f"{name}: round trip in ms, and how many", {name: figures}, 1)
            if stages:
                show(f"{name}: ms by stage", stages, 2)
        return result

    def _asks(self, rate: float, seconds: float, begin: float = 0.0) -> list[Event]:
        deadline = None if self._given.no_deadline else self._given.budget_ms
        moments = poisson(rate, seconds, self._random, begin)
        return [
            ask(due, user, query, deadline)
            for due, (user, query) in zip(moments, self._asked(len(moments)), strict=True)
        ]

    def _asked(self, number: int) -> list[tuple[int, str]]:
        users = [self._random.randrange(self._given.users) for _ in range(number)]
        return [(user, self._speech.query(user)) for user in users]

    def _embedder_alone(self) -> float:
        return embedder_rate(self._ltm.embedder, (query for _, query in self._asked(self._given.samples)), "search")

    @staticmethod
    def _faults(figures: dict[str, float]) -> str:
        return ", ".join(f"{figures[name]:g} {name}" for name in FAULTS if figures[name])


def _row(took: list[float]) -> dict[str, float]:
    return {**{f"p{share * 100:g}": quantile(took, share) for share in (0.5, 0.95, 0.99)}, "max": max(took)}


def _within(result: Result, begin: float, end: float) -> list[Outcome]:
    return [outcome for outcome in result.outcomes if begin <= outcome.due - result.begun_at < end]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=[*SCENARIOS, "all"], action="append", help="repeatable")
    parser.add_argument("--redis-url", help="a running stack's, with DATABASE_URL; what bench-user-* said stays there")
    parser.add_argument("--rate", type=float, help="requests a second, in place of the scenario's own")
    parser.add_argument("--seconds", type=float, help="in place of the scenario's own")
    parser.add_argument("--backlog", type=int, help="messages to be indexed, published at once before the load")
    parser.add_argument("--budget-ms", type=int, default=300, help="later is late; also each request's deadline_ms")
    parser.add_argument(
        "--no-deadline", action="store_true", help="send no deadline_ms: the worker's own budget counts"
    )
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--memories-per-user", type=int, default=100)
    parser.add_argument("--overload", type=float, default=2.0, help="the burst, in terms of the rate that is held")
    parser.add_argument("--repeat", action="store_true", help="ask 20 texts a language over and over")
    parser.add_argument("--samples", type=int, default=300, help="of each floor")
    parser.add_argument("--probe-seconds", type=float, default=PROBE_S, help="of each step of the capacity's bisection")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw latency over time and its distribution here, as PNG")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    given = _options()
    logging.getLogger("mem0").setLevel(logging.ERROR)  # it warns that spaCy is not installed, as it is not by default
    asked = SCENARIOS if "all" in (given.scenario or ()) else given.scenario or ()
    # Whatever the order they are given in: what leaves a backlog behind comes last.
    chosen = [name for name in SCENARIOS if name in asked or (name == "backlog" and "plain" in asked)]
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
        from bench.harness.plot import draw  # noqa: PLC0415 - matplotlib is for those who draw

        draw(given.plot, roundtrip.report.results, roundtrip.report.floors, given.budget_ms)


if __name__ == "__main__":
    main()
