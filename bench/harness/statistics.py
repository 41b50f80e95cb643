"""Statistics of measured values: quantiles, means, and the time that a call takes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

#: The quantiles that most tables show.
SHARES = (0.5, 0.95, 0.99)


def quantile(values: Iterable[float], share: float) -> float:
    """The nearest-rank quantile: the smallest value such that at least `share` of all values are less or equal.

    That is the value of rank ceil(share * n) of n, counted from 1 (Hyndman & Fan 1996, "Sample Quantiles in
    Statistical Packages", type 1). It is always one of the values: of 1 to 100, the 0.95 quantile is 95.

    Args:
        share: from 0 to 1; 0 is the minimum, 1 the maximum.

    Returns:
        NaN without values: a table shows that nothing was measured.
    """
    ordered = sorted(values)
    if not ordered:
        return math.nan
    # 0.07 * 100 is slightly more than 7 in floating point, and rank 7 is meant.
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def percentiles(values: Iterable[float], shares: Sequence[float] = SHARES) -> dict[str, float]:
    """Quantiles by their usual names: p50, p95, p99."""
    ordered = sorted(values)
    return {f"p{share * 100:g}": quantile(ordered, share) for share in shares}


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; NaN without values."""
    return statistics.fmean(values) if values else math.nan


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The result of a call, and how long it took in milliseconds."""
    begin = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - begin) * 1000
