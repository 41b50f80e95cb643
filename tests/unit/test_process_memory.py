"""Huge pages and free memory of a process."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from services.long_term_memory.embeddings.process_memory import (
    HUGE_PAGE_BYTES,
    allocated_ranges,
    new_ranges,
    release_free_memory,
    use_huge_pages,
)


def test_new_ranges_are_what_was_in_none_before() -> None:
    """Given ranges that grew at both ends, were split, or are new, I expect what was added."""
    before = [(10, 20), (40, 50)]
    after = [(5, 25), (40, 45), (60, 70)]

    assert new_ranges(before, after) == [(5, 10), (20, 25), (60, 70)]
    assert new_ranges(after, after) == []


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")
def test_what_is_put_on_huge_pages_stays_as_it_is() -> None:
    """Given an array made meanwhile, I expect its values, on huge pages or, where the kernel refuses, on others."""
    before = allocated_ranges()
    values = np.arange(4 << 20, dtype=np.float64)

    size = use_huge_pages(before)

    assert 0 <= size <= values.nbytes
    assert size % HUGE_PAGE_BYTES == 0
    assert (values == np.arange(4 << 20)).all()


def test_free_memory_can_be_released_anywhere() -> None:
    """Given any allocator, I expect no error."""
    release_free_memory()
