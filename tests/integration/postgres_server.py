"""A PostgreSQL of one test's own, which it may stop, kill and start again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from services.long_term_memory.postgres.pool import reachable
from services.stack.embedded_postgres import postgres_spec, postgres_url
from tests.support import wait_until


class PostgresServer:
    """One server with its data in a directory that is removed at the end; in `directory`, where it is given."""

    def __init__(self, directory: Path | None = None) -> None:
        # Not pytest's directory: that one is closed to PostgreSQL's user when root runs the tests.
        self._home = Path(tempfile.mkdtemp(prefix="ltm-test-", dir=directory))
        self._spec = postgres_spec(self._home / "postgres", self._home / "sockets", None, ephemeral=True)
        self.url = postgres_url(self._home / "sockets", None)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._home / "log").open("a") as log:
            self._process = process = subprocess.Popen(self._spec.argv, stdout=log, stderr=log)
        wait_until(lambda: reachable(self.url) or process.poll() is not None, description="PostgreSQL to answer")
        assert process.poll() is None, (self._home / "log").read_text()

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End it; with SIGKILL, it and all that serve its connections at once."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            for child in children:
                child.kill()
        self._process.wait(timeout=60)
        psutil.wait_procs(children, timeout=60)
        self._process = None

    def close(self) -> None:
        if self._process is not None:
            self.stop()
        shutil.rmtree(self._home, ignore_errors=True)


@contextmanager
def postgres_server(directory: Path | None = None) -> Iterator[PostgresServer]:
    """A running one."""
    server = PostgresServer(directory)
    try:
        server.start()
        yield server
    finally:
        server.close()
