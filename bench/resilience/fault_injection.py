"""Fault injection: killing, freezing and restarting the processes of a stack, and cutting their connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import redis
from keepsake_client.protocol import alive_key

from bench.harness.stack import Stack
from bench.resilience.fault_schedule import Fault
from services.runtime.errors import StackError
from services.stack.processes import stop_signal
from tests.swallowing_proxy import ThreadedProxy

#: How long a process that was just started again is waited for before a fault is injected into it.
PRESENT_WITHIN_S = 60.0  # on a busy machine, a worker at the lowest CPU priority needs half of that
POLL_EVERY_S = 0.05


@dataclass(frozen=True)
class InjectedFault:
    """A fault that was injected; moments on the monotonic clock."""

    fault: Fault
    began: float
    ended: float


class FaultInjector:
    """Injects faults into the processes that an `ltm up` of this benchmark runs, and into their connections.

    Args:
        proxies: what the processes reach each server through, by the server's name.
    """

    def __init__(self, stack: Stack, proxies: Mapping[str, ThreadedProxy]) -> None:
        self._stack = stack
        self._proxies = proxies

    def inject_all(self, faults: Iterable[Fault]) -> list[InjectedFault]:
        """Inject each fault when it is due, and print it; return once the last is over."""
        begun = time.monotonic()
        injected = []
        for fault in faults:
            time.sleep(max(0.0, begun + fault.at - time.monotonic()))
            began = time.monotonic()
            self._inject(fault)
            injected.append(InjectedFault(fault, began, time.monotonic()))
            delay = began - begun - fault.at
            print(f"  {began - begun:6.1f} s  {fault}{f'  ({delay:.1f} s late)' if delay > 1 else ''}", flush=True)
        return injected

    def _inject(self, fault: Fault) -> None:
        match fault.kind:
            case "kill":
                self._process(fault.target).kill()
            case "kill child":
                self._child(fault.target).kill()
            case "restart":
                self._process(fault.target).send_signal(stop_signal(fault.target))
            case "freeze":
                process = self._process(fault.target)
                # Of a worker's processes, the one that sent the last heartbeat.
                if process.children():
                    process = self._child(fault.target)
                with _frozen(process):
                    time.sleep(fault.seconds)
            case "cut":
                self._proxies[fault.target].swallow()
                time.sleep(fault.seconds)
                self._proxies[fault.target].forward()
            case "half-open":
                self._proxies[fault.target].cut()
            case "outage":
                # A frozen supervisor starts nothing again.
                with _frozen(psutil.Process(self._stack.ltm_up.process.pid)):
                    self._process(fault.target).kill()
                    time.sleep(fault.seconds)

    def _process(self, name: str) -> psutil.Process:
        """The process that the supervisor started under this name.

        Raises:
            StackError: it does not run, and is not started within `PRESENT_WITHIN_S`.
        """
        return _present(name, lambda: self._stack.pids()[name])

    def _child(self, name: str) -> psutil.Process:
        """The process of a worker that sent the last heartbeat; raises as `_process` does."""
        client = self._stack.connect()

        def pid() -> int:
            host_pid_parent = client.get(alive_key(name))
            if not isinstance(host_pid_parent, bytes):
                raise KeyError(name)
            return int(host_pid_parent.split(b":")[-2])

        return _present(name, pid)


def _present(name: str, pid: Callable[[], int]) -> psutil.Process:
    until = time.monotonic() + PRESENT_WITHIN_S
    while time.monotonic() < until:
        try:
            process = psutil.Process(pid())
            if process.status() != psutil.STATUS_ZOMBIE:
                return process
        except (KeyError, redis.RedisError, psutil.Error):
            pass
        time.sleep(POLL_EVERY_S)
    raise StackError(f"{name} does not run")


@contextmanager
def _frozen(process: psutil.Process) -> Iterator[None]:
    """SIGSTOP before the block, and SIGCONT after it."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()
