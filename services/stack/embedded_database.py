"""The embedded PostgreSQL of a data directory alone, for commands that need no other process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from services.long_term_memory.postgres.pool import reachable
from services.runtime.errors import StackError
from services.stack.directories import persistent_dir
from services.stack.embedded_postgres import postgres_spec, postgres_url
from services.stack.processes import ROOT
from services.stack.sockets import make_socket_directory, remove_socket_directory
from services.stack.supervisor import Supervisor

START_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.05


@contextmanager
def embedded_database(path: Path) -> Iterator[str]:
    """Run the PostgreSQL of a data directory within the block; its URL.

    Raises:
        StackError: there is no database, `ltm up` uses it, or it does not start.
    """
    if not (path / "postgres" / "data").is_dir():
        raise StackError(f"there is no database in {path.absolute()}: give its --data-dir, or set DATABASE_URL")
    with persistent_dir(path) as directory, ExitStack() as at_exit:
        directory.end_leftovers()
        sockets = make_socket_directory(directory.postgres)
        if sockets != directory.postgres:
            at_exit.callback(remove_socket_directory, sockets)
        url = postgres_url(sockets, None)
        spec = postgres_spec(directory.postgres, sockets, None, ephemeral=False)
        supervisor = Supervisor([spec], os.environ, ROOT, directory.logs, lambda _: None)
        at_exit.callback(supervisor.stop)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            supervisor.poll()
            if reachable(url):
                break
            if time.monotonic() > deadline:
                raise StackError(
                    "\n".join(["PostgreSQL did not start; last lines:", *supervisor.last_lines(spec.name)])
                )
            time.sleep(POLL_INTERVAL_S)
        yield url
