"""Fork server: starts processes as forks of one process, which has loaded what they share. For Linux.

A process of Keepsake by itself imports for half a second to two, and holds 40 to 130 MB, most of it the same in all. A
fork begins with that, and shares it. `multiprocessing` has a fork server too, which imports its parent's main module in
each child: here, that of the command line.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn

import setproctitle
import structlog

from services.stack import process_tree
from services.stack.logfile import BoundedLog
from services.stack.processes import FORK_SERVER

#: Of a fork, which takes milliseconds; the supervisor does nothing else meanwhile.
FORK_TIMEOUT_S: Final = 2.0
#: The exit code of a process whose fork server ended before it: only a parent is told the true one.
UNKNOWN_EXIT: Final = -1

_READY: Final = b"{}"
_MAX_BYTES: Final = 65_536

log = structlog.get_logger()


class Request(NamedTuple):
    """A process that is to be forked.

    Args:
        name: of the process, in compose and `ltm status`.
        command: a module's name, and the arguments that are passed to it.
        variables: those of its environment that differ from the fork server's.
        output: the descriptor of its log.
    """

    name: str
    command: list[str]
    variables: dict[str, str]
    output: int


def serve(connection: socket.socket) -> None:
    """Fork on every request until the connection ends; a fork runs the module that is asked for, and then exits."""
    if request := _next_fork(connection):
        _run(request)


def _next_fork(connection: socket.socket) -> Request | None:
    """Fork on every request until the connection ends; in a fork, return its request."""
    children: set[int] = set()
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a signal that is ignored wakes nothing
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    try:
        connection.send(_READY)
        while True:
            readable, _, _ = select.select([connection, woken], [], [])
            if woken in readable:
                woken.recv(_MAX_BYTES)
                for pid in tuple(children):
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        children.remove(pid)
                        connection.send(_encoded(ended=pid, code=os.waitstatus_to_exitcode(status)))
            if connection in readable:
                message, descriptors, _, _ = socket.recv_fds(connection, _MAX_BYTES, 1)
                if not message:
                    return None
                request = Request(**json.loads(message), output=descriptors[0])
                if not (pid := os.fork()):
                    return request
                os.close(request.output)
                children.add(pid)
                connection.send(_encoded(started=pid))
    except (BrokenPipeError, ConnectionResetError):
        return None  # the supervisor has ended
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in (connection, woken, wake):
            each.close()


def _run(request: Request) -> NoReturn:
    """Run a module as `python -m` does, in a session of its own, and exit."""
    os.setsid()
    for standard in (1, 2):
        os.dup2(request.output, standard)
    os.close(request.output)
    os.environ.update(request.variables)
    setproctitle.setproctitle(process_tree.title(request.name, request.command))
    sys.argv = request.command  # runpy puts the module's file in place of its name
    code: object = 1
    try:
        runpy.run_module(request.command[0], run_name="__main__", alter_sys=True)
        code = None
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - reported as the interpreter would
        sys.excepthook(*sys.exc_info())
    if isinstance(code, str):
        print(code, file=sys.stderr)
    logging.shutdown()
    sys.stdout.flush()
    # Not by way of the interpreter's end: ONNX Runtime would join a thread that only the fork server has, and abort.
    os._exit(code if isinstance(code, int) else int(code is not None))


class ForkedProcess:
    """A process that a fork server has started, with the methods of `subprocess.Popen` that its supervisor uses."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        #: Whether its fork server has ended before it.
        self.orphaned = False
        self._server = server
        self._identity = process_tree.identify(pid)

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that killed it, or None while it runs."""
        self._server.receive()
        if self.orphaned and self.returncode is None and process_tree.find(self._identity) is None:
            self.returncode = UNKNOWN_EXIT
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        process_tree.send(self._identity, number)


class ForkServer:
    """A fork server, as the supervisor of the processes sees it.

    It is started when it is first asked whether it is ready, and again where it has ended; what it has forked goes on
    meanwhile.

    Args:
        argv: its command, to which the descriptor of its connection is added. It passes that to `serve`.
        environment: its own, and that of what it forks.
        directory: the working directory of both.
        logs: the directory of its log.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], directory: Path, logs: Path) -> None:
        self._argv = argv
        self._environment = environment
        self._directory = directory
        self._log = BoundedLog(logs / f"{FORK_SERVER}.log")
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._forked: dict[int, ForkedProcess] = {}
        self._ready = False
        #: Whether it has ended before it was ready: it would again, and what it is to fork can run without it.
        self.failed = False

    def ready(self) -> bool:
        """Whether it can fork at once; starts it where it does not run."""
        if self._connection is None and not self.failed:
            self._start()
        self.receive()
        return self._ready

    def fork(
        self, name: str, command: Sequence[str], variables: Mapping[str, str], output: BinaryIO
    ) -> ForkedProcess | None:
        """Start a process, see `Request`; None where the server has ended since it was ready."""
        if self._connection is None:
            return None
        request = _encoded(name=name, command=list(command), variables=dict(variables))
        try:
            socket.send_fds(self._connection, [request], [output.fileno()])
        except OSError:
            self._end()
            return None
        while self._connection:
            if self._process and not select.select([self._connection], [], [], FORK_TIMEOUT_S)[0]:
                self._process.kill()  # it hangs; what it has told before is read to the end
            if pid := self._read().get("started"):
                self._forked[pid] = ForkedProcess(self, pid)
                return self._forked[pid]
        return None

    def receive(self) -> None:
        """Take in what it has told: that it is ready, and which processes have ended."""
        while self._connection and select.select([self._connection], [], [], 0)[0]:
            self._read()

    def stop(self) -> None:
        """End it; what it has forked would go on."""
        self._end()

    def trim(self) -> None:
        """Rotate its log, where it is over the limit."""
        self._log.trim()

    def _start(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._log.open() as output:
            self._process = subprocess.Popen(
                [*self._argv, str(theirs.fileno())],
                env=self._environment,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def _read(self) -> dict[str, Any]:
        assert self._connection is not None  # noqa: S101  as the callers know
        try:
            message = self._connection.recv(_MAX_BYTES)
        except OSError:
            message = b""
        if not message:
            self.failed = not self._ready
            log.warning("fork_server_ended", was_ready=self._ready, log=str(self._log.path))
            self._end()
            return {}
        self._ready = True
        told: dict[str, Any] = json.loads(message)
        if process := self._forked.pop(told.get("ended", 0), None):
            process.returncode = told["code"]
        return told

    def _end(self) -> None:
        self._ready = False
        if self._connection:
            self._connection.close()
            self._connection = None
        for process in self._forked.values():
            process.orphaned = True
        self._forked.clear()
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def _encoded(**fields: Any) -> bytes:
    return json.dumps(fields).encode()
