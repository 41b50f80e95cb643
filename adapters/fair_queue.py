"""Fairness between users: whoever says much waits for himself, not the others for him."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of many users; each user in turn gives one, oldest first."""

    def __init__(self) -> None:
        self._items: dict[str, deque[T]] = {}
        self._turns: deque[str] = deque()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, user: str, item: T) -> None:
        """Add the user's newest item."""
        if user not in self._items:
            self._items[user] = deque()
            self._turns.append(user)
        self._items[user].append(item)
        self._length += 1

    def peek(self) -> T:
        """The item whose turn it is; it stays."""
        return self._items[self._turns[0]][0]

    def pop(self) -> T:
        """Take the item whose turn it is; its user's next one comes after everybody else's."""
        user = self._turns.popleft()
        items = self._items[user]
        item = items.popleft()
        if items:
            self._turns.append(user)
        else:
            del self._items[user]
        self._length -= 1
        return item

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]
