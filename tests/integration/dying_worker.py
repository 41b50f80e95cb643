"""`tasks.worker`, but that a message of the text "poison" kills the process that runs it."""

from __future__ import annotations

import os
import signal
from typing import Any

import dramatiq

import tasks.worker

assert tasks.worker

_index = dramatiq.get_broker().get_actor("memory.index")
_run = _index.fn


def run(update: dict[str, Any]) -> Any:
    if update["content"] == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return _run(update)


_index.fn = run
