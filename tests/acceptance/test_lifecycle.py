"""The lifecycle of `ltm up`: start, stop, failures, and the next start after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from services.stack.process_tree import runs
from services.stack.processes import SERVERS, SERVICES
from tests.acceptance.conftest import ENDED_WITHIN_S, Stack, Up, without
from tests.ltm_command import LTM, clean_environment, run_ltm
from tests.support import wait_until


def family(stack: Stack) -> list[psutil.Process]:
    """The descendants of `ltm up`, each identified by pid and start time."""
    return psutil.Process(stack.process.pid).children(recursive=True)


def test_ctrl_c_stops_everything_in_time_and_leaves_nothing(up: Up, place: Path) -> None:
    # Given what `make run` starts, in a temporary directory
    stack = up("--ephemeral", "--demo")
    wait_until(lambda: "The demo passed" in stack.printed(), description="the demo to pass")
    processes = family(stack)
    data = Path(str(re.search(r"logs +(/.*)/logs", stack.printed())[1]))  # type: ignore[index]
    assert data.exists()

    began = time.monotonic()
    code = stack.end(signal.SIGINT)

    assert code == 0, stack.printed()
    assert time.monotonic() - began < ENDED_WITHIN_S
    assert [process for process in processes if runs(process)] == []
    assert not data.exists()
    assert not (place / "ready.json").exists()


def test_a_start_after_a_kill_stops_the_leftovers_and_keeps_the_data(up: Up, place: Path) -> None:
    # Given a stack with data, whose processes keep running after a kill of `ltm up` alone
    first = up("--data-dir", "data", *without("long-term-memory-indexer", "memory", "chat-ai", "gateway"))
    data = str(place / "data")
    assert run_ltm("add", "anna", "I play the cello.", "--data-dir", data).returncode == 0
    assert run_ltm("profile", "anna", "--set", "age=30", "--data-dir", data).returncode == 0
    left_over = family(first)
    first.process.kill()
    first.process.wait()
    assert any(map(runs, left_over))

    # When another is started on the same data directory
    (place / "ready.json").unlink()
    second = up("--data-dir", "data", *without("long-term-memory-indexer", "memory", "chat-ai", "gateway"))

    # I expect the leftovers to be stopped, and the data kept
    assert "stopped what a killed `ltm up` had left running: " in second.printed()
    assert [process for process in left_over if runs(process)] == []
    assert "cello" in run_ltm("search", "anna", "instrument", "--data-dir", data).stdout
    assert json.loads(run_ltm("profile", "anna", "--data-dir", data).stdout) == {"age": 30}

    # And a third on a directory in use to be refused
    third = run_ltm("up", "--data-dir", data)
    assert third.returncode == 1
    assert f"is in use by another `ltm up` (pid {second.process.pid})" in third.stderr


def test_the_leftovers_of_a_killed_temporary_stack_are_removed_by_the_next(up: Up, place: Path) -> None:
    # Given a temporary stack whose `ltm up` was killed
    first = up("--ephemeral", *without(*SERVICES))
    data = Path(str(re.search(r"logs +(/.*)/logs", first.printed())[1]))  # type: ignore[index]
    left_over = family(first)
    first.process.kill()
    first.process.wait()
    (place / "ready.json").unlink()

    up("--ephemeral", *without(*SERVICES))

    assert [process for process in left_over if runs(process)] == []
    assert not data.exists()


def test_a_crash_loop_stops_the_stack_with_the_last_lines(place: Path) -> None:
    # Given a data directory whose cluster no PostgreSQL can read
    cluster = place / "data" / "postgres" / "data"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("9\n")

    result = run_ltm("up", "--redis-port", "0", "--data-dir", str(place / "data"), *without(*SERVICES))

    assert result.returncode == 1
    assert "ltm: postgres exited 5 times within a minute" in result.stderr
    assert "postgresql.conf" in result.stderr.split("its last lines")[1]
    assert not (place / "data" / "stack.json").exists()


def test_a_taken_port_is_an_error_of_one_line(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])

        result = run_ltm("up", "--ephemeral", "--redis-port", port)

    assert result.returncode == 1
    assert result.stderr.startswith(f"ltm: port {port} on 127.0.0.1 cannot be used")
    assert result.stderr.count("\n") == 1


def test_a_wrong_setting_is_an_error_of_one_line_before_any_start(place: Path) -> None:
    result = run_ltm("up", "--data-dir", str(place / "data"), LTM_SEARCH_TIMEOUT_MS="soon")

    assert result.returncode == 2
    assert result.stderr.startswith("ltm: LTM_SEARCH_TIMEOUT_MS is 'soon'; allowed: ")
    assert result.stderr.count("\n") == 1
    assert not (place / "data").exists()


def test_a_renamed_setting_is_one_line_on_stderr() -> None:
    result = run_ltm("status", REDIS_URL="redis://127.0.0.1:1/0", LTM_UPDATES_LOG="mine")

    assert result.stderr.splitlines() == [
        "ltm: LTM_UPDATES_LOG is now called LTM_STREAM_KEY; the old name is read while the new one is not set"
    ]


def test_external_servers_are_used_in_place_of_embedded_ones(up: Up, place: Path) -> None:
    servers = up("--ephemeral", *without(*SERVICES))
    (place / "ready.json").unlink()

    other = up("--ephemeral", *without(*SERVICES), REDIS_URL=servers.redis_url, DATABASE_URL=servers.database_url)

    urls = {"redis_url": servers.redis_url, "database_url": servers.database_url, "gateway_url": None}
    assert other.ready == {**urls, "pids": {}}
    assert family(other) == []


def test_a_process_that_is_left_out_is_neither_started_nor_waited_for(up: Up, place: Path) -> None:
    # Given a pipeline with its own memory and chat service, and no need of HTTP
    left_out = ("memory", "chat-ai", "gateway")
    stack = up("--data-dir", "data", *without(*left_out), LTM_CONSOLE="true")

    status = run_ltm("status", "--data-dir", str(place / "data"))
    elsewhere = run_ltm("status", REDIS_URL=stack.redis_url)
    chat = run_ltm("chat", stdin="hello\n", REDIS_URL=stack.redis_url)

    assert sorted(stack.pids) == sorted({*SERVERS, *SERVICES} - {*left_out})
    assert stack.ready["gateway_url"] is None
    assert "Console" not in stack.printed()
    assert status.returncode == 0, status.stdout
    assert re.findall(r"^(\S+) +left out$", status.stdout, re.MULTILINE) == list(left_out)
    assert elsewhere.returncode == 0, elsewhere.stdout
    assert re.findall(r"^(\S+) +left out$", elsewhere.stdout, re.MULTILINE) == list(left_out)
    assert (chat.returncode, chat.stderr.count("memory and chat-ai of Keepsake do not run")) == (1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="a fork server is for Linux")
def test_a_killed_fork_server_stops_no_process_and_is_replaced(up: Up, place: Path) -> None:
    # Given a stack whose fork server is killed, as by the system for lack of memory
    stack = up("--data-dir", "data", *without("memory", "chat-ai", "gateway"))
    data = str(place / "data")
    forked = {name: pid for name, pid in stack.pids.items() if name not in SERVERS}
    (server,) = (one for one in psutil.Process(stack.process.pid).children() if "tasks.fork_server" in one.cmdline())
    server.kill()

    # I expect every process to go on
    assert run_ltm("add", "anna", "I play the cello.", "--data-dir", data).returncode == 0
    assert all(psutil.pid_exists(pid) for pid in forked.values())

    # And one that is killed then to be started by another fork server
    os.kill(forked["long-term-memory-worker"], signal.SIGKILL)
    wait_until(lambda: searching(place) != forked["long-term-memory-worker"], description="another search worker")
    wait_until(
        lambda: "cello" in run_ltm("search", "anna", "instrument", "--data-dir", data).stdout, description="an answer"
    )
    worker = psutil.Process(searching(place))
    assert " ".join(worker.cmdline()).strip() == "ltm up: long-term-memory-worker"
    assert stack.printed().count("fork_server_ended") == 1
    processes = family(stack)

    # And the end of the stack to be the end of all of them
    assert stack.end(signal.SIGTERM) == 0
    assert [process for process in processes if runs(process)] == []


def searching(place: Path) -> int:
    """The pid of the search worker, as the stack has recorded it."""
    record = json.loads((place / "data" / "stack.json").read_text())
    return int(record["processes"]["long-term-memory-worker"]["pid"])


def test_a_stop_during_the_start_stops_everything(place: Path) -> None:
    process = subprocess.Popen(
        [LTM, "up", "--redis-port", "0", "--gateway-port", "0", "--data-dir", str(place / "data")],
        env=clean_environment(),
    )
    record = place / "data" / "stack.json"
    wait_until(
        lambda: record.exists() and len(json.loads(record.read_text())["processes"]) == len(SERVERS + SERVICES),
        description="starts",
    )
    processes = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=ENDED_WITHIN_S) == 0
    assert [each for each in processes if runs(each)] == []
