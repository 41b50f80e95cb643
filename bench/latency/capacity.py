"""The search for the highest rate that a system sustains."""

from __future__ import annotations

from collections.abc import Callable

#: A rate that is not sustained in the long run is lowered so many times, to this share of itself.
LONG_RUNS, LOWER_BY = 6, 0.93


def highest_rate(held: Callable[[float], bool], low: float, high: float, tolerance: float) -> float:
    """The highest sustained rate by bisection, to within `tolerance`, a share of it; 0 if `low` is not sustained.

    Args:
        held: whether a rate is sustained. If one is not, no higher one is assumed to be.
    """
    if not held(low):
        return 0.0
    if held(high):
        return high
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (middle, high) if held(middle) else (low, middle)
    return low


def lowered_until_held(held: Callable[[float], bool], rate: float) -> float:
    """The rate, lowered in steps until it is sustained; 0 if it is not after `LONG_RUNS` runs."""
    for _ in range(LONG_RUNS):
        if not rate or held(rate):
            return rate
        rate *= LOWER_BY
    return 0.0
