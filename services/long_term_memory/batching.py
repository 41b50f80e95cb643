"""Group commit: what several threads want done at the same time is done at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from keepsake_client.errors import Unavailable

T = TypeVar("T")


class _PendingItem(Generic[T]):
    """One thread's item, and what became of it."""

    def __init__(self, item: T) -> None:
        self.item = item
        self.settled = False
        self.error: Exception | None = None

    def settle(self, error: Exception | None = None) -> None:
        self.settled, self.error = True, error


class Batcher(Generic[T]):
    """Does items one batch at a time. Whoever comes meanwhile waits, and the next one of them does all that wait.

    Args:
        do: does a batch, or raises and has done none of it.
        most: items in a batch.
    """

    def __init__(self, do: Callable[[list[T]], object], most: int) -> None:
        self._do = do
        self._most = most
        self._waiting: list[_PendingItem[T]] = []
        self._guard = threading.Lock()
        self._turn = threading.Lock()

    def __call__(self, item: T) -> None:
        """Have the item done, by this thread or another, and return when it is.

        Raises:
            whatever `do` raises for this item alone, or `Unavailable` for the batch that it was in.
        """
        wish = _PendingItem(item)
        with self._guard:
            self._waiting.append(wish)
        try:
            while not wish.settled:
                with self._turn:
                    if not wish.settled:
                        self._work_off()
        finally:
            with self._guard:  # a time limit, say: the others are not to do it without us
                if wish in self._waiting:
                    self._waiting.remove(wish)
        if wish.error:
            raise wish.error

    def _work_off(self) -> None:
        with self._guard:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        try:
            self._settle(batch)
        finally:
            with self._guard:  # interrupted: whose they are, they do them
                self._waiting = [wish for wish in batch if not wish.settled] + self._waiting

    def _settle(self, batch: list[_PendingItem[T]]) -> None:
        try:
            self._do([wish.item for wish in batch])
        except Unavailable as error:
            for wish in batch:
                wish.settle(error)
        except Exception as error:  # noqa: BLE001 - raised in the thread whose item it is
            if len(batch) == 1:
                batch[0].settle(error)
                return
            for wish in batch:  # it may be one of them that cannot be done
                self._settle([wish])
        else:
            for wish in batch:
                wish.settle()
