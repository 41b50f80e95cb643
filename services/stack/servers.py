"""The servers of a stack, for commands that need no other process: those that run, or embedded ones for a while."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from services.long_term_memory.postgres.pool import reachable
from services.runtime.errors import StackError
from services.runtime.settings import Settings, load_settings
from services.stack.data_directory import DataDirectory
from services.stack.directories import persistent_dir
from services.stack.embedded_postgres import postgres_spec, postgres_url
from services.stack.embedded_valkey import valkey_spec, valkey_url
from services.stack.locate import find_stack
from services.stack.processes import ROOT, ProcessSpec
from services.stack.readiness import redis_answers
from services.stack.sockets import free_port, make_socket_directory, remove_socket_directory
from services.stack.supervisor import Supervisor

START_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.05
#: By the setting's field, the variable that names a server instead.
VARIABLES = {"redis_url": "REDIS_URL", "database_url": "DATABASE_URL"}


@contextmanager
def servers(
    path: Path, environment: Mapping[str, str], *fields: str, create: bool = False
) -> Iterator[tuple[Settings, bool]]:
    """Settings with the addresses of servers that answer within the block, and whether they are of a running stack.

    Those that the environment names or, where `ltm up` runs in the data directory, its own; otherwise the embedded
    servers of that directory, which are started, and stopped at the end.

    Args:
        path: the data directory.
        fields: which servers: `redis_url`, `database_url`.
        create: whether a data directory that is not there is made.

    Raises:
        StackError: there is no data, the directory is in use by another command, or a server does not start.
    """
    embedded = [field for field in fields if not environment.get(VARIABLES[field])]
    if not embedded:
        yield load_settings(), False
        return
    data = path / "postgres" / "data"
    if not create and not data.is_dir() and "database_url" in embedded:
        raise StackError(f"there is no database in {path.absolute()}: give its --data-dir, or set DATABASE_URL")
    if not create and not path.is_dir():
        raise StackError(f"there is no data in {path.absolute()}: give its --data-dir, or set REDIS_URL")
    if DataDirectory(path).in_use() and DataDirectory(path).read():
        yield _of_running_stack(path, environment), True
        return
    with persistent_dir(path) as directory, ExitStack() as at_exit:
        directory.end_leftovers()
        specs: list[ProcessSpec] = []
        addresses: dict[str, str] = {}
        answers: list[Callable[[], bool]] = []
        if "database_url" in embedded:
            sockets = make_socket_directory(directory.postgres)
            if sockets != directory.postgres:
                at_exit.callback(remove_socket_directory, sockets)
            addresses["database_url"] = postgres_url(sockets, None)
            specs.append(postgres_spec(directory.postgres, sockets, None, ephemeral=False))
            answers.append(partial(reachable, addresses["database_url"]))
        if "redis_url" in embedded:
            port = free_port()
            addresses["redis_url"] = valkey_url(port)
            specs.append(valkey_spec(directory.valkey, port, ephemeral=False))
            answers.append(partial(redis_answers, addresses["redis_url"]))
        supervisor = Supervisor(specs, os.environ, ROOT, directory.logs, lambda _: None)
        at_exit.callback(supervisor.stop)
        _wait(supervisor, answers)
        yield load_settings(**addresses), False


def _wait(supervisor: Supervisor, answers: list[Callable[[], bool]]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        supervisor.poll()
        if all(answer() for answer in answers):
            return
        if time.monotonic() > deadline:
            lines = [line for name in supervisor.names for line in supervisor.last_lines(name)]
            raise StackError("\n".join([f"{', '.join(supervisor.names)} did not start; last lines:", *lines]))
        time.sleep(POLL_INTERVAL_S)


def _of_running_stack(path: Path, environment: Mapping[str, str]) -> Settings:
    recorded = {name: value for name, value in environment.items() if name != "REDIS_URL"}
    settings = find_stack(DataDirectory(path), recorded).settings
    redis_url = environment.get("REDIS_URL")
    return settings.model_copy(update={"redis_url": SecretStr(redis_url)}) if redis_url else settings
