"""A search that is short of time looks at words alone, and those after it look at meaning again."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from services.long_term_memory import memory_service
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.store import Conversation

BUDGET_S = 0.8


class Clock:
    """Time that passes only where an embedding takes it."""

    def __init__(self) -> None:
        self.now = 1_712_345_678.0
        self.embedding_s = 0.01

    def embed(self, text: str, action: str) -> list[float]:
        self.now += self.embedding_s
        return [1.0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(time=lambda: clock.now, perf_counter=lambda: clock.now, monotonic=time.monotonic)
    monkeypatch.setattr(memory_service, "time", fake)
    return clock


@pytest.fixture
def looks_at_words_alone(clock: Clock) -> Callable[[str], bool]:
    """Searches an empty conversation within the budget, and says whether it was partial."""
    empty: dict[str, Any] = {name: np.empty(0, np.int64) for name in Conversation.__slots__}
    store = SimpleNamespace(conversation=lambda *_: Conversation(**empty), payloads=lambda *_: {})
    mem0 = SimpleNamespace(embedding_model=SimpleNamespace(embed=clock.embed))
    service = MemoryService(cast(Any, mem0), cast(Any, store))
    return lambda query: service.search("u1", query, deadline=clock.now + BUDGET_S).partial


def test_a_search_without_time_for_meaning_says_so(clock: Clock, looks_at_words_alone: Callable[[str], bool]) -> None:
    """Given embeddings that take longer than the budget, I expect searches to do without."""
    clock.embedding_s = 3.0

    assert [looks_at_words_alone(f"slow {number}") for number in range(3)] == [False, True, True]


@pytest.mark.parametrize(("stopped_s", "most"), [(1.2, 3), (15.0, 20)])
def test_one_slow_embedding_is_not_the_last(
    clock: Clock, looks_at_words_alone: Callable[[str], bool], stopped_s: float, most: int
) -> None:
    """Given embeddings that took long, as on a stopped process, I expect meaning to be looked at again soon."""
    clock.embedding_s = stopped_s
    for number in range(3):
        looks_at_words_alone(f"slow {number}")
    clock.embedding_s = 0.01

    partial = [looks_at_words_alone(f"quick {number}") for number in range(60)]

    assert sum(partial) <= most
    assert not any(partial[most:])
