"""Batcher: what several threads submit at the same time is processed in one batch (group commit)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, NamedTuple, TypeVar
from weakref import finalize

from keepsake_client.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")


class _Submitted(NamedTuple, Generic[T, R]):
    """One thread's item, and its outcome."""

    item: T
    outcome: Future[R]


class Batcher(Generic[T, R]):
    """Processes items one batch at a time on each of its threads. What is submitted meanwhile is the next batch.

    On threads of its own, which go on with the next batch at once. Where the threads that submit took turns instead,
    a third of the time passed from one batch to the next: each of them waited for the lock of the others, and Python's.

    Args:
        process: processes a batch and returns its results, one for each item; where it raises, nothing of the batch has
            been done.
        max_items: items in a batch at most.
        threads: how many batches are processed at the same time.
    """

    def __init__(self, process: Callable[[list[T]], Sequence[R]], max_items: int, threads: int = 1) -> None:
        self._submitted: SimpleQueue[_Submitted[T, R] | None] = SimpleQueue()
        # Not of an executor, whose threads are waited for when the process ends, until an embedder that hangs answers.
        for _ in range(threads):
            arguments = self._submitted, process, max_items
            Thread(target=_process_batches, args=arguments, name="batcher", daemon=True).start()
        finalize(self, _end, self._submitted, threads).atexit = False

    def __call__(self, item: T) -> R:
        """Process an item and return its result.

        Raises:
            Exception: whatever `process` raises for this item alone, or `Unavailable` for the batch that it was in.
        """
        submitted: _Submitted[T, R] = _Submitted(item, Future())
        self._submitted.put(submitted)
        return submitted.outcome.result()


def _end(submitted: SimpleQueue[_Submitted[T, R] | None], threads: int) -> None:
    """Have the threads end, one for each None."""
    for _ in range(threads):
        submitted.put(None)


def _process_batches(
    submitted: SimpleQueue[_Submitted[T, R] | None], process: Callable[[list[T]], Sequence[R]], max_items: int
) -> None:
    """Process what is submitted until a None comes. No method: a thread that knew its batcher would keep it alive."""
    while (first := submitted.get()) is not None:
        batch = [first]
        with suppress(Empty):
            while len(batch) < max_items and (following := submitted.get_nowait()):
                batch.append(following)
        _complete(batch, process)


def _complete(batch: list[_Submitted[T, R]], process: Callable[[list[T]], Sequence[R]]) -> None:
    try:
        results = process([submitted.item for submitted in batch])
        outcomes = list(zip(batch, results, strict=True))
    except Unavailable as error:
        for submitted in batch:
            submitted.outcome.set_exception(error)
    except BaseException as error:  # noqa: BLE001 - raised in the thread that submitted the item
        if len(batch) == 1:
            batch[0].outcome.set_exception(error)
            return
        for submitted in batch:  # one of them may be the cause: each alone
            _complete([submitted], process)
    else:
        for submitted, result in outcomes:
            submitted.outcome.set_result(result)
