"""Opens what a worker process needs, once, and closes it at shutdown."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import dramatiq
import structlog
from dramatiq.middleware import Middleware, MiddlewareError
from keepsake_client.errors import KeepsakeError

from services.long_term_memory.factory import LongTermMemory, open_when_ready
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.profile_service import ProfileService
from services.runtime.heartbeat import HeartbeatThread
from services.runtime.queues import INDEX_QUEUE
from services.runtime.redis import connect
from services.runtime.settings import Settings

#: The niceness of this process's session, where the kernel knows such a thing.
AUTOGROUP = Path("/proc/self/autogroup")

log = structlog.get_logger()


class WorkerCannotStart(MiddlewareError):
    """Dramatiq goes on after any other exception here, and a misconfigured worker would start all the same."""


class Resources(Middleware):
    """The services of one worker process, and its sign of life.

    Args:
        process: the name under which `ltm status` and compose know this process.
    """

    def __init__(self, settings: Settings, process: str) -> None:
        self.settings = settings
        self._process = process
        self._open: LongTermMemory | None = None
        self._heart: HeartbeatThread | None = None

    @property
    def memories(self) -> MemoryService:
        """The memory service; only while the worker runs."""
        return self._opened.memories

    @property
    def profiles(self) -> ProfileService:
        """The profile service; only while the worker runs."""
        return self._opened.profiles

    @property
    def _opened(self) -> LongTermMemory:
        if self._open is None:
            raise RuntimeError("the worker has not booted")
        return self._open

    def before_worker_boot(self, _: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        if worker.consumer_whitelist == {INDEX_QUEUE}:
            # Before there are threads: on Linux each has a priority of its own, and inherits its maker's.
            lower_priority(self.settings.ltm_index_nice)
        try:
            self._open = open_when_ready(self.settings, connections=worker.worker_threads)
        except KeepsakeError as error:
            log.critical("worker_cannot_start", code=error.code, reason=str(error))
            raise WorkerCannotStart(str(error)) from None
        except Exception as error:
            # A missing extension, a provider that refuses the key: Dramatiq would log it and start without services.
            log.critical("worker_cannot_start", code=KeepsakeError.code, exc_info=True)
            raise WorkerCannotStart(type(error).__name__) from error

    def after_worker_boot(self, _: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        client = connect(self.settings.redis_url.get_secret_value(), 2.0)
        self._heart = HeartbeatThread(client, self._process, [self._opened.answers, lambda: _threads_live(worker)])
        self._heart.start()
        log.info("worker_ready", queues=sorted(worker.consumer_whitelist or ()))

    def after_worker_shutdown(self, _: dramatiq.Broker, __: dramatiq.Worker) -> None:
        if self._heart:
            self._heart.stop()
        if self._open:
            # Not forgotten: what still runs meets a closed pool, which is `Unavailable`, and is retried elsewhere.
            self._open.close()


def lower_priority(by: int) -> None:
    """Let every other process go first, where the system knows such a thing.

    Where Linux shares the processors out between sessions first (autogroup, sched(7)), a process's niceness counts
    within its session only. `ltm up` and init systems begin one for every process, so the session stands back too.
    """
    if not by or not hasattr(os, "nice"):
        return
    os.nice(by)
    if os.getsid(0) in (os.getpid(), os.getppid()):  # a worker's, or its master's: not a terminal's
        with suppress(OSError):  # a kernel without it, or not ours to say
            AUTOGROUP.write_text(str(by))


def _threads_live(worker: dramatiq.Worker) -> bool:
    return all(thread.is_alive() for thread in [*worker.workers, *worker.consumers.values()])
