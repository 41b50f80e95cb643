"""The schedule of a fault run: which faults are injected into which processes, and when; decided by a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from services.stack.processes import ADAPTERS, EXTRACTOR, FORK_SERVER, INDEXER, MEMORY, POSTGRES, REDIS, WORKER, WRITER

KindOfProcess = Literal["kill child", "kill", "restart", "freeze", "outage", "cut", "half-open"]
KindOfHost = Literal["cut off", "cut off from postgres", "kill host", "slow down", "clock ahead", "clock behind"]
Kind = KindOfProcess | KindOfHost
#: Those that end no process.
HARMLESS: tuple[Kind, ...] = ("freeze", "cut", "half-open")

#: The default length of a run; in a shorter one, faults last less in proportion.
RUN_S = 240.0
WORKERS = (WORKER, WRITER, INDEXER)
ADAPTERS_STOP_S = 20.0
WORKER_STOP_S = 15.0
CUT_S = 20.0
#: The pause before the first fault, as a share of the pauses after the faults.
FIRST_PAUSE = 0.5


@dataclass(frozen=True)
class Fault:
    """A fault to inject.

    Args:
        at: when it begins, in seconds after the beginning of the workload.
        kind: "kill" is SIGKILL of the process that the supervisor started, "kill child" of the one of a worker
            that sent the last heartbeat; "restart" is the signal for a graceful shutdown, after which the supervisor
            starts it again;
            "freeze" is SIGSTOP, and SIGCONT after `seconds`; "outage" is SIGKILL without a restart for `seconds`; "cut"
            swallows what all processes send to a server and receive from it, and leaves their connections half-open;
            "half-open" does that to the connections that exist, while new ones work. The others are of hosts:
            see `bench.resilience.hosts`.
        target: the name of the process, or of the host.
        seconds: how long it lasts.
    """

    at: float
    kind: Kind
    target: str
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.0f} s" if self.seconds else ""
        return f"{self.kind} {self.target}{lasting}"


def schedule(seed: int, seconds: float = RUN_S, *, extraction: bool = False) -> list[Fault]:
    """Every fault once, in an order that the seed decides, spread evenly over the run.

    Args:
        extraction: whether there is an extractor.
    """
    rng = random.Random(seed)
    scale = min(1.0, seconds / RUN_S)
    faults: list[tuple[Kind, str, float]] = [("kill child", name, 0.0) for name in WORKERS]
    faults += [("kill", name, 0.0) for name in (*WORKERS, FORK_SERVER, ADAPTERS, MEMORY, REDIS, POSTGRES)]
    faults += [("restart", REDIS, 0.0), ("restart", POSTGRES, 0.0)]
    faults += [("freeze", ADAPTERS, ADAPTERS_STOP_S), ("outage", ADAPTERS, ADAPTERS_STOP_S)]
    faults += [("freeze", rng.choice(WORKERS), WORKER_STOP_S)]
    for server in (REDIS, POSTGRES):
        faults += [("cut", server, CUT_S), ("half-open", server, 0.0)]
    if extraction:
        faults += [("kill child", EXTRACTOR, 0.0), ("kill", EXTRACTOR, 0.0), ("freeze", EXTRACTOR, WORKER_STOP_S)]
    rng.shuffle(faults)
    pause = (seconds - sum(lasting for *_, lasting in faults) * scale) / (len(faults) + FIRST_PAUSE)
    scheduled, at = [], pause * FIRST_PAUSE
    for kind, target, lasting in faults:
        scheduled.append(Fault(at, kind, target, lasting * scale))
        at += lasting * scale + pause
    return scheduled
