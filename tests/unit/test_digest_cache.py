"""The cache of what is computed from texts: bounded, least recently used first, and without the texts themselves."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from services.long_term_memory.digest_cache import cached_by_digest

Cached = Callable[..., int]


@pytest.fixture
def computed() -> list[str]:
    """The texts that were computed, in order."""
    return []


@pytest.fixture
def length(computed: list[str]) -> Cached:
    """The length of a text, cached of two."""

    @cached_by_digest(2)
    def length(text: str, factor: int = 1) -> int:
        computed.append(text)
        return len(text) * factor

    return length


def test_a_text_is_computed_once(length: Cached, computed: list[str]) -> None:
    assert [length("Porto"), length("Porto")] == [5, 5]
    assert computed == ["Porto"]


def test_what_else_is_given_tells_one_value_from_another(length: Cached) -> None:
    """Given the same text with another factor, by place or by name, I expect another value."""
    assert [length("Porto"), length("Porto", 2), length("Porto", factor=3)] == [5, 10, 15]


def test_the_text_that_was_used_longest_ago_is_forgotten_first(length: Cached, computed: list[str]) -> None:
    """Given a cache of two, a third text takes the place of that which was not asked for since."""
    for text in ("Porto", "Lisbon", "Porto", "Faro", "Porto", "Lisbon"):
        length(text)
    assert computed == ["Porto", "Lisbon", "Faro", "Lisbon"]


def test_a_text_is_not_kept(length: Cached, computed: list[str]) -> None:
    """Given a text that was computed, I expect that nothing but its caller still refers to it."""
    text = " ".join(["a text", "of its own"])
    length(text)
    computed.clear()
    assert gc.get_referrers(text) == []
