"""Batcher: group commit. Items that several threads submit at the same time are processed in one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

from keepsake_client.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")


class _PendingItem(Generic[T, R]):
    """One thread's item, and its outcome."""

    def __init__(self, item: T) -> None:
        self.item = item
        self.completed = False
        self.result: R | None = None
        self.error: Exception | None = None

    def complete(self, result: R | None = None, error: Exception | None = None) -> None:
        self.completed, self.result, self.error = True, result, error


class Batcher(Generic[T, R]):
    """Processes items one batch at a time. Items that arrive meanwhile wait; one of their threads processes them all.

    Args:
        process: processes a batch and returns its results, one for each item; where it raises, nothing of the batch has
            been done.
        max_items: items in a batch at most.
    """

    def __init__(self, process: Callable[[list[T]], Sequence[R]], max_items: int) -> None:
        self._process = process
        self._max_items = max_items
        self._pending: list[_PendingItem[T, R]] = []
        self._pending_lock = threading.Lock()
        self._batch_lock = threading.Lock()

    def __call__(self, item: T) -> R:
        """Process an item, on this thread or another, and return its result when it is done.

        Raises:
            Exception: whatever `process` raises for this item alone, or `Unavailable` for the batch that it was in.
        """
        pending: _PendingItem[T, R] = _PendingItem(item)
        with self._pending_lock:
            self._pending.append(pending)
        try:
            while not pending.completed:
                with self._batch_lock:
                    if not pending.completed:
                        self._process_batch()
        finally:
            with self._pending_lock:  # interrupted, by a time limit for example: other threads must not process it
                if pending in self._pending:
                    self._pending.remove(pending)
        if pending.error:
            raise pending.error
        return cast(R, pending.result)

    def _process_batch(self) -> None:
        with self._pending_lock:
            batch, self._pending = self._pending[: self._max_items], self._pending[self._max_items :]
        try:
            self._complete(batch)
        finally:
            with self._pending_lock:  # interrupted: the other threads process their items themselves
                self._pending = [pending for pending in batch if not pending.completed] + self._pending

    def _complete(self, batch: list[_PendingItem[T, R]]) -> None:
        try:
            results = self._process([pending.item for pending in batch])
        except Unavailable as error:
            for pending in batch:
                pending.complete(error=error)
        except Exception as error:  # noqa: BLE001 - raised in the thread that submitted the item
            if len(batch) == 1:
                batch[0].complete(error=error)
                return
            for pending in batch:  # one of them may be the cause: each alone
                self._complete([pending])
        else:
            for pending, result in zip(batch, results, strict=True):
                pending.complete(result)
