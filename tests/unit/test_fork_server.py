"""The fork server, with small modules in place of the stack's processes."""

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

from services.stack import process_tree
from services.stack.fork_server import UNKNOWN_EXIT, ForkedProcess, ForkServer
from services.stack.process_tree import ProcessId
from services.stack.processes import ProcessSpec, fork_server_command, service_specs
from services.stack.supervisor import Supervisor
from tests.support import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a fork server is for Linux")

SERVER = """
import socket, sys
loaded = object()
from services.stack.fork_server import serve
serve(socket.socket(fileno=int(sys.argv[1])))
"""
SLEEPS = "import time; print('ready', flush=True); time.sleep(600)"

Fork = Callable[..., ForkedProcess]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    """A fork server, which is ready."""
    server = ForkServer([sys.executable, "-c", SERVER], os.environ, tmp_path, tmp_path)
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


def pid_of(server: ForkServer) -> int:
    (pid,) = (child.pid for child in psutil.Process().children() if SERVER in child.cmdline())
    return pid


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
    wait_for_end(fork("a", "import sys; print('services.stack.fork_server' in sys.modules)"))

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


def test_a_fork_is_in_a_session_of_its_own_and_named_for_ps(fork: Fork, tmp_path: Path) -> None:
    process = fork("a", SLEEPS, "--queues", "index")
    wait_for_log(tmp_path, "a", "ready")

    assert os.getsid(process.pid) == process.pid
    assert " ".join(psutil.Process(process.pid).cmdline()).strip() == "a: python -m module_a --queues index"


def test_a_fork_keeps_none_of_the_servers_descriptors_and_handlers(fork: Fork, tmp_path: Path) -> None:
    fork("before", SLEEPS)
    source = "import os, signal; print(sorted(os.listdir('/proc/self/fd'))[:-1], signal.getsignal(signal.SIGCHLD).name)"

    wait_for_end(fork("a", source))

    assert (tmp_path / "a.log").read_text() == "['0', '1', '2'] SIG_DFL\n"


def test_many_ends_at_once_are_each_told(fork: Fork) -> None:
    processes = [fork(f"a{number}", f"raise SystemExit({number})") for number in range(20)]

    assert [wait_for_end(process) for process in processes] == list(range(20))


def test_a_signal_reaches_the_process_alone(fork: Fork, tmp_path: Path) -> None:
    other, process = fork("other", SLEEPS), fork("a", SLEEPS)
    wait_for_log(tmp_path, "a", "ready")

    process.send_signal(signal.SIGTERM)

    assert wait_for_end(process) == -signal.SIGTERM
    assert other.poll() is None


def test_a_killed_server_disturbs_nothing_and_is_replaced(server: ForkServer, fork: Fork, tmp_path: Path) -> None:
    """Given kill -9 of the server, I expect its forks to go on, and the next server to fork more."""
    process = fork("a", SLEEPS)
    first = pid_of(server)

    os.kill(first, signal.SIGKILL)
    with structlog.testing.capture_logs() as logs:
        wait_until(lambda: process.poll() is None and process.orphaned, description="its end to be seen")

    assert [line["event"] for line in logs] == ["fork_server_ended"]
    wait_until(server.ready, description="the next server")
    assert pid_of(server) != first
    assert wait_for_end(fork("b", "raise SystemExit(5)")) == 5
    # Of one that it has not forked, the code cannot be known.
    process.send_signal(signal.SIGKILL)
    assert wait_for_end(process) == UNKNOWN_EXIT


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
    assert psutil.Process(process.pid).is_running()


def test_a_server_that_cannot_load_has_failed(tmp_path: Path) -> None:
    server = ForkServer([sys.executable, "-c", "import a_module_that_is_missing"], os.environ, tmp_path, tmp_path)

    with structlog.testing.capture_logs() as logs:
        wait_until(lambda: not server.ready() and server.failed, description="its failure")

    assert [line["event"] for line in logs] == ["fork_server_ended"]
    assert "No module named 'a_module_that_is_missing'" in (tmp_path / "fork-server.log").read_text()


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
    supervisor = supervised(forkable("a", "sleeping"), ProcessSpec("b", (sys.executable, "-c", SLEEPS)))

    wait_until(lambda: len(running(supervisor, "a", "b")) == 2, description="both")
    a, b = running(supervisor, "a", "b")
    for name in "ab":
        wait_for_log(tmp_path, name, "ready")

    assert psutil.Process(b.pid).ppid() == os.getpid()
    assert SERVER in psutil.Process(psutil.Process(a.pid).ppid()).cmdline()
    supervisor.stop()
    assert not psutil.pid_exists(a.pid) or psutil.Process(a.pid).status() == psutil.STATUS_ZOMBIE
    assert not [child for child in psutil.Process().children() if SERVER in child.cmdline()]


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
    wait_until(lambda: not own.is_running() or own.status() == psutil.STATUS_ZOMBIE, description="the end of the other")


def test_without_a_fork_server_that_works_a_forkable_process_is_executed(
    supervised: Callable[..., Supervisor], tmp_path: Path
) -> None:
    """Given a fork server that cannot load, I expect the processes to start as they would without one."""
    (tmp_path / "sleeping.py").write_text(SLEEPS)
    with structlog.testing.capture_logs():
        supervisor = supervised(forkable("a", "sleeping"), source="raise SystemExit(1)")

        (a,) = wait_until(partial(running, supervisor, "a"), description="the process")

    assert psutil.Process(a.pid).ppid() == os.getpid()
    wait_for_log(tmp_path, "a", "ready")


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
