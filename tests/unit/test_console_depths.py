"""The depths of queues that the console samples, and their courses."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, cast

import pytest

from services.gateway.console.depths import KEPT_S, POINTS, DepthSampler, Sample, course, depths_of, line_of
from services.runtime.stack_metrics import StackFigures, StackReader

NOW = 1_700_000_000.0


class Reader:
    """A StackReader whose figures the test sets."""

    def __init__(self) -> None:
        self.reads = 0
        self.of: StackFigures | Exception = StackFigures(up=True, backlog=3, oldest_s=1.5)

    async def read(self) -> StackFigures:
        self.reads += 1
        if isinstance(self.of, Exception):
            raise self.of
        return self.of


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def sampler(reader: Reader, clock: Clock, failures: list[int] | None = None) -> DepthSampler:
    count = [] if failures is None else failures
    return DepthSampler(cast(StackReader, reader), lambda: count.append(1), clock)


def test_pages_that_are_opened_at_once_share_one_sample() -> None:
    """Given ten pages that are opened within a second, I expect Redis to be read once."""
    reader, clock = Reader(), Clock()
    depths = sampler(reader, clock)

    async def story() -> None:
        await asyncio.gather(*(depths.refresh() for _ in range(10)))

    asyncio.run(story())

    assert (reader.reads, len(depths.samples)) == (1, 1)


def test_an_hour_of_samples_is_kept() -> None:
    """Given samples over two hours, I expect those of the last hour."""
    reader, clock = Reader(), Clock()
    depths = sampler(reader, clock)

    async def story() -> None:
        for _ in range(2 * KEPT_S // 5):
            clock.now += 5
            await depths.refresh()

    asyncio.run(story())

    assert clock.now - depths.samples[0].at == pytest.approx(KEPT_S, abs=5)


def test_sampling_goes_on_after_a_fault() -> None:
    """Given a reader that fails once, I expect the fault to be counted, and the loop to go on."""
    reader, failures = Reader(), list[int]()
    reader.of = RuntimeError("broken")
    depths = sampler(reader, Clock(), failures)

    async def story() -> None:
        depths.start()
        while not failures:
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 2
        await depths.close()

    asyncio.run(story())

    assert failures == [1]


def test_sampling_ends_though_a_read_swallows_the_first_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a read that goes on when it is cancelled, as redis-py's may, I expect the end of the task."""
    reader = Reader()
    depths = sampler(reader, Clock())

    async def story() -> None:
        reading = asyncio.Event()

        async def read() -> StackFigures:
            reading.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return StackFigures()

        monkeypatch.setattr(reader, "read", read)
        depths.start()
        await reading.wait()
        await asyncio.wait_for(depths.close(), 30)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(story())


def test_a_counter_is_compared_with_the_oldest_sample() -> None:
    """Given a counter that grew from 3 to 5, and one that is new, I expect 2, and all of the new one."""
    reader, clock = Reader(), Clock()
    depths = sampler(reader, clock)

    async def story() -> None:
        for counters in ({"rejected": 3}, {"rejected": 5, "updates_lost": 1}):
            reader.of = StackFigures(up=True, counters=counters)
            clock.now += 5
            await depths.refresh()

    asyncio.run(story())

    assert depths.counted_within_hour() == {"rejected": 2, "updates_lost": 1}


def test_what_cannot_be_read_is_no_depth() -> None:
    """Given figures without a backlog, I expect no depth of that name, and the others."""
    states = {"waiting": 2, "working": 1, "delayed": 0, "dead": 4}
    figures = StackFigures(up=True, lists={"requests": 7}, queues={"index": states})

    assert depths_of(figures) == {"list:requests": 7, "queue:index": 2, "dead:index": 4}


def at(minutes_ago: float, **depths: float) -> Sample:
    return Sample(NOW - 60 * minutes_ago, dict(depths))


def test_a_course_shows_the_most_of_each_part_of_the_hour() -> None:
    """Given three samples within one minute and one at the end, I expect the highest of the three, and the last."""
    samples = [at(30.1, backlog=5), at(30.05, backlog=9), at(30.02, backlog=2), at(0, backlog=1)]

    points = course(samples, "backlog", NOW)

    assert [point for point in points if point is not None] == [9, 1]
    assert points[-1] == 1


@pytest.mark.parametrize(
    ("points", "path"),
    [
        ([None, None, None], ""),
        ([0.0, 0.0, 0.0, 0.0], "M0 10.0L30 10.0"),
        ([0.0, 4.0, 2.0, 2.0], "M0 10.0L10 0.0L20 5.0L30 5.0"),
        ([2.0, None, 1.0, 2.0], "M0 0.0h7.5M20 5.0L30 0.0"),
    ],
)
def test_a_course_is_drawn_as_one_path(points: list[Any], path: str) -> None:
    """Given points, I expect level stretches as one line, a dash for a point alone, and gaps for what was not read."""
    assert line_of(points, 30, 10) == path


def test_an_hour_at_rest_is_a_short_path() -> None:
    """Given an hour of zeros, I expect two points: it is sent to every page that is open."""
    samples = [at(seconds / 60, backlog=0) for seconds in range(KEPT_S, 0, -5)]

    assert line_of(course(samples, "backlog", NOW), 240, 24).count("L") == 1
    assert len(course(samples, "backlog", NOW)) == POINTS
