"""The report of `bench.latency.roundtrip`: floors, results by scenario, ratios and targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from bench.harness.load import Result
from bench.harness.outcomes import stage_table, summary
from bench.harness.statistics import percentiles, quantile
from bench.harness.tables import show

_VERDICTS = {True: "yes", False: "NO", None: "noise"}


@dataclass
class Target:
    """A target and what was measured; `reached` is None where noise is larger than the figure."""

    line: str
    wanted: str
    measured: str
    reached: bool | None


@dataclass
class Report:
    """The figures of a run so far.

    Args:
        floors: milliseconds of each lower bound and baseline, by name.
        results: the load of each scenario, by name.
        figures: the figures of each scenario, by name.
    """

    floors: dict[str, list[float]] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)

    def target(self, line: str, wanted: str, measured: str, *, reached: bool | None) -> None:
        """Add a target."""
        self.targets.append(Target(line, wanted, measured, reached))

    def add(self, name: str, result: Result, budget_ms: float) -> None:
        """Add the result of a scenario, and print its tables."""
        figures, stages = summary(result.outcomes, budget_ms), stage_table(result.outcomes)
        self.results[name] = result
        self.figures[name] = {"summary": figures, "stages": stages}
        show(f"{name}: round trip in ms, and how many", {name: figures}, 1)
        if stages:
            show(f"{name}: ms by stage", stages, 2)

    def finish(self) -> dict[str, Any]:
        """Print floors, ratios and targets; return everything for --json."""
        floors = {
            name: {**percentiles(took), "max": max(took, default=float("nan"))} for name, took in self.floors.items()
        }
        show("floors, ms", floors, 2)
        # Failed requests are left out: they often end early, and would make Keepsake look better than it is.
        ratios = {
            name: {floor: quantile(latencies, 0.5) / row["p50"] for floor, row in floors.items()}
            for name, result in self.results.items()
            if (latencies := [ms for outcome in result.outcomes if (ms := outcome.ms) is not None])
        }
        show("median round trip as a multiple of each floor's median", ratios, 2)
        if self.targets:
            rows = [f"{_VERDICTS[t.reached]:<5} {t.line}: {t.measured} (target: {t.wanted})" for t in self.targets]
            Console(soft_wrap=True).print("\nTargets\n" + "\n".join(rows), markup=False, highlight=False)
        return {
            "floors": floors,
            "ratios": ratios,
            "scenarios": self.figures,
            "targets": [vars(target) for target in self.targets],
        }
