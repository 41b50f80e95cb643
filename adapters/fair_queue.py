"""Fairness between users: a backlog of one user does not delay the others."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A round-robin queue: each user in turn yields one item, oldest first."""

    def __init__(self) -> None:
        self._items: dict[str, deque[T]] = {}
        self._users: deque[str] = deque()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, user: str, item: T) -> None:
        """Append an item of this user."""
        if user not in self._items:
            self._items[user] = deque()
            self._users.append(user)
        self._items[user].append(item)
        self._length += 1

    def peek(self) -> T:
        """The next item; it stays."""
        return self._items[self._users[0]][0]

    def pop(self) -> T:
        """Remove the next item; its user's next one comes after one of every other user."""
        user = self._users.popleft()
        items = self._items[user]
        item = items.popleft()
        if items:
            self._users.append(user)
        else:
            del self._items[user]
        self._length -= 1
        return item

    def clear(self) -> None:
        """Remove all items."""
        self._items.clear()
        self._users.clear()
        self._length = 0
