"""Figures of the live page: percentiles, rates and outcomes of what has passed within an hour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.gateway.console.passed import Outcome, Passed

#: What is older is left out.
WINDOW_S: Final = 3_600.0


@dataclass(frozen=True)
class Spread:
    """Percentiles of some durations in milliseconds, by nearest rank; None of none.

    Args:
        number: how many there were.
        per_minute: the same, a minute.
    """

    number: int = 0
    per_minute: float = 0.0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, durations: Sequence[float], number: int, span_s: float) -> Spread:
        """The percentiles of durations of `number` events within `span_s` seconds."""
        ranked = sorted(durations)
        p50, p95, p99 = (_percentile(ranked, share) for share in (50, 95, 99))
        return cls(number, number / max(span_s, 1.0) * 60, p50, p95, p99)


@dataclass(frozen=True)
class Figures:
    """What has passed within the time that is known of.

    Args:
        span_s: that time.
        searches: from push to answer.
        messages: from publish to indexed.
        replies: from the question for memories to the reply.
        outcomes: of searches.
    """

    span_s: float = 0.0
    searches: Spread = field(default_factory=Spread)
    messages: Spread = field(default_factory=Spread)
    replies: Spread = field(default_factory=Spread)
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)


def figures_of(passed: Iterable[Passed], now: float, since: float) -> Figures:
    """The figures of rows.

    Args:
        passed: those of the last hour.
        now: in seconds since 1970.
        since: the time of which all is known.
    """
    span_s = max(0.0, min(WINDOW_S, now - since))
    durations: dict[str, list[float]] = {"search": [], "message": [], "reply": [], "change": []}
    numbers: Counter[str] = Counter()
    outcomes: Counter[Outcome] = Counter()
    for row in passed:
        numbers[row.kind] += 1
        if row.total_ms is not None:
            durations[row.kind].append(row.total_ms)
        if row.kind == "search":
            outcomes[row.outcome] += 1
    spreads = {kind: Spread.of(durations[kind], numbers[kind], span_s) for kind in durations}
    return Figures(span_s, spreads["search"], spreads["message"], spreads["reply"], outcomes)


def _percentile(ranked: Sequence[float], share: int) -> float | None:
    """The smallest value that `share` per cent do not exceed."""
    return ranked[max(0, -(-len(ranked) * share // 100) - 1)] if ranked else None
