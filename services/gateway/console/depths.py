"""DepthSampler: samples how much waits in the stack, for an hour, for all pages of the console."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import structlog
from keepsake_client.cancellation import cancel_all

from services.runtime.stack_metrics import StackFigures, StackReader

INTERVAL_S: Final = 5.0
KEPT_S: Final = 3_600
#: A sample that is no older serves a page that is opened.
FRESH_S: Final = 1.0
#: Points of a course: each is the most within so many seconds.
POINTS: Final = 120
#: Of the chart of a course.
WIDTH: Final = 240
HEIGHT: Final = 24

log = structlog.get_logger()


@dataclass(frozen=True)
class Sample:
    """The figures of one moment.

    Args:
        at: in seconds since 1970.
        depths: how much waits, by the names that `depths_of` gives; none of what could not be read.
        counters: of `ltm:counters`.
    """

    at: float
    depths: dict[str, float] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)


class Course(NamedTuple):
    """A depth over the last hour.

    Args:
        now: at the last sample; None where it was not read.
        line: the `d` of an SVG path, `WIDTH` by `HEIGHT`.
    """

    now: float | None
    most: float | None
    line: str


class DepthSampler:
    """Reads the figures of the stack at an interval, and keeps those of the last hour in memory.

    Args:
        count_failure: called where they could not be read by a fault, which is logged.
        clock: seconds since 1970.
    """

    def __init__(
        self, reader: StackReader, count_failure: Callable[[], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._reader = reader
        self._count_failure = count_failure
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._courses: dict[str, Course] = {}
        self._task: asyncio.Task[None] | None = None
        self.samples: deque[Sample] = deque(maxlen=int(KEPT_S / INTERVAL_S))
        self.figures = StackFigures()

    def start(self) -> None:
        """Sample at each interval, on the running loop, until `close`."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="depths")

    async def close(self) -> None:
        """End the sampling."""
        if self._task is not None:
            await cancel_all([self._task])

    async def _run(self) -> None:
        while True:
            try:
                await self.refresh()
            except Exception:
                # The next one may do better, and the gateway does not depend on it.
                log.exception("depths_failed")
                self._count_failure()
            await asyncio.sleep(INTERVAL_S)

    async def refresh(self, max_age_s: float = FRESH_S) -> None:
        """Take a sample, unless the last one is no older than this."""
        async with self._one_at_a_time:
            if self.samples and self._clock() - self.samples[-1].at < max_age_s:
                return
            self.figures = figures = await self._reader.read()
            counters = self.samples[-1].counters if self.samples else {}
            if figures.counters != counters:  # otherwise samples share one mapping
                counters = figures.counters
            self.samples.append(Sample(self._clock(), depths_of(figures), counters))
            self._courses.clear()

    def course(self, name: str) -> Course:
        """The course of a depth up to the last sample, which is drawn once for all pages."""
        if name not in self._courses and self.samples:
            points = course(self.samples, name, self.samples[-1].at)
            most = max((point for point in points if point is not None), default=None)
            self._courses[name] = Course(self.samples[-1].depths.get(name), most, line_of(points, WIDTH, HEIGHT))
        return self._courses.get(name, Course(None, None, ""))

    def counted_within_hour(self) -> dict[str, int]:
        """By how much each counter has grown since the oldest sample that has any."""
        oldest = next((sample.counters for sample in self.samples if sample.counters), {})
        return {name: max(0, number - oldest.get(name, 0)) for name, number in self.figures.counters.items()}


def depths_of(figures: StackFigures) -> dict[str, float]:
    """How much waits, by name: `backlog`, `oldest_s`, `list:NAME`, `queue:NAME` and `dead:NAME`."""
    depths = {"backlog": figures.backlog, "oldest_s": figures.oldest_s}
    depths |= {f"list:{name}": length for name, length in figures.lists.items()}
    depths |= {f"queue:{name}": states["waiting"] for name, states in figures.queues.items()}
    depths |= {f"dead:{name}": states["dead"] for name, states in figures.queues.items()}
    return {name: float(depth) for name, depth in depths.items() if depth is not None}


def course(samples: Iterable[Sample], name: str, now: float) -> list[float | None]:
    """The most of a depth in each of `POINTS` equal parts of the last hour, oldest first; None where none was read."""
    points: list[float | None] = [None] * POINTS
    for sample in samples:
        place = int((sample.at - (now - KEPT_S)) * POINTS / KEPT_S)
        depth = sample.depths.get(name)
        if depth is not None and 0 <= place <= POINTS:
            place = min(place, POINTS - 1)
            points[place] = max(depth, points[place] or 0.0)
    return points


def line_of(points: Sequence[float | None], width: int, height: int) -> str:
    """A course as the `d` of an SVG path, with gaps where nothing was read; the highest point reaches the top."""
    top = max((point for point in points if point is not None), default=0.0) or 1.0
    steps, drawn = [], False
    for place, point in enumerate(points):
        if point is None:
            drawn = False
            continue
        following = points[place + 1] if place + 1 < len(points) else None
        if drawn and points[place - 1] == point == following:
            continue  # within a level stretch
        x, y = place * width / (len(points) - 1), height - point * height / top
        steps.append(f"{'L' if drawn else 'M'}{x:.0f} {y:.1f}")
        if not drawn and following is None:
            steps.append(f"h{width / len(points):.1f}")  # a point alone is a dash
        drawn = True
    return "".join(steps)
