"""A first-in, first-out queue bounded by number and size, for what waits until Redis takes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

#: What one process keeps at most while it can write nothing: an hour at a dozen messages a second.
MAX_ITEMS = 50_000
MAX_BYTES = 32_000_000

T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """A queue that drops its oldest items beyond its bounds.

    Args:
        size: of an item, in bytes.
        max_items: how many items it holds at most.
        max_bytes: how large they are at most, in total.
    """

    def __init__(self, size: Callable[[T], int], max_items: int = MAX_ITEMS, max_bytes: int = MAX_BYTES) -> None:
        self._size = size
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: deque[T] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def append(self, item: T) -> int:
        """Add an item; how many old ones were dropped for it."""
        self._items.append(item)
        self._bytes += self._size(item)
        dropped = 0
        while len(self._items) > self._max_items or self._bytes > self._max_bytes:
            self.popleft()
            dropped += 1
        return dropped

    def peek(self) -> T:
        """The oldest item; it stays."""
        return self._items[0]

    def popleft(self) -> T:
        """Remove the oldest item."""
        item = self._items.popleft()
        self._bytes -= self._size(item)
        return item

    def retain(self, wanted: Callable[[T], bool]) -> None:
        """Remove the items that are not wanted; each is asked about once, oldest first."""
        self._items = deque(item for item in self._items if wanted(item))
        self._bytes = sum(map(self._size, self._items))
