"""The supervisor, with little scripts in place of the stack's processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import structlog

from services.runtime.errors import ProcessKeepsDying
from services.stack import supervisor as supervisor_module
from services.stack.process_tree import ProcessId
from services.stack.processes import ProcessSpec
from services.stack.supervisor import Supervisor
from tests.support import wait_until

SLEEPS = "import time; time.sleep(600)"
DIES = "import sys; print('no luck today'); sys.exit(3)"

Start = Callable[..., Supervisor]


def spec(name: str, script: str) -> ProcessSpec:
    return ProcessSpec(name, (sys.executable, "-c", script))


def notes_its_end(file: Path, signal_name: str = "SIGTERM") -> str:
    """A script that says it is ready, and notes its name when it gets the signal."""
    return f"""
import os, signal, sys, time
def end(*_):
    with open({str(file)!r}, "a") as notes:
        notes.write(os.environ["LTM_PROCESS_NAME"] + "\\n")
    sys.exit(0)
signal.signal(signal.{signal_name}, end)
print("ready", flush=True)
time.sleep(600)
"""


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def started(tmp_path: Path, clock: Clock) -> Iterator[Start]:
    """Starts a supervisor of the specs, and ends it with the test."""
    supervisors: list[Supervisor] = []

    def start(*specs: ProcessSpec, on_start: Callable[[dict[str, ProcessId]], None] = lambda _: None) -> Supervisor:
        supervisors.append(Supervisor(specs, dict(os.environ), tmp_path, tmp_path, on_start, clock))
        supervisors[-1].poll()
        return supervisors[-1]

    yield start
    for each in supervisors:
        each.stop()


def wait_for_line(supervisor: Supervisor, name: str, line: str) -> None:
    wait_until(lambda: line in supervisor.last_lines(name), 10, f"{line!r} in the log of {name}")


def wait_for_restart(supervisor: Supervisor) -> list[structlog.typing.EventDict]:
    """Tend until something is logged, which a death is; the log."""

    def tended() -> list[structlog.typing.EventDict]:
        supervisor.poll()
        return logs

    with structlog.testing.capture_logs() as logs:
        return wait_until(tended, 10, "a death to be noticed")


def test_every_process_is_started_in_a_session_of_its_own(started: Start) -> None:
    supervisor = started(spec("a", SLEEPS), spec("b", SLEEPS))

    pids = [identity.pid for identity in supervisor.running.values()]

    assert supervisor.names == ["a", "b"]
    assert [os.getsid(pid) for pid in pids] == pids


def test_each_start_is_told_with_all_who_run_by_then(started: Start) -> None:
    told: list[list[str]] = []

    started(spec("a", SLEEPS), spec("b", SLEEPS), on_start=lambda running: told.append(list(running)))

    assert told == [["a"], ["a", "b"]]


def test_a_process_knows_its_name(started: Start) -> None:
    supervisor = started(spec("memory", "import os; print(os.environ['LTM_PROCESS_NAME'])"))

    wait_for_line(supervisor, "memory", "memory")


def test_a_process_that_dies_is_started_again_and_the_log_says_so(started: Start) -> None:
    supervisor = started(spec("a", SLEEPS))
    first = supervisor.running["a"].pid

    os.kill(first, signal.SIGKILL)
    logs = wait_for_restart(supervisor)

    assert supervisor.running["a"].pid != first
    assert logs == [
        {"event": "process_died_and_is_restarted", "log_level": "warning", "name": "a", "exit_code": -9, "deaths": 1}
    ]


def test_what_a_dead_master_left_behind_is_ended_before_its_successor_starts(started: Start) -> None:
    # Given a process with a worker of its own, as a Dramatiq master has
    master = f"""
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", {SLEEPS!r}])
print(worker.pid, flush=True)
worker.wait()
"""
    supervisor = started(spec("a", master))
    worker = int(wait_until(lambda: supervisor.last_lines("a"), 10, "the worker's pid")[0])

    # When the master dies without a chance to end it
    os.kill(supervisor.running["a"].pid, signal.SIGKILL)
    wait_for_restart(supervisor)

    # I expect the worker to be gone too
    wait_until(lambda: not runs(worker), 5, "the end of the worker")


def test_five_deaths_within_a_minute_are_too_many(started: Start, clock: Clock) -> None:
    supervisor = started(spec("a", DIES))

    def poll() -> None:
        if not supervisor.running:
            clock.now += 3  # longer than any pause before a restart
        supervisor.poll()

    with structlog.testing.capture_logs() as logs, pytest.raises(ProcessKeepsDying, match="no luck today") as raised:
        wait_until(poll, 20, "the fifth death")

    assert "a died 5 times within a minute (exit code 3)" in str(raised.value)
    assert len(logs) == 4  # four restarts came before


def test_deaths_of_long_ago_are_forgiven(started: Start, clock: Clock) -> None:
    supervisor = started(spec("a", DIES))

    def deaths(logs: list[structlog.typing.EventDict]) -> bool:
        if not supervisor.running:
            clock.now += 3
        if len(logs) == 4:
            clock.now += 60
        supervisor.poll()
        return len(logs) == 7

    with structlog.testing.capture_logs() as logs:
        wait_until(lambda: deaths(logs), 20, "seven deaths")


def test_servers_are_ended_after_all_that_need_them(started: Start, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    script = notes_its_end(notes)
    supervisor = started(spec("redis", script), spec("memory", script), spec("chat-ai", script))
    for name in supervisor.names:
        wait_for_line(supervisor, name, "ready")

    supervisor.stop()

    *services, last = notes.read_text().split()
    assert sorted(services) == ["chat-ai", "memory"]
    assert last == "redis"


def test_postgres_gets_the_signal_on_which_it_does_not_wait_for_its_clients(started: Start, tmp_path: Path) -> None:
    supervisor = started(spec("postgres", notes_its_end(tmp_path / "notes", "SIGINT")))
    wait_for_line(supervisor, "postgres", "ready")

    supervisor.stop()

    assert (tmp_path / "notes").read_text() == "postgres\n"


def test_a_worker_gets_its_signal_from_its_own_master_alone(started: Start, tmp_path: Path) -> None:
    # Given a master that ends its worker itself, and counts on nobody else doing so
    notes = tmp_path / "notes"
    worker = notes_its_end(notes)
    master = f"""
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {worker!r}], stdout=subprocess.PIPE)
child.stdout.readline()
def end(*_):
    child.terminate(); child.wait(); sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(600)
"""
    supervisor = started(spec("a", master))
    wait_for_line(supervisor, "a", "ready")

    supervisor.stop()

    assert notes.read_text() == "a\n"


def test_what_ignores_its_signal_is_killed_with_all_it_started(started: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "SERVICE_GRACE_S", 0.3)
    stubborn = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(subprocess.Popen([sys.executable, "-c", {SLEEPS!r}], start_new_session=True).pid, flush=True)
time.sleep(600)
"""
    supervisor = started(spec("a", stubborn))
    grandchild = int(wait_until(lambda: supervisor.last_lines("a"), 10, "the grandchild's pid")[0])
    pid = supervisor.running["a"].pid

    supervisor.stop()

    assert not runs(pid)
    wait_until(lambda: not runs(grandchild), 5, "the end of the grandchild")


def test_stopping_twice_is_stopping_once(started: Start) -> None:
    supervisor = started(spec("a", SLEEPS))

    supervisor.stop()
    supervisor.stop()

    assert supervisor.running == {}


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
