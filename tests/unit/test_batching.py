"""What several threads want at the same time is done at once, and each hears what became of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from keepsake_client.errors import Unavailable

from services.long_term_memory.batching import Batcher
from tests.support import wait_until


class Store:
    """Takes batches, and its time for the first until it is let go on."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.breaks: Callable[[list[str]], BaseException | None] = lambda _: None

    def keep(self, batch: list[str]) -> None:
        self.batches.append(batch)
        self.begun.set()
        assert self.go_on.wait(10)
        if error := self.breaks(batch):
            raise error


class Threads:
    """Threads that want something kept while the store is busy with "first"."""

    def __init__(self, store: Store, most: int = 16) -> None:
        self.store = store
        self._together = Batcher(store.keep, most)
        self._pool = ThreadPoolExecutor(8)
        self.first = self._pool.submit(self._together, "first")
        assert store.begun.wait(10)

    def want(self, *items: str) -> list[Future[None]]:
        """In this order."""
        wanted = []
        for number, item in enumerate(items, 1):
            wanted.append(self._pool.submit(self._together, item))
            wait_until(lambda: len(self._together._waiting) == number, 10, "a thread to wait")  # noqa: B023
        return wanted

    def outcomes(self, wanted: list[Future[None]]) -> list[BaseException | None]:
        """What each heard, once the store goes on."""
        self.store.go_on.set()
        outcomes = [one.exception(10) for one in [self.first, *wanted]]
        self._pool.shutdown()
        return outcomes


@pytest.fixture
def store() -> Store:
    return Store()


def test_what_comes_meanwhile_is_done_at_once(store: Store) -> None:
    """Given three threads that come while one is at work, I expect one batch of theirs, in their order."""
    threads = Threads(store)

    assert threads.outcomes(threads.want("a", "b", "c")) == [None] * 4
    assert store.batches == [["first"], ["a", "b", "c"]]


def test_no_batch_is_larger_than_it_may_be(store: Store) -> None:
    """Given five and room for two, I expect three batches."""
    threads = Threads(store, most=2)

    assert threads.outcomes(threads.want("a", "b", "c", "d", "e")) == [None] * 6
    assert store.batches == [["first"], ["a", "b"], ["c", "d"], ["e"]]


def test_what_cannot_be_done_fails_alone(store: Store) -> None:
    """Given one of three that breaks its batch, I expect the others done, and its own thread told."""
    broken = ValueError("b")
    store.breaks = lambda batch: broken if "b" in batch else None
    threads = Threads(store)

    assert threads.outcomes(threads.want("a", "b", "c")) == [None, None, broken, None]
    assert store.batches == [["first"], ["a", "b", "c"], ["a"], ["b"], ["c"]]


def test_a_server_that_is_away_is_not_asked_again_for_each(store: Store) -> None:
    """Given a batch that finds the database away, I expect all of it told so, after one try."""
    away = Unavailable("PostgreSQL does not answer")
    store.breaks = lambda batch: away if "a" in batch else None
    threads = Threads(store)

    assert threads.outcomes(threads.want("a", "b")) == [None, away, away]
    assert store.batches == [["first"], ["a", "b"]]


class TimeLimit(BaseException):
    """What interrupts a thread at any line."""


def test_who_is_interrupted_leaves_the_others_theirs(store: Store) -> None:
    """Given a thread that is interrupted at a batch of three, I expect the other two done, and its own not."""
    limits = [TimeLimit()]
    store.breaks = lambda batch: limits.pop() if "a" in batch and limits else None
    threads = Threads(store)

    outcomes = threads.outcomes(threads.want("a", "b", "c"))

    interrupted = [item for item, outcome in zip("abc", outcomes[1:], strict=True) if outcome is not None]
    assert len(interrupted) == 1
    assert [type(outcome) for outcome in outcomes if outcome] == [TimeLimit]
    assert store.batches == [["first"], ["a", "b", "c"], [item for item in "abc" if item not in interrupted]]
