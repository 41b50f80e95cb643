"""Memory of this process, as the system can improve it: free blocks given back, weights on huge pages."""

from __future__ import annotations

import ctypes
import os
from array import array
from pathlib import Path

MAPS = Path("/proc/self/maps")
PAGEMAP = Path("/proc/self/pagemap")
HUGE_PAGE_BYTES = 2 << 20
MIN_IN_USE_BYTES = 3 * HUGE_PAGE_BYTES // 4
MADV_HUGEPAGE = 14
MADV_COLLAPSE = 25  # Linux 6.1; before it, the kernel collapses what is advised within a minute or so


def release_free_memory() -> None:
    """Give back to the system what the allocator holds free: 20 MB after a model was made. Only glibc can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def allocated_ranges() -> list[tuple[int, int]]:
    """Begin and end of each range of addresses that the allocator has from the system; none but on Linux."""
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        addresses, mode, _, _, inode, *name = line.split()
        if mode == "rw-p" and inode == "0" and (not name or name == ["[heap]"]):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            ranges.append((begin, end))
    return ranges


def use_huge_pages(since: list[tuple[int, int]]) -> int:
    """Put what was allocated `since` onto huge pages, where the kernel grants them; the number of bytes that are.

    The weights are read from end to end for every text. On pages of 4 KB a text took up to twice as long on a virtual
    machine, whose page tables are nested. A range with free parts is left as it is, for a huge page would fill them.

    Args:
        since: the allocated ranges of before.
    """
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is None:
        return 0
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = 0
    for begin, end in new_ranges(since, allocated_ranges()):
        for page in range(-(-begin // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES, end - HUGE_PAGE_BYTES + 1, HUGE_PAGE_BYTES):
            if _bytes_in_use(page, HUGE_PAGE_BYTES) >= MIN_IN_USE_BYTES:
                granted = [advise(page, HUGE_PAGE_BYTES, advice) == 0 for advice in (MADV_HUGEPAGE, MADV_COLLAPSE)]
                size += HUGE_PAGE_BYTES if all(granted) else 0
    return size


def _bytes_in_use(begin: int, size: int) -> int:
    """How much of a range of addresses has memory behind it."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    try:
        with PAGEMAP.open("rb") as pagemap:
            pagemap.seek(8 * begin // page_bytes)
            entries = array("Q", pagemap.read(8 * size // page_bytes))
    except OSError:
        return 0
    return page_bytes * sum(entry >> 63 for entry in entries)  # the highest bit of a page's entry: present


def new_ranges(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of the ranges that are in none of those before."""
    found = after
    for old_begin, old_end in before:
        found = [
            (begin, end)
            for new_begin, new_end in found
            for begin, end in ((new_begin, min(new_end, old_begin)), (max(new_begin, old_end), new_end))
            if begin < end
        ]
    return found
