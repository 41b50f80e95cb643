"""Group commit: items of concurrent threads are one batch, and each thread gets the outcome of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from keepsake_client.errors import Unavailable

from services.long_term_memory.batching import Batcher
from tests.support import wait_until


class Store:
    """Processes batches; blocks in the first until `go_on` is set."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.breaks: Callable[[list[str]], BaseException | None] = lambda _: None

    def keep(self, batch: list[str]) -> list[str]:
        self.batches.append(batch)
        self.begun.set()
        assert self.go_on.wait(10)
        if error := self.breaks(batch):
            raise error
        return [f"{item} kept" for item in batch]


class Threads:
    """Threads that submit items while the store is busy with "first"."""

    def __init__(self, store: Store, max_items: int = 16) -> None:
        self.store = store
        self.batcher = Batcher(store.keep, max_items)
        self._pool = ThreadPoolExecutor(8)
        self.first = self._pool.submit(self.batcher, "first")
        assert store.begun.wait(10)

    def submit(self, *items: str) -> list[Future[str]]:
        """Submit items in this order, each on a thread of its own."""
        submitted = []
        for number, item in enumerate(items, 1):
            submitted.append(self._pool.submit(self.batcher, item))
            wait_until(lambda: self.batcher._submitted.qsize() == number, description="a thread to wait")  # noqa: B023
        return submitted

    def outcomes(self, submitted: list[Future[str]]) -> list[BaseException | None]:
        """The error of each, "first" included, once the store goes on."""
        self.store.go_on.set()
        outcomes = [one.exception(10) for one in [self.first, *submitted]]
        self._pool.shutdown()
        return outcomes


@pytest.fixture
def store() -> Store:
    return Store()


def test_items_that_arrive_meanwhile_are_one_batch(store: Store) -> None:
    """Given three threads that come while one is at work, I expect their items in one batch, in their order."""
    threads = Threads(store)

    assert threads.outcomes(threads.submit("a", "b", "c")) == [None] * 4
    assert store.batches == [["first"], ["a", "b", "c"]]


def test_each_thread_gets_its_own_result(store: Store) -> None:
    """Given three threads whose items are one batch, I expect each to get the result of its item."""
    threads = Threads(store)
    submitted = threads.submit("a", "b", "c")

    assert threads.outcomes(submitted) == [None] * 4
    assert [one.result() for one in [threads.first, *submitted]] == ["first kept", "a kept", "b kept", "c kept"]


def test_no_batch_exceeds_its_maximum(store: Store) -> None:
    """Given five and room for two, I expect three batches."""
    threads = Threads(store, max_items=2)

    assert threads.outcomes(threads.submit("a", "b", "c", "d", "e")) == [None] * 6
    assert store.batches == [["first"], ["a", "b"], ["c", "d"], ["e"]]


def test_an_item_that_fails_fails_alone(store: Store) -> None:
    """Given one of three that breaks its batch, I expect the others done, and the error in its own thread."""
    broken = ValueError("b")
    store.breaks = lambda batch: broken if "b" in batch else None
    threads = Threads(store)

    assert threads.outcomes(threads.submit("a", "b", "c")) == [None, None, broken, None]
    assert store.batches == [["first"], ["a", "b", "c"], ["a"], ["b"], ["c"]]


def test_an_unavailable_server_is_not_retried_item_by_item(store: Store) -> None:
    """Given a batch that finds the database unreachable, I expect the error for all of it, after one attempt."""
    away = Unavailable("PostgreSQL does not answer")
    store.breaks = lambda batch: away if "a" in batch else None
    threads = Threads(store)

    assert threads.outcomes(threads.submit("a", "b")) == [None, away, away]
    assert store.batches == [["first"], ["a", "b"]]


def test_a_batch_of_the_wrong_size_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a store that returns no result for the last of its items, I expect errors, and the next batch processed."""
    keep = store.keep
    monkeypatch.setattr(store, "keep", lambda batch: keep(batch)[:-1] if "a" in batch else keep(batch))
    threads = Threads(store)

    outcomes = threads.outcomes(threads.submit("a", "b"))

    assert [type(outcome) for outcome in outcomes] == [type(None), ValueError, type(None)]


def test_an_interruption_is_raised_where_the_item_came_from(store: Store) -> None:
    """Given a store that is interrupted by one item, I expect that item to fail alone, and the next to be processed."""
    store.breaks = lambda batch: KeyboardInterrupt() if "a" in batch else None
    threads = Threads(store)

    outcomes = threads.outcomes(threads.submit("a", "b"))

    assert [type(outcome) for outcome in outcomes] == [type(None), KeyboardInterrupt, type(None)]


def test_a_batcher_that_is_gone_leaves_no_thread() -> None:
    """Given a batcher that nothing refers to any more, I expect its threads to end."""
    before = set(threading.enumerate())
    batcher: Batcher[str, str] = Batcher(list, 16, threads=3)
    assert batcher("a") == "a"
    own = set(threading.enumerate()) - before
    assert len(own) == 3

    del batcher

    wait_until(lambda: not any(thread.is_alive() for thread in own), description="the threads to end")
