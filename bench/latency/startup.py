"""Start-up time of a cold stack, and its memory.

`python -m bench.latency.startup [--times N] [--without NAME] [--json PATH]`

Cold means a new database cluster and an empty Redis in a temporary directory. The operating system may still have the
files in its cache; the first start after an installation also compiles Python's modules. The whole stack, with the
memory and chat services, then stays idle for --idle-seconds before its memory is read: RSS counts shared pages in every
process, PSS divides them among the processes, USS leaves them out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.harness.memory_usage import memory_by_process
from bench.harness.stack import running_stack
from bench.harness.tables import show, track, write_json


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--idle-seconds", type=float, default=10.0)
    parser.add_argument("--without", action="append", default=[], help="a process to leave out; repeatable")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    ready: list[float] = []
    memory: dict[str, dict[str, float]] = {}
    for number in track(range(given.times), "starting"):
        with running_stack(without=given.without) as stack:
            ready.append(stack.ltm_up.ready_s)
            if number == given.times - 1:
                time.sleep(given.idle_seconds)
                memory = memory_by_process(stack)
    show("ready", {"seconds": {f"start {n}": s for n, s in enumerate(ready, 1)}}, 1)
    show("the idle stack, megabytes", memory, 0)
    reached = "yes" if max(ready) <= 15 else "NO "
    text = f"\nTargets\n{reached:<4} a cold `ltm up --ephemeral` is ready: {max(ready):.1f} s (target: <= 15 s)"
    Console(soft_wrap=True).print(text, markup=False, highlight=False)
    figures: dict[str, Any] = {"ready_s": ready, "memory_mb": memory}
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
