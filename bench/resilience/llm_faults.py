"""An LLM that misbehaves on a schedule: it is well and at fault by turns, in an order that a seed decides."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Final

from bench.harness.llm_server import RULES, Behaviour, Cut, Exchange, Hang, LLMServer, Status
from bench.harness.wrong_answers import UNUSABLE


class Rubbish:
    """A server that gives each unusable answer in turn."""

    def __init__(self, answers: Sequence[Behaviour] = tuple(UNUSABLE.values())) -> None:
        self._answers = answers
        self._number = count()

    def serve(self, exchange: Exchange) -> None:
        """Send the next one."""
        self._answers[next(self._number) % len(self._answers)].serve(exchange)


#: By what is said of them.
FAULTS: Final[Mapping[str, Callable[[], Behaviour]]] = {
    "hangs": Hang,
    "answers 401": lambda: Status(401),
    "answers 503": lambda: Status(503),
    "answers rubbish": Rubbish,
    "closes connections": Cut,
}


class LLMFaults(threading.Thread):
    """A thread that has the server misbehave in each way once, for as long as it is well between two of them.

    Args:
        seconds: how long all of them take together; the server is well after that.
    """

    def __init__(self, server: LLMServer, seed: int, seconds: float) -> None:
        super().__init__(name="llm-faults", daemon=True)
        self._server = server
        self._order = random.Random(seed).sample(list(FAULTS), len(FAULTS))
        self._each_s = seconds / (2 * len(FAULTS) + 1)
        self._stopped = threading.Event()
        self.calls_at_fault = 0

    def well(self) -> bool:
        """Whether it answers."""
        return self._server.behaviour is RULES

    def run(self) -> None:
        begun = time.monotonic()
        for name in self._order:
            if self._stopped.wait(self._each_s):
                return
            self._server.behaviour, calls = FAULTS[name](), self._server.calls
            print(f"  {time.monotonic() - begun:6.1f} s  the LLM {name} for {self._each_s:.0f} s", flush=True)
            self._stopped.wait(self._each_s)
            self._server.behaviour = RULES
            self.calls_at_fault += self._server.calls - calls

    def stop(self) -> None:
        """End the thread; the server is well after that."""
        self._stopped.set()
        self.join()
