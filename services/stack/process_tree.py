"""Processes identified by pid and start time, because pids are reused, and stopped with everything they started."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil
import structlog
from pydantic import BaseModel, ConfigDict

# The kernel keeps start times in ticks since boot; a clock correction shifts them a little.
SAME_START_S = 2.0

#: The environment variable that holds a process's name; its descendants inherit it.
NAME_VARIABLE = "LTM_PROCESS_NAME"

log = structlog.get_logger()


class ProcessId(BaseModel):
    """The identity of a process: its pid and its start time (seconds since 1970)."""

    model_config = ConfigDict(frozen=True)

    pid: int
    create_time: float


def start(
    name: str,
    argv: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
    output: BinaryIO,
    descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes] | None:
    """Start a process in a session of its own; None, and a line of log, where no process or memory is left for it.

    Args:
        name: for the log.
        output: of its stdout and stderr.
        descriptors: further ones that it inherits.
    """
    try:
        return subprocess.Popen(
            argv,
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=descriptors,
            start_new_session=True,
        )
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.ENOMEM):
            raise
        log.warning("fork_refused", name=name, reason=str(error))
        return None


def identify(pid: int) -> ProcessId:
    """The identity of a child process that has just been started."""
    try:
        return ProcessId(pid=pid, create_time=psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:  # macOS has no start time of one that has exited already
        return ProcessId(pid=pid, create_time=time.time())


def find(identity: ProcessId) -> psutil.Process | None:
    """The process, if it still runs."""
    try:
        process = psutil.Process(identity.pid)
        same = abs(process.create_time() - identity.create_time) < SAME_START_S
        return process if same and runs(process) else None
    except psutil.NoSuchProcess:
        return None


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """The children of a process, their children, and so on; not those whose parent has exited."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def session_members(leader: int) -> list[psutil.Process]:
    """The processes in the session of process `leader`, without itself.

    A process whose parent has exited is adopted by init, but stays in its session. The kernel does not reuse a pid
    while a session of that number exists.
    """
    members = []
    for pid in psutil.pids():
        try:
            if pid != leader and os.getsid(pid) == leader:
                members.append(psutil.Process(pid))
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            continue
    return members


def reap_adopted(own: Collection[int]) -> None:
    """Reap the children that this process, as a subreaper, was given when their parents ended.

    Args:
        own: the pids of its other children, whose exit codes are still to be read.
    """
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def remains(identity: ProcessId, name: str) -> list[psutil.Process]:
    """The remains of a process started as `name`: the process or, if it has exited, what it started and still runs."""
    if process := find(identity):
        return [process]
    if psutil.pid_exists(identity.pid):
        return []  # the pid, and so the session, belongs to another process by now
    return [member for member in session_members(identity.pid) if _started_as(member, name)]


def title(name: str) -> str:
    """What `ps` shows of a forked process, which has no command line of its own."""
    return f"ltm up: {name}"


def _started_as(process: psutil.Process, name: str) -> bool:
    try:
        if process.environ().get(NAME_VARIABLE) == name:
            return True
        # Of a forked process, the system knows the environment of its fork server alone.
        return " ".join(process.cmdline()).strip() == title(name)
    except psutil.Error:
        return False


def kill(processes: Iterable[psutil.Process], wait_s: float = 1.0) -> None:
    """Send SIGKILL to processes, and wait until they have exited."""
    killed = list(processes)
    for process in killed:
        _send(process, signal.SIGKILL)
    _wait(killed, wait_s)


def end(processes: Sequence[tuple[psutil.Process, signal.Signals]], grace_s: float) -> None:
    """Send each process its signal; after `grace_s`, kill what is left of them and of everything that they started."""
    families = [member for process, _ in processes for member in descendants(process)]
    for process, stop_signal in processes:
        _send(process, stop_signal)
    _wait([process for process, _ in processes], grace_s)
    left = [process for process, _ in processes] + families
    left += [member for process, _ in processes for member in session_members(process.pid)]
    kill(process for process in left if runs(process))


def _wait(processes: Iterable[psutil.Process], timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and any(map(runs, processes)):
        time.sleep(0.02)


def runs(process: psutil.Process) -> bool:
    """Whether the process still runs; a zombie does not: it waits for its parent to reap it, which may take a while."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)  # psutil checks that it is still the same process
    except psutil.NoSuchProcess:
        return
