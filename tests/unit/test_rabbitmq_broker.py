"""The RabbitMQ broker without a server: how it is made, and what it logs of an outage."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from structlog.testing import capture_logs

from tasks.broker import build_broker
from tasks.rabbitmq_broker import ReportingRabbitmqBroker

URL = "amqp://guest:secret@rabbit:5673/pipeline"


@pytest.fixture
def pika() -> Iterator[logging.Logger]:
    logger = logging.getLogger("pika")
    level = logger.level
    yield logger
    logger.setLevel(level)


def test_a_url_of_rabbitmq_makes_a_broker_that_confirms(pika: logging.Logger) -> None:
    """Given `amqp:`, I expect RabbitMQ's server and virtual host, the middleware given, and publishing confirmed."""
    only = Middleware()

    broker = build_broker(URL, (only,))

    assert isinstance(broker, ReportingRabbitmqBroker)
    parameters: Any = broker.parameters
    assert (parameters.host, parameters.port, parameters.virtual_host) == ("rabbit", 5673, "pipeline")
    assert (broker.middleware, broker.confirm_delivery) == ([only], True)


@pytest.mark.parametrize(
    ("query", "idle_s"), [("", 5), ("?tcp_options=%7B%22TCP_KEEPIDLE%22%3A60%7D", 60)], ids=["default", "of the URL"]
)
def test_a_host_that_disappears_is_noticed_by_tcp(pika: logging.Logger, query: str, idle_s: int) -> None:
    """Given a URL without options of TCP, I expect keepalives after five seconds; with options, those."""
    broker: Any = build_broker(URL + query, [])

    assert broker.parameters.tcp_options["TCP_KEEPIDLE"] == idle_s


def test_the_client_of_rabbitmq_is_silent(pika: logging.Logger) -> None:
    """Given a broker, I expect the dozen lines of its client about a lost connection left out."""
    build_broker(URL, [])

    assert pika.level == logging.CRITICAL


def test_an_outage_is_logged_once(pika: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a server that is down for two attempts, I expect a line at the first, and one when it is up again."""
    broker = build_broker(URL, [])
    asked: list[Any] = []
    outcomes: list[Any] = [ConnectionClosed("down"), ConnectionClosed("down"), "a consumer", "another"]

    def consume(_: Any, *arguments: Any) -> Any:
        asked.append(arguments)
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(RabbitmqBroker, "consume", consume)

    with capture_logs() as lines:
        for _ in range(2):
            with pytest.raises(ConnectionClosed):
                broker.consume("index", 3, 7)
        consumers: list[Any] = [broker.consume("index", 3, 7), broker.consume("index")]

    assert consumers == ["a consumer", "another"]
    assert asked == [("index", 3, 7)] * 3 + [("index", 1, 5_000)]
    assert [(line["event"], line["dependency"], line.get("reason")) for line in lines] == [
        ("dependency_down", "broker", "ConnectionClosed"),
        ("dependency_up", "broker", None),
    ]
