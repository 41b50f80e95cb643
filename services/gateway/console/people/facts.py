"""FactPages: the facts of a user and those that others have replaced, as one list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal

from keepsake_client.protocol import LTMResponse, Memory

FactKind = Literal["fact", "superseded"]
#: Facts on a page.
PAGE: Final = 50
Fetch = Callable[[FactKind, str | None], Awaitable[LTMResponse]]


class _Source:
    """One of the lists that are merged, as far as it was read."""

    def __init__(self, kind: FactKind) -> None:
        self.kind = kind
        self.cursor: str | None = None
        self.is_read = False
        self.ahead: list[Memory] = []

    async def read(self, fetch: Fetch) -> None:
        """Read the next page where nothing is ahead."""
        while not self.ahead and not self.is_read:
            page = await fetch(self.kind, self.cursor)
            self.ahead, self.cursor = list(page.memories), page.next_cursor
            self.is_read = page.next_cursor is None


class FactPages:
    """Pages of several lists of facts, merged by time, newest first.

    Args:
        fetch: a page of one list.
        kinds: the lists.
    """

    def __init__(self, fetch: Fetch, kinds: Sequence[FactKind] = ("fact", "superseded")) -> None:
        self._fetch = fetch
        self._sources = [_Source(kind) for kind in kinds]

    async def next(self) -> list[tuple[FactKind, Memory]]:
        """The next facts, each with the list that it is of."""
        facts: list[tuple[FactKind, Memory]] = []
        while len(facts) < PAGE:
            for source in self._sources:
                await source.read(self._fetch)
            filled = [source for source in self._sources if source.ahead]
            if not filled:
                break
            newest = max(filled, key=lambda source: source.ahead[0].timestamp)
            facts.append((newest.kind, newest.ahead.pop(0)))
        return facts

    @property
    def has_more(self) -> bool:
        """Whether more follow."""
        return any(source.ahead or not source.is_read for source in self._sources)
