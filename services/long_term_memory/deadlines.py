"""The deadline budget of a search, and estimates of how long its parts take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.runtime.errors import Expired

#: A part of a search is skipped where less time is left than this many times its estimate: two concurrent searches take
#: twice as long, and under a burst an embedding of 29 ms at the median took 63 at p99.
SAFETY_FACTOR: Final = 2.5
#: The weight of the latest measurement in the moving average.
SMOOTHING: Final = 0.2
#: What remains of an estimate each time that it made a search skip a part: without new measurements it would stay high
#: for ever.
DECAY: Final = 0.8


class LatencyEstimate:
    """An exponentially weighted moving average (EWMA) of the seconds that one part of a search takes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def record(self, seconds: float) -> None:
        """Add a measurement."""
        self.seconds += SMOOTHING * (seconds - self.seconds)

    def decay(self) -> None:
        """Lower the estimate: the part was skipped because of it."""
        self.seconds *= DECAY


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time that a search has.

    Args:
        at: seconds since 1970; None for no deadline.
        clock: the time in seconds since 1970.
    """

    at: float | None
    clock: Callable[[], float] = time.time

    def left_s(self, stage: str) -> float:
        """The seconds left before the deadline, more than 0.

        Args:
            stage: what the search has come to, for the error.

        Raises:
            Expired: the deadline has passed.
        """
        left = math.inf if self.at is None else self.at - self.clock()
        if left <= 0:
            raise Expired(f"the search {stage} {abs(left) * 1000:.0f} ms after its deadline")
        return left
