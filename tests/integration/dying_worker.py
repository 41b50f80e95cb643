"""`python -m tasks`, but that a message of the text "poison" kills the process that runs it."""

from __future__ import annotations

import os
import signal
from typing import Any

import dramatiq

import tasks.__main__ as entry
from services.runtime.metrics import NO_METRICS, Metrics
from tasks.composition import set_up


def set_up_to_die(metrics: Metrics = NO_METRICS) -> dramatiq.Broker:
    broker = set_up(metrics)
    index = broker.get_actor("memory.index")
    run = index.fn

    def run_or_die(update: dict[str, Any]) -> Any:
        if update["content"] == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return run(update)

    index.fn = run_or_die
    return broker


if __name__ == "__main__":
    entry.set_up = set_up_to_die  # type: ignore[attr-defined]
    entry.main()
