"""The fork server, with small modules in place of the stack's processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
import structlog

from services.stack import fork_server, process_tree
from services.stack.fork_server import (
    ENDS_WINDOW_S,
    LOAD_TIMEOUT_S,
    MAX_ENDS,
    ForkedProcess,
    ForkServer,
    installed_code,
)
from services.stack.process_tree import ProcessId
from services.stack.processes import ProcessSpec, fork_server_command, service_specs
from services.stack.supervisor import Supervisor
from tests.support import end_subreaper, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a fork server is for Linux")

SERVER = """
import socket, sys
loaded = object()
from services.stack.forking import serve
serve(socket.socket(fileno=int(sys.argv[1])))
"""
SLEEPS = "import time; print('ready', flush=True); time.sleep(600)"

Fork = Callable[..., ForkedProcess]


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def no_subreaper_afterwards() -> Iterator[None]:
    """The orphans of other tests are not this process's."""
    yield
    end_subreaper()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def installed() -> list[int]:
    """What stands for the code on the disk."""
    return [1]


@pytest.fixture
def server(tmp_path: Path, clock: Clock, installed: list[int]) -> Iterator[ForkServer]:
    """A fork server, which is ready."""
    server = ForkServer([sys.executable, "-c", SERVER], os.environ, tmp_path, tmp_path, clock, lambda: list(installed))
    wait_until(server.ready, description="the fork server")
    yield server
    server.stop()


@pytest.fixture
def fork(server: ForkServer, tmp_path: Path) -> Iterator[Fork]:
    """Forks a module with this source, which logs to `NAME.log`, and kills it after the test."""
    forked: list[ForkedProcess] = []

    def start(name: str, source: str, *arguments: str, **variables: str) -> ForkedProcess:
        (tmp_path / f"module_{name}.py").write_text(source)
        with (tmp_path / f"{name}.log").open("ab") as output:
            process = server.fork(name, [f"module_{name}", *arguments], variables, output)
        assert process is not None
        forked.append(process)
        return process

    yield start
    for each in forked:
        each.send_signal(signal.SIGKILL)
        wait_for_end(each)


def pid_of(server: ForkServer) -> int:
    assert server.pid is not None
    return server.pid


def own_children() -> set[int]:
    """The children of this process, also those of other tests' servers."""
    return {child.pid for child in psutil.Process().children()}


def wait_for_log(directory: Path, name: str, text: str) -> str:
    def logged() -> str:
        written = (directory / f"{name}.log").read_text()
        return written if text in written else ""

    return wait_until(logged, description=f"{text!r} in the log of {name}")


def wait_for_end(process: ForkedProcess) -> int:
    wait_until(lambda: process.poll() is not None, description="the end of the process")
    assert process.returncode is not None
    return process.returncode


def test_a_module_runs_as_the_main_one_with_its_arguments_variables_and_log(fork: Fork, tmp_path: Path) -> None:
    source = "import os, sys; print(__name__, sys.argv[1:], os.environ['WHERE'], os.getcwd())"

    code = wait_for_end(fork("a", source, "--queues", "index", WHERE="here"))

    assert (tmp_path / "a.log").read_text() == f"__main__ ['--queues', 'index'] here {tmp_path}\n"
    assert code == 0


def test_the_code_of_what_is_loaded_is_not_run_again(fork: Fork, tmp_path: Path) -> None:
    """Given a module that the fork server has imported, I expect a fork to have it without importing it."""
    wait_for_end(fork("a", "import sys; print('services.stack.forking' in sys.modules)"))

    assert (tmp_path / "a.log").read_text() == "True\n"


