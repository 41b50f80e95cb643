"""Exposition: the metrics of a process as they are served, and those of a worker's several processes as one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from services.runtime.errors import EXIT_CANNOT_START
from services.runtime.exposition import (
    IDLE_TIMEOUT_S,
    PREFIX,
    SHARED_VALUES,
    Exposition,
    _Handler,
    _shared_directory,
    exposed,
)
from services.runtime.metrics import NO_METRICS
from services.runtime.settings import Settings, load_settings
from tests.support import PATIENCE_S, free_port

#: Modules of all of Keepsake's processes but the gateway, which has a page of its own.
ROOTS = ("adapters.__main__", "tasks.__main__", "services.memory.__main__", "services.chat_ai.__main__")


def test_metrics_that_are_not_served_are_not_imported() -> None:
    """Given the processes without LTM_METRICS_PORT, I expect prometheus_client not among what they import."""
    script = f"import sys, {', '.join(ROOTS)}; sys.exit('prometheus_client' in sys.modules)"

    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def settings_with(port: int | None) -> Settings:
    return load_settings(ltm_metrics_port=port)


def test_a_process_serves_its_metrics() -> None:
    """Given a port, I expect a page with the metrics, the name and the memory of the process, until it ends."""
    port = free_port()

    with exposed(settings_with(port), "chat-ai") as metrics:
        metrics.observe("reply", {"outcome": "ok", "times": {}})
        page = httpx.get(f"http://127.0.0.1:{port}/metrics").text

    assert 'keepsake_replies_total{outcome="ok"} 1.0' in page
    assert 'keepsake_process_info{process="chat-ai",' in page
    assert "process_resident_memory_bytes" in page
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")
def test_metrics_may_be_served_by_ipv6() -> None:
    """Given an IPv6 address as LTM_METRICS_HOST, I expect the page there."""
    port = free_port()

    with exposed(load_settings(ltm_metrics_port=port, ltm_metrics_host="::1"), "chat-ai"):
        assert "keepsake_process_info" in httpx.get(f"http://[::1]:{port}/metrics").text


def test_a_process_without_a_port_serves_nothing() -> None:
    """Given no port, I expect metrics that do nothing, and no thread."""
    before = threading.active_count()

    with exposed(settings_with(None), "chat-ai") as metrics:
        assert (metrics, threading.active_count()) == (NO_METRICS, before)


def test_a_port_that_is_taken_refuses_the_start() -> None:
    """Given a port in use, I expect the exit code of a start that no waiting helps, and one line with the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as server, capture_logs() as lines:
        port = server.getsockname()[1]
        exposition = Exposition(settings_with(port), "chat-ai")
        with pytest.raises(SystemExit) as exit_:
            exposition.serve()

    assert exit_.value.code == EXIT_CANNOT_START
    [line] = lines
    assert line["event"] == "start_refused"
    assert f"127.0.0.1 port {port}: Address already in use" in line["reason"]
    assert line["reason"].endswith("set LTM_METRICS_HOST and LTM_METRICS_PORT")


@pytest.mark.parametrize("host", ["999.1.1.1", "[::1]", "a..b"])
def test_a_host_that_is_none_refuses_the_start(host: str) -> None:
    settings = settings_with(free_port()).model_copy(update={"ltm_metrics_host": host})

    with capture_logs() as lines, pytest.raises(SystemExit) as exit_:
        Exposition(settings, "chat-ai").serve()

    assert exit_.value.code == EXIT_CANNOT_START
    assert f"metrics cannot be served on {host}" in lines[0]["reason"]


