"""Processes by pid, told apart from later ones that got the same pid, and ended with all they started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Sequence

import psutil
from pydantic import BaseModel, ConfigDict

# The kernel keeps start times in ticks since boot; a corrected clock moves them a little.
SAME_START_S = 2.0

#: Tells a process, and all it starts, what it is called.
NAME_VARIABLE = "LTM_PROCESS_NAME"


class ProcessId(BaseModel):
    """A pid and the time its process began (seconds since 1970), which together name one process."""

    model_config = ConfigDict(frozen=True)

    pid: int
    create_time: float


def identify(pid: int) -> ProcessId:
    """The identity of a child of ours that has only just been started."""
    try:
        return ProcessId(pid=pid, create_time=psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:  # macOS tells nothing of one that is dead already
        return ProcessId(pid=pid, create_time=time.time())


def find(identity: ProcessId) -> psutil.Process | None:
    """The process, if it still runs."""
    try:
        process = psutil.Process(identity.pid)
        same = abs(process.create_time() - identity.create_time) < SAME_START_S
        return process if same and _works(process) else None
    except psutil.NoSuchProcess:
        return None


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Everything it started and is still the parent of, down the tree."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def session_members(leader: int) -> list[psutil.Process]:
    """Whatever runs in the session that process `leader` began.

    A process whose parent died belongs to init by then, but its session still tells where it came from. The kernel
    gives no new process a pid that names a living session.
    """
    members = []
    for pid in psutil.pids():
        try:
            if pid != leader and os.getsid(pid) == leader:
                members.append(psutil.Process(pid))
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            continue
    return members


def remains(identity: ProcessId, name: str) -> list[psutil.Process]:
    """What still runs of a process that was started as `name`: itself, or else what it left behind when it died."""
    if process := find(identity):
        return [process]
    if psutil.pid_exists(identity.pid):
        return []  # somebody else's by now, and so is its session
    return [member for member in session_members(identity.pid) if _started_as(member) == name]


def _started_as(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(NAME_VARIABLE)
    except psutil.Error:
        return None


def kill(processes: Iterable[psutil.Process], wait_s: float = 1.0) -> None:
    """SIGKILL each, and wait until they are gone."""
    doomed = list(processes)
    for process in doomed:
        _send(process, signal.SIGKILL)
    _wait(doomed, wait_s)


def end(processes: Sequence[tuple[psutil.Process, signal.Signals]], grace_s: float) -> None:
    """Send each its signal; after `grace_s`, kill what is left, and whatever they had started."""
    families = [member for process, _ in processes for member in descendants(process)]
    for process, stop_signal in processes:
        _send(process, stop_signal)
    _wait([process for process, _ in processes], grace_s)
    left = [process for process, _ in processes] + families
    left += [member for process, _ in processes for member in session_members(process.pid)]
    kill(process for process in left if _works(process))


def _wait(processes: Iterable[psutil.Process], timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and any(map(_works, processes)):
        time.sleep(0.02)


def _works(process: psutil.Process) -> bool:
    """Whether it does anything still: a zombie only waits for its parent, which is not always quick."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)  # psutil makes sure that it is still the same process
    except psutil.NoSuchProcess:
        return
