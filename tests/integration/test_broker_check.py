"""The check of BROKER_URL against real servers: what they refuse is one line that names it."""

from __future__ import annotations

import pytest
from keepsake_client.errors import Unavailable

from services.runtime.errors import CannotStart
from services.stack.broker_check import check_broker

#: Without the right to a virtual host; RabbitMQ refuses either.
RABBITMQ = ("amqp://stranger:hush@127.0.0.1:5672/", "amqp://guest:guest@127.0.0.1:5672/keepsake-no-such-host")


def test_a_database_that_redis_does_not_have_is_refused(valkey_url: str) -> None:
    """Given the number of a database that there is not, I expect an error, and the server itself accepted."""
    server = valkey_url.rpartition("/")[0]

    check_broker(f"{server}/0")
    with pytest.raises(CannotStart, match=r"^BROKER_URL is '.*/99', and Redis refuses it: .*; give a database"):
        check_broker(f"{server}/99")


@pytest.mark.parametrize("url", RABBITMQ)
def test_a_rabbitmq_that_refuses_is_an_error(url: str) -> None:
    """Given a wrong password or virtual host, I expect one line that says what to correct, without the password."""
    try:
        check_broker("amqp://guest:guest@127.0.0.1:5672/")
    except Unavailable:
        pytest.skip("no RabbitMQ at 127.0.0.1:5672")

    with pytest.raises(CannotStart, match=r"BROKER_URL is .* RabbitMQ refuses it: correct user, password") as refused:
        check_broker(url)

    assert "hush" not in str(refused.value)
