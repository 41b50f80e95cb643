"""Plots of latency over time and of its distribution, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.harness.load import Result
from bench.harness.outcomes import Outcome

_ANSWERED, _PARTIAL, _FAILED = "#2b6cb0", "#dd9b1f", "#c53030"


def draw(path: Path, results: Mapping[str, Result], floors: Mapping[str, Sequence[float]], budget_ms: float) -> None:
    """Draw one row a run: latency by time of the request on the left, the cumulative distribution on the right."""
    figure = Figure(figsize=(13, 3.4 * max(1, len(results))), layout="constrained")
    FigureCanvasAgg(figure)
    for row, (name, result) in enumerate(results.items()):
        over_time = figure.add_subplot(len(results), 2, 2 * row + 1)
        _draw_over_time(over_time, name, result, budget_ms)
        _draw_distribution(figure.add_subplot(len(results), 2, 2 * row + 2), result.outcomes, floors, budget_ms)
    figure.savefig(path, format="png", dpi=110)


def _draw_over_time(axes: Axes, name: str, result: Result, budget_ms: float) -> None:
    kinds = {
        "answered": (_ANSWERED, [o for o in result.outcomes if o.ms is not None and not o.partial]),
        "partial (by words alone)": (_PARTIAL, [o for o in result.outcomes if o.ms is not None and o.partial]),
        "expired or failed": (_FAILED, [o for o in result.outcomes if o.error]),
    }
    for label, (colour, outcomes) in kinds.items():
        if outcomes:
            moments = [o.sent_at - result.begun_at for o in outcomes]
            took = [((o.answered_at or o.sent_at) - o.sent_at) * 1000 for o in outcomes]
            axes.plot(moments, took, ".", markersize=3, color=colour, label=label)
    for outcome in result.outcomes:
        if outcome.answered_at is None:
            axes.axvline(outcome.sent_at - result.begun_at, color=_FAILED, alpha=0.2, linewidth=0.6)
    axes.axhline(budget_ms, color="black", linewidth=0.8, linestyle=":")
    axes.set(title=name, xlabel="seconds", ylabel="ms", yscale="log")
    axes.legend(loc="upper right", fontsize="small")


def _draw_distribution(
    axes: Axes, outcomes: Sequence[Outcome], floors: Mapping[str, Sequence[float]], budget_ms: float
) -> None:
    latencies = [ms for outcome in outcomes if (ms := outcome.ms) is not None]
    _draw_steps(axes, latencies, "round trip", _ANSWERED, 1.8)
    for shade, (name, took) in zip(("0.75", "0.55", "0.4", "0.25"), floors.items(), strict=False):
        _draw_steps(axes, took, name, shade, 1.0)
    axes.axvline(budget_ms, color="black", linewidth=0.8, linestyle=":")
    axes.set(title="share of answers within", xlabel="ms", xscale="log", ylim=(0, 1.01))
    axes.legend(loc="lower right", fontsize="small")


def _draw_steps(axes: Axes, took: Sequence[float], label: str, colour: str, width: float) -> None:
    ordered = sorted(took)
    if ordered:
        shares = [rank / len(ordered) for rank in range(1, len(ordered) + 1)]
        axes.step(ordered, shares, where="post", label=label, color=colour, linewidth=width)