@pytest.mark.parametrize(
    ("source", "code", "logged"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit('no disk')", 1, "no disk\n"),
        ("import os; os._exit(4)", 4, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_the_exit_code_is_told(fork: Fork, tmp_path: Path, source: str, code: int, logged: str) -> None:
    assert wait_for_end(fork("a", source)) == code
    assert logged in (tmp_path / "a.log").read_text()


def test_a_crash_before_a_process_has_its_own_report_is_not_reported_as_the_servers(tmp_path: Path) -> None:
    """Given a fork server that logs its crashes under its name, I expect a fork's as the interpreter reports it."""
    named = f"import sys; sys.excepthook = lambda *_: print('fork-server crashed', flush=True)\n{SERVER}"
    server = ForkServer([sys.executable, "-c", named], os.environ, tmp_path, tmp_path)
    wait_until(server.ready, description="the fork server")
    (tmp_path / "module_a.py").write_text("1 / 0")

    with (tmp_path / "a.log").open("ab") as output:
        process = server.fork("a", ["module_a"], {}, output)
    assert process is not None
    wait_for_end(process)
    server.stop()

    logged = (tmp_path / "a.log").read_text()
    assert logged.startswith("Traceback")
    assert "fork-server crashed" not in logged


def test_an_exit_code_that_is_still_to_be_read_is_not_taken(fork: Fork) -> None:
    """Given a process of the supervisor's own that has ended, I expect its code to be left for who started it."""
    process = fork("a", "raise SystemExit(3)")
    ended = psutil.Process(process.pid)
    wait_until(lambda: ended.status() == psutil.STATUS_ZOMBIE, description="its end")

    process_tree.reap_adopted(own_children())

    assert process.poll() == 3


def test_a_server_that_the_system_refuses_is_asked_for_again_after_a_second(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ForkServer([sys.executable, "-c", SERVER], os.environ, tmp_path, tmp_path, clock)
    tries: list[float] = []

    def refusing(*_: Any, **__: Any) -> NoReturn:
        tries.append(clock.now)
        raise BlockingIOError(errno.EAGAIN, "no process left")

    monkeypatch.setattr(subprocess, "Popen", refusing)
    began = clock.now
    with structlog.testing.capture_logs():
        for later in (0.0, 0.5, 1.0):
            clock.now = began + later
            assert not server.ready()

    assert tries == [began, began + 1.0]
    assert not server.failed


def test_a_fork_is_a_child_in_a_session_of_its_own_and_named_for_ps(fork: Fork, tmp_path: Path) -> None:
    process = fork("a", SLEEPS)
    wait_for_log(tmp_path, "a", "ready")

    assert os.getsid(process.pid) == process.pid
    assert psutil.Process(process.pid).ppid() == os.getpid()
    assert " ".join(psutil.Process(process.pid).cmdline()).strip() == "ltm up: a"


def test_a_fork_keeps_none_of_the_servers_descriptors_and_handlers(fork: Fork, tmp_path: Path) -> None:
    fork("before", SLEEPS)
    source = "import os, signal; print(sorted(os.listdir('/proc/self/fd'))[:-1], signal.getsignal(signal.SIGCHLD).name)"

    wait_for_end(fork("a", source))

    assert (tmp_path / "a.log").read_text() == "['0', '1', '2'] SIG_DFL\n"


def test_an_exit_code_that_was_lost_counts_as_0(fork: Fork) -> None:
    """Given an end that something else has waited for, I expect the process to count as ended, as one of Popen does."""
    process = fork("a", "raise SystemExit(3)")
    os.waitpid(process.pid, 0)

    assert process.poll() == 0


def test_many_ends_at_once_are_each_told(fork: Fork) -> None:
    processes = [fork(f"a{number}", f"raise SystemExit({number})") for number in range(20)]

    assert [wait_for_end(process) for process in processes] == list(range(20))


def test_a_signal_reaches_the_process_alone(fork: Fork, tmp_path: Path) -> None:
    other, process = fork("other", SLEEPS), fork("a", SLEEPS)
    wait_for_log(tmp_path, "a", "ready")

    process.send_signal(signal.SIGTERM)

    assert wait_for_end(process) == -signal.SIGTERM
    assert other.poll() is None


def test_others_see_the_environment_of_a_fork(fork: Fork, tmp_path: Path) -> None:
    """Given a fork with a title, I expect its environment to be that of the fork server, whole, to other processes."""
    process = fork("a", SLEEPS)
    wait_for_log(tmp_path, "a", "ready")

    environment = psutil.Process(process.pid).environ()

    assert {name: environment[name] for name in ("PATH", "SPT_NOENV")} == {"PATH": os.environ["PATH"], "SPT_NOENV": "1"}


def test_a_killed_server_disturbs_nothing_and_is_replaced(server: ForkServer, fork: Fork, tmp_path: Path) -> None:
    """Given kill -9 of the server, I expect its forks to go on, their ends to be known, and the next to fork more."""
    process = fork("a", SLEEPS)
    first = pid_of(server)

    os.kill(first, signal.SIGKILL)
    with structlog.testing.capture_logs() as logs:
        wait_until(lambda: server.ready() and pid_of(server) != first, description="the next server")

    assert [(line["event"], line["used_again"]) for line in logs] == [("fork_server_ended", True)]
    assert process.poll() is None
    assert wait_for_end(fork("b", "raise SystemExit(5)")) == 5
    process.send_signal(signal.SIGTERM)
    assert wait_for_end(process) == -signal.SIGTERM


def test_a_server_that_ends_again_and_again_is_given_up(server: ForkServer, clock: Clock) -> None:
    with structlog.testing.capture_logs() as logs:
        for number in range(MAX_ENDS):
            killed = pid_of(server)
            os.kill(killed, signal.SIGKILL)
            wait_until(
                lambda killed=killed: server.failed or (server.ready() and pid_of(server) != killed),  # type: ignore[misc]
                description=f"the end of server {number}",
            )

    assert server.failed
    assert not server.ready()
    assert [line["used_again"] for line in logs] == [True, True, False]


def test_a_server_that_ends_now_and_then_is_replaced_each_time(server: ForkServer, clock: Clock) -> None:
    with structlog.testing.capture_logs():
        for _ in range(MAX_ENDS + 1):
            killed = pid_of(server)
            os.kill(killed, signal.SIGKILL)
            wait_until(
                lambda killed=killed: server.ready() and pid_of(server) != killed,  # type: ignore[misc]
                description="the next server",
            )
            clock.now += ENDS_WINDOW_S

    assert not server.failed


def test_a_server_with_old_code_is_replaced_before_the_next_fork(
    server: ForkServer, clock: Clock, installed: list[int]
) -> None:
    """Given an upgrade in place, I expect a fork server that has loaded it, as a fork imports the rest from there."""
    first = pid_of(server)

    installed[0] = 2
    clock.now += 2

    with structlog.testing.capture_logs() as logs:
        assert not server.ready()
        wait_until(server.ready, description="the next server")
    assert pid_of(server) != first
    assert [line["event"] for line in logs] == ["fork_server_outdated"]


def test_a_changed_module_is_other_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in ("adapters", "services", "tasks"):
        (tmp_path / package).mkdir()
    module = tmp_path / "services" / "module.py"
    module.write_text("")
    monkeypatch.setattr(fork_server, "ROOT", tmp_path)
    before = installed_code()

    os.utime(module, (4e9, 4e9))
    after = installed_code()
    module.unlink()
    os.symlink("missing", module)  # as one that is gone between two looks at it

    assert after != before
    assert installed_code() not in (before, after)


def test_what_cannot_be_forked_is_told_with_the_reason(tmp_path: Path) -> None:
    """Given a system with no process left, I expect the server to say so, and to go on."""
    refusing = SERVER.replace(
        "loaded = object()", "import os; fork = os.fork; os.fork = lambda: fork() if tries.pop() else refuse()"
    )
    refusing = "tries = [True, True, False]\ndef refuse(): raise BlockingIOError(11, 'no process left')\n" + refusing
    server = ForkServer([sys.executable, "-c", refusing], os.environ, tmp_path, tmp_path)
    wait_until(server.ready, description="the fork server")
    (tmp_path / "module_a.py").write_text("raise SystemExit(6)")

    with structlog.testing.capture_logs() as logs, (tmp_path / "a.log").open("ab") as output:
        assert server.fork("a", ["module_a"], {}, output) is None
        process = server.fork("a", ["module_a"], {}, output)

    assert [(line["event"], line["reason"]) for line in logs] == [("fork_refused", "[Errno 11] no process left")]
    assert process is not None
    assert wait_for_end(process) == 6
    server.stop()


def test_a_fork_that_its_supervisor_does_not_learn_of_ends(tmp_path: Path) -> None:
    """Given a fork that is slower than the supervisor waits, I expect it to run nothing, beside the next."""
    earlier = own_children()
    slow = "import time" + SERVER.replace(
        "loaded = object()", "import os; os.register_at_fork(after_in_child=lambda: time.sleep(3))"
    )
    server = ForkServer([sys.executable, "-c", slow], os.environ, tmp_path, tmp_path)
    wait_until(server.ready, description="the fork server")
    (tmp_path / "module_a.py").write_text("print('it runs', flush=True)")

    with structlog.testing.capture_logs(), (tmp_path / "a.log").open("ab") as output:
        assert server.fork("a", ["module_a"], {}, output) is None

    server.stop()

    def reaped() -> bool:
        process_tree.reap_adopted(earlier)
        return own_children() == earlier

    wait_until(reaped, description="its end")
    assert (tmp_path / "a.log").read_text() == ""


def test_a_server_that_ends_while_it_is_asked_forks_nothing(server: ForkServer, tmp_path: Path) -> None:
    at = psutil.Process(pid_of(server))
    at.kill()
    wait_until(lambda: at.status() == psutil.STATUS_ZOMBIE, description="its end")

    with structlog.testing.capture_logs(), (tmp_path / "a.log").open("ab") as output:
        assert server.fork("a", ["module_a"], {}, output) is None

    assert not server.failed


def test_a_server_that_hangs_is_replaced(server: ForkServer, tmp_path: Path) -> None:
    """Given a frozen server, I expect a request to be given up, and the next one to be for another server."""
    first = pid_of(server)
    os.kill(first, signal.SIGSTOP)

    with structlog.testing.capture_logs(), (tmp_path / "a.log").open("ab") as output:
        assert server.fork("a", ["module_a"], {}, output) is None

    wait_until(server.ready, description="the next server")
    assert pid_of(server) != first


def test_a_parent_that_ignores_the_ends_of_its_children_leaves_that_to_none(tmp_path: Path) -> None:
    """Given SIGCHLD ignored, which a process hands on to those that it executes, I expect exit codes all the same."""
    server = ForkServer([sys.executable, "-c", SERVER], os.environ, tmp_path, tmp_path)
    (tmp_path / "module_a.py").write_text("raise SystemExit(3)")
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        wait_until(server.ready, description="the fork server")
        with (tmp_path / "a.log").open("ab") as output:
            process = server.fork("a", ["module_a"], {}, output)
        assert process is not None
        assert wait_for_end(process) == 3
    finally:
        signal.signal(signal.SIGCHLD, before)
        server.stop()


def test_a_fork_of_another_supervisor_ends(server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a supervisor that has ended since it asked, I expect the fork, whose parent is another, to run nothing."""
    (tmp_path / "module_a.py").write_text("print('it runs', flush=True)")
    monkeypatch.setattr(os, "getpid", lambda: 1)

    with structlog.testing.capture_logs(), (tmp_path / "a.log").open("ab") as output:
        assert server.fork("a", ["module_a"], {}, output) is None

    assert (tmp_path / "a.log").read_text() == ""


def test_the_server_ends_with_its_supervisor_and_leaves_its_forks(
    server: ForkServer, fork: Fork, tmp_path: Path
) -> None:
    """Given a supervisor that is gone, as after kill -9, I expect the server to end, and its forks to go on."""
    process = fork("a", SLEEPS)
    wait_for_log(tmp_path, "a", "ready")
    at = psutil.Process(pid_of(server))

    assert server._connection is not None
    server._connection.close()

    wait_until(lambda: at.status() == psutil.STATUS_ZOMBIE, description="the end of the server")
    assert process.poll() is None
    server._connection = None


def test_a_server_that_cannot_load_has_failed(tmp_path: Path) -> None:
    server = ForkServer([sys.executable, "-c", "import a_module_that_is_missing"], os.environ, tmp_path, tmp_path)

    with structlog.testing.capture_logs() as logs:
        wait_until(lambda: not server.ready() and server.failed, description="its failure")

    assert [line["used_again"] for line in logs] == [False]
    assert "No module named 'a_module_that_is_missing'" in (tmp_path / "fork-server.log").read_text()


def test_a_server_that_does_not_load_in_time_has_failed(tmp_path: Path, clock: Clock) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    server = ForkServer(command, os.environ, tmp_path, tmp_path, clock)
    assert not server.ready()
    assert not server.failed

    clock.now += LOAD_TIMEOUT_S + 1
    with structlog.testing.capture_logs() as logs:
        assert not server.ready()

    assert server.failed
    assert [line["reason"] for line in logs] == ["it has not loaded within 60 s"]


def test_what_a_killed_fork_left_in_its_session_is_known_by_its_name(fork: Fork, tmp_path: Path) -> None:
    """Given a fork that has forked, and is killed, I expect what it left to count as its remains, and no other's."""
    process = fork("a", "import os, time; print(os.fork() or 'ready', flush=True); time.sleep(600)")
    wait_for_log(tmp_path, "a", "ready")
    identity = process_tree.identify(process.pid)

    process.send_signal(signal.SIGKILL)
    wait_for_end(process)

    (left,) = process_tree.remains(identity, "a")
    assert process_tree.remains(identity, "b") == []
    left.kill()
    # It is this process's child since its parent has ended, and so has to be reaped.
    wait_until(lambda: left.status() == psutil.STATUS_ZOMBIE, description="its end")
    process_tree.reap_adopted(own_children() - {left.pid})
    assert not psutil.pid_exists(left.pid)


# The supervisor with a fork server


def forkable(name: str, module: str) -> ProcessSpec:
    return ProcessSpec(name, (sys.executable, "-m", module), forkable=True)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """Starts a supervisor with a fork server of this source, and stops it after the test."""
    supervisors: list[Supervisor] = []

    def start(*specs: ProcessSpec, source: str = SERVER) -> Supervisor:
        server = ForkServer([sys.executable, "-c", source], os.environ, tmp_path, tmp_path)
        supervisors.append(Supervisor(specs, dict(os.environ), tmp_path, tmp_path, lambda _: None, fork_server=server))
        return supervisors[-1]

    yield start
    for each in supervisors:
        each.stop()


def running(supervisor: Supervisor, *names: str) -> list[ProcessId]:
    supervisor.poll()
    return [supervisor.running[name] for name in names if name in supervisor.running]


def test_a_forkable_process_is_forked_and_another_executed(
    supervised: Callable[..., Supervisor], tmp_path: Path
) -> None:
    (tmp_path / "sleeping.py").write_text(SLEEPS)
    earlier = own_children()
    supervisor = supervised(forkable("a", "sleeping"), ProcessSpec("b", (sys.executable, "-c", SLEEPS)))

    wait_until(lambda: len(running(supervisor, "a", "b")) == 2, description="both")
    a, b = running(supervisor, "a", "b")
    for name in "ab":
        wait_for_log(tmp_path, name, "ready")

    assert " ".join(psutil.Process(a.pid).cmdline()).strip() == "ltm up: a"
    assert psutil.Process(b.pid).cmdline()[1:] == ["-c", SLEEPS]
    supervisor.stop()
    assert own_children() == earlier


def test_a_killed_fork_and_what_it_has_forked_are_replaced_by_the_next(
    supervised: Callable[..., Supervisor], tmp_path: Path
) -> None:
    source = "import os, time; print(os.fork() or 'ready', flush=True); time.sleep(600)"
    (tmp_path / "forking.py").write_text(source)
    supervisor = supervised(forkable("a", "forking"))
    (first,) = wait_until(partial(running, supervisor, "a"), description="the process")
    (own,) = wait_until(lambda: psutil.Process(first.pid).children(), description="what it forks")

    os.kill(first.pid, signal.SIGKILL)
    with structlog.testing.capture_logs() as logs:
        wait_until(lambda: running(supervisor, "a") not in ([], [first]), description="the next")

    assert logs == [{"event": "process_restarted", "log_level": "warning", "name": "a", "exit_code": -9, "crashes": 1}]
    wait_until(lambda: not process_tree.runs(own), description="the end of the other")


def test_a_start_that_the_system_refuses_is_tried_again(
    supervised: Callable[..., Supervisor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given no process left for the fork server and an executed one, I expect both later, and the supervisor alive."""
    (tmp_path / "sleeping.py").write_text(SLEEPS)
    supervisor = supervised(forkable("a", "sleeping"), ProcessSpec("b", (sys.executable, "-c", SLEEPS)))
    left = [BlockingIOError(errno.EAGAIN, "no process left")] * 2
    popen = subprocess.Popen

    def refusing(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        if left:
            raise left.pop()
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", refusing)
    with structlog.testing.capture_logs() as logs:
        wait_until(lambda: len(running(supervisor, "a", "b")) == 2, description="both")

    assert [(line["event"], line["name"]) for line in logs] == [("fork_refused", "fork-server"), ("fork_refused", "b")]


def test_without_a_fork_server_that_works_a_forkable_process_is_executed(
    supervised: Callable[..., Supervisor], tmp_path: Path
) -> None:
    """Given a fork server that cannot load, I expect the processes to start as they would without one."""
    (tmp_path / "sleeping.py").write_text(SLEEPS)
    with structlog.testing.capture_logs():
        supervisor = supervised(forkable("a", "sleeping"), source="raise SystemExit(1)")

        (a,) = wait_until(partial(running, supervisor, "a"), description="the process")

    wait_for_log(tmp_path, "a", "ready")
    assert psutil.Process(a.pid).cmdline()[1:] == ["-m", "sleeping"]


def test_what_an_earlier_run_refused_is_not_taken_for_this_ones_reason(
    supervised: Callable[..., Supervisor], tmp_path: Path
) -> None:
    """Given a refused start in the log, I expect nothing awaited or refused while the fork server still loads."""
    (tmp_path / "a.log").write_text('{"event": "start_refused", "reason": "of yesterday"}\n')
    supervisor = supervised(forkable("a", "sleeping"), source=f"import time; time.sleep(600); {SERVER}")

    supervisor.poll()

    assert supervisor.running == {}
    assert supervisor.awaited("a") is None


def test_the_fork_server_loads_what_the_workers_of_the_stack_need() -> None:
    specs = service_specs()

    command = fork_server_command([spec for spec in specs if spec.name != "long-term-memory-writer"])

    assert command == [sys.executable, "-m", "tasks.fork_server", "interactive", "index"]


def test_there_is_no_fork_server_without_workers() -> None:
    specs = service_specs()

    assert fork_server_command([spec for spec in specs if not spec.name.startswith("long-term-memory-w")][1:]) is None
