"""Fork server, as it runs: forks on request, and what a fork does before the module that was asked for. For Linux."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import time
from typing import Any, Final, NamedTuple, NoReturn

import setproctitle

from services.stack import process_tree

#: The first message of a fork server: it has loaded, and forks at once.
READY: Final = b"{}"
#: Of a message.
MAX_BYTES: Final = 65_536


def encoded(**fields: Any) -> bytes:
    """A message between a fork server and its supervisor: a JSON object."""
    return json.dumps(fields).encode()


class Request(NamedTuple):
    """A process that is to be forked.

    Args:
        parent: the pid of its supervisor.
        name: of the process, in compose and `ltm status`.
        command: a module's name, and the arguments that are passed to it.
        variables: those of its environment that differ from the fork server's.
        output: the descriptor of its log.
    """

    parent: int
    name: str
    command: list[str]
    variables: dict[str, str]
    output: int


def serve(connection: socket.socket) -> None:
    """Fork on every request until the connection ends; a fork runs the module that is asked for, and then exits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent that ignored it has left that, and children no status
    connection.send(READY)
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, MAX_BYTES, 1)
        if not message:
            return  # the supervisor has ended
        request = Request(**json.loads(message), output=descriptors[0])
        try:
            between = os.fork()
        except OSError as error:
            connection.send(encoded(refused=str(error)))
        else:
            if not between:
                _fork_again(connection, request)
            os.waitpid(between, 0)
        os.close(request.output)


def _fork_again(connection: socket.socket, request: Request) -> NoReturn:
    between = os.getpid()
    try:
        forked = os.fork()
    except OSError as error:
        connection.send(encoded(refused=str(error)))
        os._exit(0)
    if forked:
        os._exit(0)
    while os.getppid() == between:
        time.sleep(0.001)
    os.setsid()
    try:
        # One that the supervisor does not know of must not run beside the next.
        if os.getppid() != request.parent:
            os._exit(0)
        connection.send(encoded(started=os.getpid()))
    except OSError:
        os._exit(0)
    connection.close()
    _run(request)


def _run(request: Request) -> NoReturn:
    """Run a module as `python -m` does, and exit."""
    for standard in (1, 2):
        os.dup2(request.output, standard)
    os.close(request.output)
    os.environ.update(request.variables)
    setproctitle.setproctitle(process_tree.title(request.name))
    sys.excepthook = sys.__excepthook__  # until the module has its own, not that of the fork server
    sys.argv = request.command  # runpy puts the module's file in place of its name
    runpy.run_module(request.command[0], run_name="__main__", alter_sys=True)
    sys.exit()
