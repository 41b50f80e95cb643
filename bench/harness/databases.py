"""An embedded PostgreSQL for one benchmark."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.long_term_memory.postgres.pool import reachable
from services.runtime.errors import StackError
from services.stack.embedded_postgres import postgres_spec, postgres_url

READY_WITHIN_S = 60.0


@contextmanager
def scratch_database() -> Iterator[str]:
    """The URL of an embedded PostgreSQL that is stopped and removed at the end of the block.

    Raises:
        StackError: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="keepsake-bench-") as name:
        home, sockets, log_file = Path(name) / "postgres", Path(name) / "s", Path(name) / "log"
        spec = postgres_spec(home, sockets, None, ephemeral=True)
        with log_file.open("w") as log:
            server = subprocess.Popen(spec.argv, stdout=log, stderr=log)
        url = postgres_url(sockets, None)
        try:
            deadline = time.monotonic() + READY_WITHIN_S
            while not reachable(url):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise StackError(log_file.read_text())
                time.sleep(0.1)
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            server.wait(timeout=30)
