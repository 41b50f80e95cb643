"""Exposition: serves the metrics of a process and its probes, where LTM_METRICS_PORT is set.

The metrics of a worker's several processes are served as one; its probes are those of the first of them.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import psutil
import structlog

from services.runtime.errors import EXIT_CANNOT_START, CannotStart
from services.runtime.logging import START_REFUSED
from services.runtime.metrics import NO_METRICS, Metrics
from services.runtime.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

#: Where prometheus_client looks, as it is imported, for the directory of the values that processes share.
SHARED_VALUES: Final = "PROMETHEUS_MULTIPROC_DIR"
#: Memory, where the system has it: a write into a mapped file kills the process when a disk is full.
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a private directory is made in it
#: How long a connection may be silent.
IDLE_TIMEOUT_S: Final = 10.0
PREFIX: Final = "keepsake-metrics-"

log = structlog.get_logger()


class Exposition:
    """The metrics of a process, and the server that shows them.

    To be made before the processes of a worker are forked, and before anything imports prometheus_client.

    Args:
        process: its name in compose and `ltm status`.
        processes: how many there are to be of it; they share their values through files.
    """

    def __init__(self, settings: Settings, process: str, processes: int = 1) -> None:
        self._port = settings.ltm_metrics_port
        self._host = settings.ltm_metrics_host
        self._process = process
        self._metrics: Metrics | None = None
        self._directory: Path | None = None
        self._server: _Server | None = None
        if self._port is not None and processes > 1:
            self._directory = _shared_directory()
            os.environ[SHARED_VALUES] = str(self._directory)

    @property
    def metrics(self) -> Metrics:
        """The metrics of this process, of those that are forked, too; they do nothing where none are served."""
        if self._metrics is None:
            self._metrics = NO_METRICS
            if self._port is not None:
                from services.runtime import prometheus  # noqa: PLC0415 - its docstring says why

                self._metrics = prometheus.PrometheusMetrics()
        return self._metrics

    def serve(self) -> None:
        """Serve the metrics, in threads of the first process alone; end it with one line where the port is taken."""
        if self._port is None:
            return
        from services.runtime import prometheus  # noqa: PLC0415 - its docstring says why

        metrics = self.metrics
        application = prometheus.make_wsgi_app(prometheus.served_registry(self._process, metrics, self._directory))
        if isinstance(metrics, prometheus.PrometheusMetrics):
            application = prometheus.with_probes(application, metrics.probes)
        try:
            self._server = _Server(self._host, self._port, application)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no host name"
            where = f"{self._host} port {self._port}: {reason}"
            refused = CannotStart(f"metrics cannot be served on {where}; set LTM_METRICS_HOST and LTM_METRICS_PORT")
            log.critical(START_REFUSED, code=refused.code, reason=str(refused))
            self.close()
            sys.exit(EXIT_CANNOT_START)
        threading.Thread(target=self._server.serve_forever, name="metrics-server", daemon=True).start()

    def forget(self, pid: int) -> None:
        """Show no more of the gauges of a process that has ended."""
        if self._directory is not None:
            from services.runtime import prometheus  # noqa: PLC0415 - its docstring says why

            prometheus.mark_process_dead(pid, str(self._directory))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Stop the server, and remove what the processes shared."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


class _Handler(WSGIRequestHandler):
    """One request of Prometheus's; a connection that says nothing is closed."""

    timeout = IDLE_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing of a request."""


class _Server(ThreadingMixIn, WSGIServer):
    """The HTTP server of the metrics: prometheus_client's waits for ever for idle connections, and prints errors."""

    daemon_threads = True

    def __init__(self, host: str, port: int, application: WSGIApplication) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        self.set_app(application)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what failed of a request: a client that went away, or is silent."""
        log.debug("scrape_failed", exc_info=True)


@contextmanager
def exposed(settings: Settings, process: str) -> Iterator[Metrics]:
    """The metrics of a process, served within the block."""
    exposition = Exposition(settings, process)
    exposition.serve()
    try:
        yield exposition.metrics
    finally:
        exposition.close()


def _shared_directory(parent: Path | None = None, alive: Callable[[int], bool] = psutil.pid_exists) -> Path:
    """A private directory that names its process; those of processes that were killed are removed."""
    parent = parent or (MEMORY if os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir()))
    for left in parent.glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)  # another user's is not permitted
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
