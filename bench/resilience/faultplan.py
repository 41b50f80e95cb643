"""What is done to the stack, to whom and when: a schedule that its seed decides."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from services.stack.processes import ADAPTERS, INDEXER, MEMORY, POSTGRES, REDIS, WORKER, WRITER

#: child: the process that a Dramatiq master started. main: the one that the supervisor started.
Kind = Literal["kill child", "kill", "restart", "freeze", "away"]

#: What a run lasts by default, and what one that lasts less has less of.
SECONDS = 180.0
WORKERS = (WORKER, WRITER, INDEXER)
ADAPTERS_STOP_S = 20.0
WORKER_STOP_S = 15.0
#: Before the first fault and after each, in parts of what is left for all of them.
FIRST_GAP = 0.5


@dataclass(frozen=True)
class Fault:
    """One thing that is done.

    Args:
        at: when it begins, in seconds after the beginning of the load.
        kind: "kill child" and "kill" are SIGKILL; "restart" is the signal that ends a server in good order, after which
            the supervisor starts it again; "freeze" is SIGSTOP, and SIGCONT after `seconds`; "away" is SIGKILL, with
            nobody to start it again for `seconds`.
    """

    at: float
    kind: Kind
    target: str
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.0f} s" if self.seconds else ""
        return f"{self.kind} {self.target}{lasting}"


def schedule(seed: int, seconds: float = SECONDS) -> list[Fault]:
    """Every fault once, in an order that the seed decides, spread evenly over the length of the run."""
    rng = random.Random(seed)
    scale = min(1.0, seconds / SECONDS)
    deeds: list[tuple[Kind, str, float]] = [("kill child", name, 0.0) for name in WORKERS]
    deeds += [("kill", name, 0.0) for name in (*WORKERS, ADAPTERS, MEMORY, REDIS, POSTGRES)]
    deeds += [("restart", REDIS, 0.0), ("restart", POSTGRES, 0.0)]
    deeds += [("freeze", ADAPTERS, ADAPTERS_STOP_S), ("away", ADAPTERS, ADAPTERS_STOP_S)]
    deeds += [("freeze", rng.choice(WORKERS), WORKER_STOP_S)]
    rng.shuffle(deeds)
    gap = (seconds - sum(lasting for *_, lasting in deeds) * scale) / (len(deeds) + FIRST_GAP)
    faults, at = [], gap * FIRST_GAP
    for kind, target, lasting in deeds:
        faults.append(Fault(at, kind, target, lasting * scale))
        at += lasting * scale + gap
    return faults
