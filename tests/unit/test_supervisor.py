"""The supervisor, with small scripts in place of the stack's processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import structlog

from services.runtime.errors import EXIT_CANNOT_START, CannotStart, InvalidSetting, ProcessKeepsDying
from services.stack.logfile import MAX_BYTES
from services.stack.process_tree import ProcessId
from services.stack.processes import ProcessSpec
from services.stack.supervisor import CRASH_WINDOW_S, TRIM_INTERVAL_S, Supervisor
from tests.support import wait_until

SLEEPS = "import time; time.sleep(600)"
CRASHES = "import sys; print('no disk'); sys.exit(3)"

Start = Callable[..., Supervisor]


def spec(name: str, script: str) -> ProcessSpec:
    return ProcessSpec(name, (sys.executable, "-c", script))


def records_its_stop(file: Path, signal_name: str = "SIGTERM") -> str:
    """A script that prints "ready", and appends its name to the file when it receives the signal."""
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
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def started(tmp_path: Path, clock: Clock) -> Iterator[Start]:
    """Starts a supervisor of the specs, and stops it after the test."""
    supervisors: list[Supervisor] = []

    def start(
        *specs: ProcessSpec,
        on_start: Callable[[dict[str, ProcessId]], None] = lambda _: None,
        service_grace_s: float = 60.0,
    ) -> Supervisor:
        supervisors.append(
            Supervisor(specs, dict(os.environ), tmp_path, tmp_path, on_start, clock, service_grace_s=service_grace_s)
        )
        supervisors[-1].poll()
        return supervisors[-1]

    yield start
    for each in supervisors:
        each.stop()


def wait_for_line(supervisor: Supervisor, name: str, line: str) -> None:
    wait_until(lambda: line in supervisor.last_lines(name), description=f"{line!r} in the log of {name}")


def wait_for_restart(supervisor: Supervisor) -> list[structlog.typing.EventDict]:
    """Poll until something is logged, as a restart is; the log."""

    def polled() -> list[structlog.typing.EventDict]:
        supervisor.poll()
        return logs

    with structlog.testing.capture_logs() as logs:
        return wait_until(polled, description="a restart")


def test_every_process_is_started_in_a_session_of_its_own(started: Start) -> None:
    supervisor = started(spec("a", SLEEPS), spec("b", SLEEPS))

    pids = [identity.pid for identity in supervisor.running.values()]

    assert supervisor.names == ["a", "b"]
    assert [os.getsid(pid) for pid in pids] == pids


def test_on_start_gets_the_processes_that_run_after_each_start(started: Start) -> None:
    calls: list[list[str]] = []

    started(spec("a", SLEEPS), spec("b", SLEEPS), on_start=lambda running: calls.append(list(running)))

    assert calls == [["a"], ["a", "b"]]


def test_a_process_has_its_name_in_its_environment(started: Start) -> None:
    supervisor = started(spec("memory", "import os; print(os.environ['LTM_PROCESS_NAME'])"))

    wait_for_line(supervisor, "memory", "memory")


def test_a_process_has_its_working_directory_and_logs_its_stderr(started: Start, tmp_path: Path) -> None:
    supervisor = started(spec("a", "import os, sys; print(os.getcwd(), file=sys.stderr)"))

    wait_for_line(supervisor, "a", str(tmp_path))


def test_a_process_that_exits_is_restarted_and_logged(started: Start) -> None:
    supervisor = started(spec("a", SLEEPS))
    first = supervisor.running["a"].pid

    os.kill(first, signal.SIGKILL)
    logs = wait_for_restart(supervisor)

    assert supervisor.running["a"].pid != first
    assert logs == [{"event": "process_restarted", "log_level": "warning", "name": "a", "exit_code": -9, "crashes": 1}]


def test_the_children_of_a_killed_master_are_killed_before_its_restart(started: Start) -> None:
    # Given a process with a worker of its own, as a Dramatiq master has
    master = f"""
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", {SLEEPS!r}])
print(worker.pid, flush=True)
worker.wait()
"""
    supervisor = started(spec("a", master))
    worker = int(wait_until(lambda: supervisor.last_lines("a"), description="the worker's pid")[0])

    # When the master is killed without a chance to stop it
    os.kill(supervisor.running["a"].pid, signal.SIGKILL)
    wait_for_restart(supervisor)

    # I expect the worker to be killed too
    wait_until(lambda: not runs(worker), description="the end of the worker")


def test_five_crashes_within_a_minute_end_the_stack(started: Start, clock: Clock) -> None:
    supervisor = started(spec("a", CRASHES))

    def poll() -> None:
        if not supervisor.running:
            clock.now += 3  # longer than any pause before a restart
        supervisor.poll()

    with structlog.testing.capture_logs() as logs, pytest.raises(ProcessKeepsDying, match="no disk") as raised:
        wait_until(poll, description="the fifth crash")

    assert "a exited 5 times within a minute (exit code 3)" in str(raised.value)
    assert len(logs) == 4  # four restarts came before


def test_a_temporary_log_is_not_named(tmp_path: Path, clock: Clock) -> None:
    """Given logs that go with the stack, I expect the last lines of the failing process, and no path."""
    supervisor = Supervisor(
        [spec("a", CRASHES)], dict(os.environ), tmp_path, tmp_path, lambda _: None, clock, logs_kept=False
    )

    def poll() -> None:
        if not supervisor.running:
            clock.now += 3
        supervisor.poll()

    with structlog.testing.capture_logs(), pytest.raises(ProcessKeepsDying) as raised:
        wait_until(poll, 20, "the fifth crash")

    assert str(raised.value).endswith("so the stack was stopped; its last lines:\n" + "\n".join(["  no disk"] * 5))


def gives_up(line: str) -> str:
    """A script that logs the line and exits as a process does that no restart helps."""
    return f"import sys; print({line!r}); sys.exit({EXIT_CANNOT_START})"


@pytest.mark.parametrize(
    ("line", "error", "text"),
    [
        (
            '{"event": "start_refused", "code": "cannot_start", "reason": "no pgvector"}',
            CannotStart,
            "no pgvector",
        ),
        ('{"event": "start_refused", "code": "invalid_setting", "reason": "LTM_X"}', InvalidSetting, "LTM_X"),
        ("ltm: LTM_PREFETCH is 'many'", CannotStart, "a: LTM_PREFETCH is 'many'"),
    ],
)
def test_a_process_that_no_restart_helps_ends_the_stack_at_once(
    started: Start, line: str, error: type[CannotStart], text: str
) -> None:
    """Given the exit code of a process that cannot start, I expect its reason as the error, after one start."""
    supervisor = started(spec("a", gives_up(line)))

    with structlog.testing.capture_logs() as logs, pytest.raises(error) as raised:
        wait_until(supervisor.poll, 20, "the exit")

    assert str(raised.value) == text
    assert logs == []


def test_what_a_starting_process_waits_for_is_known(started: Start, tmp_path: Path) -> None:
    """Given a log of an earlier run too, I expect what the present one waits for, and no more than that."""
    (tmp_path / "a.log").write_text('{"event": "start_awaits", "reason": "an earlier run"}\n')
    waits = '{"event": "start_awaits", "reason": "the embedder"}'
    supervisor = started(spec("a", f"print({waits!r}, flush=True); {SLEEPS}"), spec("b", SLEEPS))

    assert wait_until(lambda: supervisor.awaited("a"), 10, "a reason") == "the embedder"
    assert supervisor.awaited("b") is None


def test_crashes_before_the_last_minute_do_not_count(started: Start, clock: Clock) -> None:
    supervisor = started(spec("a", CRASHES))

    def crashes(logs: list[structlog.typing.EventDict]) -> bool:
        if not supervisor.running:
            clock.now += 3
        if len(logs) == 4:
            clock.now += CRASH_WINDOW_S
        supervisor.poll()
        return len(logs) == 7

    with structlog.testing.capture_logs() as logs:
        wait_until(lambda: crashes(logs), description="seven crashes")


def test_restarts_back_off(started: Start, clock: Clock) -> None:
    """Given a crash loop, I expect the first restart at once, and the next after 0.25, 0.5 and 1 s, not before."""
    supervisor = started(spec("a", CRASHES))

    def crashed(times: int) -> bool:
        supervisor.poll()
        return len(logs) == times

    with structlog.testing.capture_logs() as logs:
        for number, wait_s in enumerate((0.0, 0.25, 0.5, 1.0), start=1):
            wait_until(partial(crashed, number), description="a crash")
            if wait_s:
                clock.now += wait_s - 0.125
                supervisor.poll()
                assert supervisor.running == {}
                clock.now += 0.125
                supervisor.poll()
            assert "a" in supervisor.running


def test_logs_are_rotated_every_few_seconds(started: Start, clock: Clock, tmp_path: Path) -> None:
    supervisor = started(spec("a", SLEEPS))
    with (tmp_path / "a.log").open("ab") as log:
        log.truncate(MAX_BYTES + 1)

    clock.now += TRIM_INTERVAL_S - 0.1
    supervisor.poll()
    assert not (tmp_path / "a.log.1").exists()

    clock.now += 0.1
    supervisor.poll()
    assert (tmp_path / "a.log.1").exists()
    assert (tmp_path / "a.log").stat().st_size == 0


def test_servers_are_stopped_after_the_services(started: Start, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    script = records_its_stop(notes)
    supervisor = started(spec("redis", script), spec("memory", script), spec("chat-ai", script))
    for name in supervisor.names:
        wait_for_line(supervisor, name, "ready")

    supervisor.stop()

    *services, last = notes.read_text().split()
    assert sorted(services) == ["chat-ai", "memory"]
    assert last == "redis"


def test_postgres_is_stopped_by_sigint(started: Start, tmp_path: Path) -> None:
    supervisor = started(spec("postgres", records_its_stop(tmp_path / "notes", "SIGINT")))
    wait_for_line(supervisor, "postgres", "ready")

    supervisor.stop()

    assert (tmp_path / "notes").read_text() == "postgres\n"


def test_a_master_alone_is_signalled_and_stops_its_workers(started: Start, tmp_path: Path) -> None:
    # Given a master that stops its worker itself
    notes = tmp_path / "notes"
    worker = records_its_stop(notes)
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


def test_a_process_that_ignores_its_signal_is_killed_with_all_it_started(started: Start) -> None:
    stubborn = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(subprocess.Popen([sys.executable, "-c", {SLEEPS!r}], start_new_session=True).pid, flush=True)
time.sleep(600)
"""
    supervisor = started(spec("a", stubborn), service_grace_s=0.3)
    grandchild = int(wait_until(lambda: supervisor.last_lines("a"), description="the grandchild's pid")[0])
    pid = supervisor.running["a"].pid

    supervisor.stop()

    assert not runs(pid)
    wait_until(lambda: not runs(grandchild), description="the end of the grandchild")


def test_a_process_that_is_slow_to_die_does_not_keep_the_servers_from_their_signal(
    started: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a service that SIGKILL has not ended in time, I expect the server stopped in order, and no error."""
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(600)"
    supervisor = started(
        spec("redis", records_its_stop(tmp_path / "notes")),
        ProcessSpec("memory", (sys.executable, "-u", "-c", stubborn)),
        service_grace_s=0.1,
    )
    for name in supervisor.names:
        wait_for_line(supervisor, name, "ready")
    pid = supervisor.running["memory"].pid
    send = os.kill

    with monkeypatch.context() as patched:
        patched.setattr(
            os, "kill", lambda to, number: None if (to, number) == (pid, signal.SIGKILL) else send(to, number)
        )
        supervisor.stop()

    assert (tmp_path / "notes").read_text() == "redis\n"
    assert list(supervisor.running) == ["memory"]


def test_stop_is_idempotent(started: Start) -> None:
    supervisor = started(spec("a", SLEEPS))

    supervisor.stop()
    supervisor.stop()

    assert supervisor.running == {}


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
