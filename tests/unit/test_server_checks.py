"""The checks of a starting stack's servers: what no waiting changes is an error, what may pass is one line."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from keepsake_client.errors import Unavailable

from services.runtime.errors import CannotStart, SchemaTooNew
from services.stack.broker_check import check_broker
from services.stack.processes import BROKER, POSTGRES, REDIS
from services.stack.server_checks import ServerChecks
from tests.support import free_port


class Redis:
    """A Redis that answers a PING with an error, while there is one."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.pings = 0

    def ping(self) -> bool:
        self.pings += 1
        if self.error:
            raise self.error
        return True


@pytest.fixture
def client() -> Redis:
    return Redis()


@pytest.fixture
def database() -> list[Exception]:
    """What the checks of the database raise, in their order; then they pass."""
    return []


def checks(client: Any, database: list[Exception], said: list[str], *embedded: str) -> ServerChecks:
    def check() -> None:
        if database:
            raise database.pop(0)

    return ServerChecks(client, "redis://anna:hush@here:6379/0", check, None, embedded, said.append)


def test_a_redis_that_refuses_the_password_is_an_error_at_once(client: Redis) -> None:
    """Given NOAUTH or a wrong password, I expect one line of ours that names REDIS_URL, without the password."""
    client.error = redis.AuthenticationError("HELLO must be called with the client already authenticated")

    with pytest.raises(CannotStart) as refused:
        checks(client, [], []).run()

    assert str(refused.value) == (
        "REDIS_URL is 'redis://anna:***@here:6379/0', and Redis refuses it:"
        " it asks for another user or password than its URL has (REDIS_URL)"
    )


def test_servers_that_may_be_late_are_one_line_each(client: Redis, database: list[Exception]) -> None:
    """Given servers that are not up yet, I expect a line for each, and no more checks once they are up."""
    client.error = redis.ConnectionError("refused")
    database += [Unavailable("DATABASE_URL is 'x', and PostgreSQL does not answer there")] * 3
    said: list[str] = []
    starting = checks(client, database, said)

    for _ in range(3):
        starting.run()
    client.error = None
    for _ in range(3):
        starting.run()

    remedy = "start that server, or correct the address"
    assert said == [
        f"waiting: REDIS_URL is 'redis://anna:***@here:6379/0', and Redis does not answer there: refused; {remedy}",
        f"waiting: DATABASE_URL is 'x', and PostgreSQL does not answer there; {remedy}",
    ]
    assert client.pings == 4


def test_a_broker_url_that_cannot_be_read_is_an_error_at_once() -> None:
    """Given an option that RabbitMQ's client does not know, I expect one line that names it, without the password."""
    with pytest.raises(CannotStart, match=r"BROKER_URL is .* cannot read: Unknown URL parameter: 'key'") as refused:
        check_broker("amqp://guest:hush@127.0.0.1:5672/?key=1")

    assert "hush" not in str(refused.value)


def test_a_broker_that_does_not_answer_is_awaited(client: Redis) -> None:
    """Given a broker that is not up yet, of either kind, I expect a line that names it, and that it is awaited."""
    for url in (f"redis://:hush@127.0.0.1:{free_port()}/1", f"amqp://guest:hush@127.0.0.1:{free_port()}/"):
        said: list[str] = []
        starting = ServerChecks(client, "redis://here", lambda: None, url, (), said.append)  # type: ignore[arg-type]
        starting.run()
        starting.run()

        assert [line.partition(" is ")[0] for line in said] == ["waiting: BROKER_URL"]
        assert "hush" not in said[0]
        assert starting.awaited == [BROKER]


def test_the_stacks_own_servers_are_waited_for_without_a_line(client: Redis, database: list[Exception]) -> None:
    """Given embedded servers that are starting, I expect nothing said; what is wrong with their data is an error."""
    client.error = redis.ConnectionError("refused")
    database += [Unavailable("starting"), SchemaTooNew(5, 4)]
    said: list[str] = []
    starting = checks(client, database, said, REDIS, POSTGRES)

    starting.run()
    with pytest.raises(SchemaTooNew):
        starting.run()

    assert said == []
