"""Fork server, as its supervisor uses it: a process that has loaded what others share, and forks them. For Linux.

A process of Keepsake by itself imports for half a second to two, and holds 40 to 130 MB, most of it the same in all. A
fork begins with that, and shares it. `multiprocessing` has a fork server too, which imports its parent's main module in
each child: here, that of the command line.

The supervisor becomes the parent of each fork: it is a subreaper (prctl(2)), and a fork is made by a process that then
ends. So a fork's end is seen as that of any child, whatever becomes of the fork server.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sysconfig
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import structlog

from services.stack import process_tree
from services.stack.forking import MAX_BYTES, encoded
from services.stack.logfile import BoundedLog
from services.stack.processes import FORK_SERVER, ROOT

#: Of a fork, which takes milliseconds; the supervisor does nothing else meanwhile.
FORK_TIMEOUT_S: Final = 2.0
#: Of one that is killed as it hangs.
END_TIMEOUT_S: Final = 0.5
#: Before the next attempt to start one, where the system refused it.
REFUSED_PAUSE_S: Final = 1.0
#: Of what is loaded before the first fork, in which a busy machine takes ten seconds.
LOAD_TIMEOUT_S: Final = 60.0
#: So often within the window a fork server is started anew; then the processes start without one.
MAX_ENDS: Final = 3
ENDS_WINDOW_S: Final = 60.0
#: How long one that has closed its connection may take to log why, and exit.
EXIT_WAIT_S: Final = 1.0
#: How old the knowledge may be that the code on the disk is still that which was loaded.
CODE_KNOWN_S: Final = 1.0
#: Of `<sys/prctl.h>`.
PR_SET_CHILD_SUBREAPER: Final = 36

log = structlog.get_logger()


class ForkedProcess:
    """A process that a fork server has started, with the methods of `subprocess.Popen` that its supervisor uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that killed it, or None while it runs; 0 where that is lost."""
        if self.returncode is None:
            try:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                ended, status = self.pid, 0
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkServer:
    """A fork server, as the supervisor of the processes sees it.

    It is started when it is first asked whether it is ready, and again where it has ended, or the code on the disk is
    another than it has loaded. What it has forked goes on.

    Args:
        argv: its command, to which the descriptor of its connection is added. It passes that to `forking.serve`.
        environment: its own, and that of what it forks.
        directory: the working directory of both.
        logs: the directory of its log.
        clock: seconds, monotonic.
        code: what changes with the code on the disk.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        logs: Path,
        clock: Callable[[], float] = time.monotonic,
        code: Callable[[], object] | None = None,
    ) -> None:
        self._argv = argv
        # Without SPT_NOENV, a process's title takes the place of the environment that others see.
        self._environment = {**environment, "SPT_NOENV": "1"}
        self._directory = directory
        self._log = BoundedLog(logs / f"{FORK_SERVER}.log")
        self._clock = clock
        self._code = code or installed_code
        self._loaded: object = None
        self._code_known_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._ready = False
        self._started_at = 0.0
        self._start_at = clock()
        self._ends: deque[float] = deque(maxlen=MAX_ENDS)
        #: It does not become ready, or ends again and again: what it is to fork has to start without it.
        self.failed = False

    @property
    def pid(self) -> int | None:
        """The pid of the fork server, while it runs."""
        return self._process.pid if self._process else None

    def ready(self) -> bool:
        """Whether it can fork at once; starts it where it does not run."""
        if self.failed:
            return False
        if self._ready and not self._is_current():
            log.info("fork_server_outdated")
            self.stop()
        if self._connection is None and self._clock() >= self._start_at:
            self._start()
        while self._connection and select.select([self._connection], [], [], 0)[0]:
            self._read()
        if self._connection and not self._ready and self._clock() - self._started_at > LOAD_TIMEOUT_S:
            self._fail(f"it has not loaded within {LOAD_TIMEOUT_S:g} s")
        return self._ready

    def fork(
        self, name: str, command: Sequence[str], variables: Mapping[str, str], output: BinaryIO
    ) -> ForkedProcess | None:
        """Start a process, see `forking.Request`; None where that failed, which is logged."""
        if self._connection is None:
            return None
        request = encoded(parent=os.getpid(), name=name, command=list(command), variables=dict(variables))
        try:
            socket.send_fds(self._connection, [request], [output.fileno()])
        except OSError as error:
            self._fail(str(error))
            return None
        hung = False
        while self._connection:
            if not select.select([self._connection], [], [], END_TIMEOUT_S if hung else FORK_TIMEOUT_S)[0]:
                # What was told until now is read to the end; a fork that can tell nothing any more exits.
                if hung:
                    self._connection.shutdown(socket.SHUT_RD)
                elif self._process:
                    hung = True
                    self._process.kill()
                continue
            told = self._read()
            if pid := told.get("started"):
                return ForkedProcess(pid)
            if reason := told.get("refused"):
                log.warning("fork_refused", name=name, reason=reason)
                return None
        return None

    def stop(self) -> None:
        """End it; what it has forked goes on."""
        self._ready = False
        if self._connection:
            self._connection.close()
            self._connection = None
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def trim(self) -> None:
        """Rotate its log, where it is over the limit."""
        self._log.trim()

    def _is_current(self) -> bool:
        """Whether the code on the disk is that which it has loaded: a fork would import the rest from there."""
        if self._clock() - self._code_known_at > CODE_KNOWN_S:
            if self._code() != self._loaded:
                return False
            self._code_known_at = self._clock()
        return True

    def _start(self) -> None:
        self._started_at = self._code_known_at = self._clock()
        self._loaded = self._code()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # see `forking.serve`
        if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            self._fail("this system has no subreapers")
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._log.open() as output:
            descriptor = theirs.fileno()
            self._process = process_tree.start(
                FORK_SERVER, [*self._argv, str(descriptor)], self._environment, self._directory, output, [descriptor]
            )
        if self._process:
            self._connection = ours
        else:
            ours.close()
            self._start_at = self._clock() + REFUSED_PAUSE_S

    def _read(self) -> dict[str, Any]:
        assert self._connection is not None  # noqa: S101  as the callers know
        try:
            message = self._connection.recv(MAX_BYTES)
        except OSError:
            message = b""
        if not message:
            self._fail("it has ended")
            return {}
        self._ready = True
        told: dict[str, Any] = json.loads(message)
        return told

    def _fail(self, reason: str) -> None:
        """Note that it has ended, or is to; it is started again, unless it had not been ready, or does so often."""
        now = self._clock()
        self._ends.append(now)
        often = len(self._ends) == MAX_ENDS and now - self._ends[0] < ENDS_WINDOW_S
        self.failed = often or not self._ready
        if self._process and self._ready:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_WAIT_S)
        log.warning("fork_server_ended", reason=reason, log=str(self._log.path), used_again=not self.failed)
        self.stop()


def installed_code() -> frozenset[tuple[Path, int]]:
    """The times of the last changes to Keepsake's modules, and to what is installed."""
    modules = (path for package in ("adapters", "services", "tasks") for path in (ROOT / package).rglob("*.py"))
    installed = (Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    return frozenset((path, _changed_at(path)) for path in (*modules, *installed))


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # gone meanwhile, as in the middle of an upgrade
        return 0
