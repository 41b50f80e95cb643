"""The processes of the stack: their names, which are compose's, and their commands, in start order."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from services.runtime.errors import StackError
from services.runtime.queues import INDEX_QUEUE, INTERACTIVE_QUEUE, WRITES_QUEUE
from services.runtime.settings import Settings

REDIS = "redis"
POSTGRES = "postgres"
WORKER = "long-term-memory-worker"
WRITER = "long-term-memory-writer"
INDEXER = "long-term-memory-indexer"
ADAPTERS = "long-term-memory-adapters"
MEMORY = "memory"
CHAT = "chat-ai"

SERVERS = (REDIS, POSTGRES)
SERVICES = (WORKER, WRITER, INDEXER, ADAPTERS, MEMORY, CHAT)
NAMES = SERVERS + SERVICES


@dataclass(frozen=True)
class ProcessSpec:
    """What one process of the stack is.

    Args:
        name: what compose, the logs and `ltm status` call it.
        argv: its command; nothing is looked up in PATH.
    """

    name: str
    argv: tuple[str, ...]

    @property
    def is_server(self) -> bool:
        """Whether the others need it until their last moment."""
        return self.name in SERVERS


def service_specs(settings: Settings) -> list[ProcessSpec]:
    """Keepsake's own processes. Interactive work, writes and bulk indexing never wait for one another."""
    return [
        _dramatiq(WORKER, INTERACTIVE_QUEUE, settings.ltm_interactive_processes, settings.ltm_interactive_threads),
        _dramatiq(WRITER, WRITES_QUEUE, 1, settings.ltm_writes_threads),
        _dramatiq(INDEXER, INDEX_QUEUE, settings.ltm_index_processes, settings.ltm_index_threads),
        _module(ADAPTERS, "adapters"),
        _module(MEMORY, "services.memory"),
        _module(CHAT, "services.chat_ai"),
    ]


def stop_signal(name: str) -> signal.Signals:
    """What the process's own pid is sent to end it: PostgreSQL waits for its clients on SIGTERM, on SIGINT not."""
    return signal.SIGINT if name == POSTGRES else signal.SIGTERM


def check_names(names: Iterable[str]) -> None:
    """
    Raises:
        StackError: one of them is no process of the stack.
    """
    for name in names:
        if name not in NAMES:
            raise StackError(f"there is no process {name!r}; there are {', '.join(NAMES)}")


def _module(name: str, module: str, *arguments: str) -> ProcessSpec:
    return ProcessSpec(name, (sys.executable, "-m", module, *arguments))


def _dramatiq(name: str, queue: str, processes: int, threads: int) -> ProcessSpec:
    size = ["--processes", str(processes), "--threads", str(threads)]
    # Four seconds to finish a running task lie inside what the supervisor grants before it kills.
    options = ["--skip-logging", "--worker-shutdown-timeout", "4000"]
    return _module(name, "dramatiq", "tasks.worker", *size, *options, "--queues", queue)
