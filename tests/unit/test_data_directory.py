"""The data directory: its lock, its record, and the processes that a killed `ltm up` leaves."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.runtime.errors import StackError
from services.stack import process_tree
from services.stack.data_directory import DataDirectory, StackRecord
from services.stack.process_tree import ProcessId, identify
from tests.support import wait_until

SLEEPS = "import time; print('ready', flush=True); time.sleep(600)"


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    directory = DataDirectory(tmp_path / "data")
    directory.create()
    return directory


@contextmanager
def named(name: str, script: str = SLEEPS) -> Iterator[subprocess.Popen[bytes]]:
    """A process of that name, as an earlier `ltm up` might have left it."""
    environment = {**os.environ, "LTM_PROCESS_NAME": name}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        yield process
        process.kill()


@pytest.fixture
def leftover() -> Iterator[subprocess.Popen[bytes]]:
    """A process named `memory`."""
    with named("memory") as process:
        yield process


def record(**processes: ProcessId) -> StackRecord:
    return StackRecord(redis_url="redis://:secret@h:1/0", database_url="postgresql://h/k", processes=processes)


def test_a_record_is_read_as_it_was_written(directory: DataDirectory) -> None:
    written = record(memory=ProcessId(pid=1, create_time=2.5))

    directory.write(written)

    assert directory.read() == written


def test_a_record_is_readable_by_its_owner_alone(directory: DataDirectory) -> None:
    # Its addresses may hold passwords.
    directory.write(record())

    assert stat.S_IMODE((directory.path / "stack.json").stat().st_mode) == 0o600


def test_without_a_record_nothing_runs(directory: DataDirectory) -> None:
    assert directory.read() is None


def test_a_directory_is_in_use_while_it_is_locked(directory: DataDirectory, tmp_path: Path) -> None:
    assert not directory.in_use()
    assert not DataDirectory(tmp_path / "nowhere").in_use()
    with directory.locked():
        assert DataDirectory(directory.path).in_use()
    assert not directory.in_use()


def test_an_invalid_record_does_not_prevent_a_start(directory: DataDirectory) -> None:
    (directory.path / "stack.json").write_text('{"redis')

    assert directory.end_leftovers() == []


def test_a_second_lock_is_refused_with_the_pid_of_the_first(directory: DataDirectory) -> None:
    with directory.locked(), pytest.raises(StackError, match=rf"another `ltm up` \(pid {os.getpid()}\)"):
        DataDirectory(directory.path).locked().__enter__()


def test_the_lock_is_released_after_the_block(directory: DataDirectory) -> None:
    with directory.locked():
        pass

    with directory.locked():
        pass


def test_a_child_process_does_not_inherit_the_lock(directory: DataDirectory) -> None:
    with directory.locked():
        child = subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE)
        assert child.stdout
        child.stdout.readline()

    with directory.locked(), child:
        child.kill()


def test_a_path_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StackError, match="cannot use the data directory"):
        DataDirectory(tmp_path / "file" / "data").create()


def test_leftovers_are_stopped_and_named(directory: DataDirectory, leftover: subprocess.Popen[bytes]) -> None:
    identity = identify(leftover.pid)
    directory.write(record(memory=identity))

    assert directory.end_leftovers() == ["memory"]
    assert process_tree.find(identity) is None
    assert directory.read() is None


def test_another_process_with_the_pid_of_a_leftover_keeps_running(
    directory: DataDirectory, leftover: subprocess.Popen[bytes]
) -> None:
    directory.write(record(memory=ProcessId(pid=leftover.pid, create_time=identify(leftover.pid).create_time - 3_600)))

    assert directory.end_leftovers() == []
    assert leftover.poll() is None


def test_servers_are_stopped_after_the_services(directory: DataDirectory, leftover: subprocess.Popen[bytes]) -> None:
    with named("redis") as server:
        directory.write(record(redis=identify(server.pid), memory=identify(leftover.pid)))

        assert directory.end_leftovers() == ["memory", "redis"]


@pytest.fixture
def orphan() -> Iterator[tuple[ProcessId, ProcessId]]:
    """A killed master named `memory`, and its worker, which still runs."""
    script = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {SLEEPS!r}]).pid, flush=True)
time.sleep(600)
"""
    with named("memory", script) as process:
        assert process.stdout
        # Both lines: until the worker has started, the kernel shows no environment of it, so no name.
        lines = {process.stdout.readline().strip() for _ in range(2)}
        [pid] = lines - {b"ready"}
        worker = identify(int(pid))
        master = identify(process.pid)
        process.kill()
        process.wait()
        yield master, worker
        if found := process_tree.find(worker):
            found.kill()


def test_the_workers_of_a_killed_master_are_leftovers_too(
    directory: DataDirectory, orphan: tuple[ProcessId, ProcessId]
) -> None:
    master, worker = orphan
    directory.write(record(memory=master))

    assert directory.end_leftovers() == ["memory"]
    wait_until(lambda: process_tree.find(worker) is None, description="the end of the worker")


def test_the_children_of_a_process_of_another_name_keep_running(
    directory: DataDirectory, orphan: tuple[ProcessId, ProcessId]
) -> None:
    # Given a pid that another program had before it was killed
    master, worker = orphan
    directory.write(record(redis=master))

    assert directory.end_leftovers() == []
    assert process_tree.find(worker) is not None


def test_the_lock_names_its_present_owner(directory: DataDirectory) -> None:
    # Given a lock file that holds a longer pid of an earlier owner
    (directory.path / "lock").write_text("99999999999")

    with directory.locked(), pytest.raises(StackError, match=rf"\(pid {os.getpid()}\)"):
        DataDirectory(directory.path).locked().__enter__()
