"""Entry of the workers: `python -m tasks --queues interactive`, in one process or in several that share their memory.

Dramatiq's own command imports everything and opens the embedder in each process, 120 MB, beside a master that does no
work. Here the first process does both and then forks the others. All of them work; where one ends, the others do.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

import dramatiq
import structlog

from services.runtime.exposition import Exposition
from services.runtime.queues import ALL_QUEUES, EXTRACT_QUEUE, INDEX_QUEUE, INTERACTIVE_QUEUE, WRITES_QUEUE
from services.runtime.settings import Settings
from tasks.composition import preload, process_name, set_up, settings_of

#: How often a process looks whether the others run, in seconds.
LOOK_INTERVAL_S = 0.5
#: How much longer than its tasks may take to stop a process has until it is killed, as one that hangs.
KILL_AFTER_S = 1.0
#: Four of them search 500 times a second: 7 ms of CPU each. A container's quota of CPU time is not looked at.
MAX_SEARCHING = 4

log = structlog.get_logger()


class Processes:
    """The first process and those that it forks, as each of them sees the others.

    Args:
        number: how many there are to be; the rest of the program runs in each.
        on_ended: called in the first with the pid of one that has ended.
    """

    def __init__(self, number: int, on_ended: Callable[[int], None] = lambda _: None) -> None:
        self._first = os.getpid()
        self._on_ended = on_ended
        self._others: list[int] = []
        started, self._start = os.pipe()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent that ignored it has left that, and children no status
        for _ in range(number - 1):
            if pid := os.fork():
                self._others.append(pid)
                continue
            self._others.clear()
            os.close(self._start)
            # The first begins alone: what refuses its start would refuse this one's, and be logged again.
            if not os.read(started, 1):
                os._exit(0)
            break

    @property
    def is_first(self) -> bool:
        """Whether this is the first process."""
        return os.getpid() == self._first

    def begin(self) -> None:
        """Let the others begin, in the first."""
        if self._others:
            os.write(self._start, b"." * len(self._others))

    def exit_code(self) -> int | None:
        """The exit code for this one where another has ended; None while all run."""
        if not self.is_first:
            return None if os.getppid() == self._first else 1
        for pid in self._others:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._others.remove(pid)
                self._on_ended(pid)
                code = os.waitstatus_to_exitcode(status)
                log.critical("worker_process_ended", pid=pid, exit_code=code)
                return code if code > 0 else 1
        return None

    def stop(self) -> None:
        """Tell the others to stop, in the first."""
        self._stopped_at = time.monotonic()
        for pid in self._others:
            os.kill(pid, signal.SIGTERM)

    def join(self, timeout_s: float) -> None:
        """Wait until the others have ended, in the first; kill one that has not in time, such as one that hangs."""
        until = self._stopped_at + timeout_s + KILL_AFTER_S
        for pid in self._others:
            while not (ended := os.waitpid(pid, os.WNOHANG)[0]) and time.monotonic() < until:
                time.sleep(0.02)
            if not ended:
                log.critical("worker_process_killed", pid=pid)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def main() -> None:
    """Work until SIGTERM, SIGINT, or the end of one of the processes."""
    given = parsed(sys.argv[1:])
    settings = settings_of(process_name())
    number, threads = size(settings, given)
    preload(settings, given.queues)
    exposition = Exposition(settings, process_name(), number)
    processes = Processes(number, exposition.forget)
    if processes.is_first:
        exposition.serve()
    broker = set_up(exposition.metrics)
    broker.emit_after("process_boot")
    worker = dramatiq.Worker(broker, queues=set(given.queues), worker_threads=threads)
    worker.start()
    # Not before: a start may wait for a server for a minute, and a signal then ends it at once. The signal may come
    # twice, as Ctrl-C in a terminal reaches all: `SimpleQueue.put` may interrupt itself, `Event.set` would deadlock.
    signals: SimpleQueue[int] = SimpleQueue()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, _: signals.put(number))
    processes.begin()
    code = None
    while code is None:
        try:
            signals.get(timeout=LOOK_INTERVAL_S)
            break
        except Empty:
            code = processes.exit_code()
    processes.stop()
    worker.stop(timeout=given.worker_shutdown_timeout)
    broker.close()
    processes.join(given.worker_shutdown_timeout / 1000)
    if processes.is_first:
        exposition.close()
    logging.shutdown()
    # Not by way of the interpreter's end, which would free what an actor that has not ended in time still uses.
    os._exit(code or 0)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options, named as those of Dramatiq's command."""
    parser = argparse.ArgumentParser(prog="python -m tasks", description="A worker of these queues.")
    parser.add_argument("--queues", nargs="+", required=True, choices=ALL_QUEUES)
    parser.add_argument("--processes", type=int, help="instead of the setting's number")
    parser.add_argument("--threads", type=int, help="in each process, instead of the setting's number")
    parser.add_argument("--worker-shutdown-timeout", type=int, default=20_000, help="in milliseconds")
    return parser.parse_args(arguments)


def size(settings: Settings, given: argparse.Namespace) -> tuple[int, int]:
    """The numbers of processes, and of threads in each: given, or the settings' for the first of the queues."""
    processes, threads = {
        INTERACTIVE_QUEUE: (settings.ltm_interactive_processes or searching(), settings.ltm_interactive_threads),
        WRITES_QUEUE: (1, settings.ltm_writes_threads),
        INDEX_QUEUE: (settings.ltm_index_processes, settings.ltm_index_threads),
        EXTRACT_QUEUE: (1, settings.ltm_extract_threads),
    }[given.queues[0]]
    return given.processes or processes, given.threads or threads


def searching() -> int:
    """How many processes are to search: as many as there are cores for this one, and not more than are of use.

    Half of a search is Python, in which the threads of one process wait for each other.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return min(cores, MAX_SEARCHING)


if __name__ == "__main__":
    main()