#: A worker's three processes, each of which observes an outage and has three connections; one of them ends.
FORKED = """
import os, sys, urllib.request
from services.runtime.exposition import Exposition
from services.runtime.settings import load_settings
port = int(sys.argv[1])
exposition = Exposition(load_settings(ltm_metrics_port=port), "a-worker", 3)
assert "prometheus_client" not in sys.modules
to_children, from_children = os.pipe(), os.pipe()
children = []

def observe():
    exposition.metrics.outage("redis")
    exposition.metrics.pool({"pool_size": 3, "pool_available": 0})

for _ in range(2):
    if not (child := os.fork()):
        os.close(to_children[1])  # so that it ends where the first one fails
        observe()
        os.write(from_children[1], b".")
        os.read(to_children[0], 1)
        os._exit(0)
    children.append(child)
observe()
exposition.serve()
for _ in children:
    os.read(from_children[0], 1)

def shown():
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    wanted = ("keepsake_outages", "keepsake_postgres_connections{")
    return [line for line in page.splitlines() if line.startswith(wanted)]

print(shown())
os.write(to_children[1], b".")
ended, _ = os.wait()
exposition.forget(ended)
print(shown())
os.write(to_children[1], b".")
os.wait()
directory = os.environ["PROMETHEUS_MULTIPROC_DIR"]
print(oct(os.stat(directory).st_mode)[-3:])
exposition.close()
print(os.path.exists(directory))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks as the workers do")
def test_several_processes_are_served_as_one() -> None:
    """Given three processes of a worker, I expect their sums; of one that has ended, its counts and not its gauges."""
    port = free_port()

    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(port)], check=True, timeout=60, capture_output=True, text=True
    )

    all_three, after_one, mode, left = done.stdout.splitlines()
    outages = 'keepsake_outages_total{dependency="redis"} 3.0'
    for shown, in_use in ((all_three, 9.0), (after_one, 6.0)):
        assert outages in shown
        assert f'keepsake_postgres_connections{{state="in_use"}} {in_use}' in shown
    assert (mode, left) == ("700", "False")


def test_what_a_killed_worker_has_left_is_removed(tmp_path: Path) -> None:
    """Given directories of a worker that was killed and of one that runs, I expect the former removed at a start."""
    killed, running, other = (tmp_path / f"{PREFIX}{name}" for name in ("11-a", "22-b", "no-pid"))
    for directory in (killed, running, other):
        directory.mkdir()
        (directory / "counter_11.db").touch()

    own = _shared_directory(tmp_path, alive=lambda pid: pid == 22)

    assert {path.name for path in tmp_path.iterdir()} == {running.name, other.name, own.name}


def test_one_process_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a worker of one process, I expect no directory, and its own values."""
    monkeypatch.delenv(SHARED_VALUES, raising=False)

    alone = Exposition(settings_with(free_port()), "a-worker")
    alone.forget(1)
    alone.close()

    assert SHARED_VALUES not in os.environ


def test_a_client_that_says_nothing_is_not_waited_for() -> None:
    """Given connections that stay silent, I expect the page served beside them, and the end not held up."""
    port = free_port()

    with exposed(settings_with(port), "chat-ai"):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        assert "keepsake_process_info" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    for connection in silent:
        connection.close()


def test_a_client_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a connection that stays silent for longer than the limit, I expect it closed."""
    assert _Handler.timeout == IDLE_TIMEOUT_S
    monkeypatch.setattr(_Handler, "timeout", 0.01)
    port = free_port()

    with (
        capture_logs(),
        exposed(settings_with(port), "chat-ai"),
        socket.create_connection(("127.0.0.1", port), PATIENCE_S) as silent,
    ):
        assert silent.recv(1) == b""


@pytest.mark.parametrize("sent", [b"\xff\xfe no HTTP\r\n\r\n", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b""])
def test_a_request_that_is_none_ends_with_itself(sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Given what is no request of Prometheus's, I expect the next one served, and nothing printed."""
    port = free_port()

    with exposed(settings_with(port), "chat-ai"):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4_096):
                pass
        assert "keepsake_process_info" in httpx.get(f"http://127.0.0.1:{port}/metrics").text

    assert capfd.readouterr() == ("", "")
