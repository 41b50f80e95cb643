"""The processes of the stack, in start order: their names, as in docker-compose.yml, and their commands."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import services
from services.runtime.errors import StackError
from services.runtime.queues import ALL_QUEUES, EXTRACT_QUEUE, INDEX_QUEUE, INTERACTIVE_QUEUE, WRITES_QUEUE

#: The processes' working directory, so that a user's own `tasks` or `services` are not imported.
ROOT = Path(services.__file__).parents[1]
REDIS = "redis"
POSTGRES = "postgres"
REPLICA = "postgres replica"
#: The server of `BROKER_URL`, where that is another; no process of the stack.
BROKER = "broker"
WORKER = "long-term-memory-worker"
WRITER = "long-term-memory-writer"
INDEXER = "long-term-memory-indexer"
#: Starts the services on Linux; it is no process that does work, and has a log alone.
FORK_SERVER = "fork-server"
#: Only where an LLM is set.
EXTRACTOR = "long-term-memory-extractor"
ADAPTERS = "long-term-memory-adapters"
MEMORY = "memory"
CHAT = "chat-ai"
GATEWAY = "gateway"

SERVERS = (REDIS, POSTGRES)
#: Those of every stack.
SERVICES = (WORKER, WRITER, INDEXER, ADAPTERS, MEMORY, CHAT, GATEWAY)
NAMES = (*SERVERS, *SERVICES, EXTRACTOR)
#: Those that write memories.
WRITING = (WRITER, INDEXER, EXTRACTOR)
#: Those that a pipeline may have of its own instead, or not at all.
OPTIONAL = (MEMORY, CHAT, GATEWAY)


@dataclass(frozen=True)
class ProcessSpec:
    """The name and the command of one process of the stack.

    Args:
        name: its name in compose, the logs and `ltm status`.
        argv: its command; PATH is not searched.
        metrics_port: where it serves its metrics; None where it serves none.
        forkable: whether a fork server may start it: its command is `python -m MODULE ...`.
    """

    name: str
    argv: tuple[str, ...]
    metrics_port: int | None = None
    forkable: bool = False

    @property
    def is_server(self) -> bool:
        """Whether the process is a server, which the services need until they have stopped."""
        return self.name in SERVERS


def service_specs(*, extracts: bool = False, metrics_port: int | None = None) -> list[ProcessSpec]:
    """Keepsake's own processes: separate ones by urgency, so that searches wait neither for writes nor for indexing.

    Args:
        extracts: whether facts are found in what was said, which one more process does.
        metrics_port: that of the first of them; each other one's is one higher, also where some are left out.
    """
    # Running tasks get four seconds, which is less than the supervisor's grace period.
    worker = ("tasks", "--worker-shutdown-timeout", "4000", "--queues")
    specs = [
        _module(WORKER, *worker, INTERACTIVE_QUEUE),
        _module(WRITER, *worker, WRITES_QUEUE),
        _module(INDEXER, *worker, INDEX_QUEUE),
        _module(ADAPTERS, "adapters"),
        _module(MEMORY, "services.memory"),
        _module(CHAT, "services.chat_ai"),
        _module(GATEWAY, "services.gateway"),
        *([_module(EXTRACTOR, *worker, EXTRACT_QUEUE)] if extracts else []),
    ]
    if metrics_port is None:
        return specs
    return [replace(spec, metrics_port=metrics_port + number) for number, spec in enumerate(specs)]


def fork_server_command(specs: Iterable[ProcessSpec]) -> list[str] | None:
    """The command of the fork server for these processes; None where there is none.

    It loads what the workers among them need. The other processes alone have little in common, and elsewhere than on
    Linux a fork without `exec` is not safe.
    """
    queues = [word for spec in specs for word in spec.argv if spec.forkable and word in ALL_QUEUES]
    return [sys.executable, "-m", "tasks.fork_server", *queues] if queues and sys.platform == "linux" else None


def stop_signal(name: str) -> signal.Signals:
    """The signal that stops a process. PostgreSQL waits for its clients to disconnect on SIGTERM, not on SIGINT."""
    return signal.SIGINT if name == POSTGRES else signal.SIGTERM


def check_names(names: Iterable[str]) -> None:
    """Check the names of processes.

    Raises:
        StackError: one of them is no process of the stack.
    """
    for name in names:
        if name not in NAMES:
            raise StackError(f"there is no process {name!r}; there are {', '.join(NAMES)}")


def _module(name: str, module: str, *arguments: str) -> ProcessSpec:
    return ProcessSpec(name, (sys.executable, "-m", module, *arguments), forkable=True)
