"""The first process of a worker and those that it has started, which here are programs that do nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from tasks.__main__ import Processes
from tests.support import wait_until

IDLES = "import time; print(flush=True); time.sleep(600)"
HANGS = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {IDLES}"


class Forks:
    """In place of `os.fork`: starts the given programs, each once it runs."""

    def __init__(self) -> None:
        self.programs: list[str] = []
        self.pids: list[int] = []

    def __call__(self) -> int:
        started, begins = os.pipe()
        program = [sys.executable, "-c", self.programs[len(self.pids)]]
        pid = os.posix_spawn(program[0], program, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, begins, 1)])
        self.pids.append(pid)
        os.close(begins)
        os.read(started, 1)
        os.close(started)
        return pid

    def runs(self, pid: int) -> bool:
        """Whether it has not been waited for."""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Forks]:
    forks = Forks()
    monkeypatch.setattr(os, "fork", forks)
    handler = signal.getsignal(signal.SIGCHLD)
    yield forks
    signal.signal(signal.SIGCHLD, handler)
    for pid in filter(forks.runs, forks.pids):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(("ends", "code"), [("sys.exit(3)", 3), ("sys.exit(0)", 1), ("os.kill(os.getpid(), 9)", 1)])
def test_the_end_of_one_process_ends_the_others(forks: Forks, ends: str, code: int) -> None:
    """Given one that ends, however it does, I expect a failure of the first one, which forgets and logs it."""
    forks.programs = [IDLES, f"import os, sys; {ends}"]
    ended: list[int] = []
    processes = Processes(3, ended.append)

    with capture_logs() as logs:
        found = wait_until(processes.exit_code, description="the exit code")

    assert processes.is_first
    assert found == code
    assert ended == [forks.pids[1]]
    assert [(line["event"], line["pid"]) for line in logs] == [("worker_process_ended", forks.pids[1])]


def test_while_all_run_there_is_no_exit_code(forks: Forks) -> None:
    """Given processes that work, I expect none, and that they may be told to begin."""
    forks.programs = [IDLES]
    processes = Processes(2)

    processes.begin()

    assert processes.exit_code() is None


def test_a_process_that_hangs_is_killed_in_time(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a stop, one process that ends by it and one that does not, I expect the second to be killed and logged."""
    monkeypatch.setattr("tasks.__main__.KILL_AFTER_S", 0.05)
    forks.programs = [IDLES, HANGS]
    processes = Processes(3)

    processes.stop()
    with capture_logs() as logs:
        os.waitid(os.P_PID, forks.pids[0], os.WEXITED | os.WNOWAIT)  # it has ended, and is not waited for
        processes.join(0.05)

    assert [(line["event"], line["pid"]) for line in logs] == [("worker_process_killed", forks.pids[1])]
    assert not any(map(forks.runs, forks.pids))
