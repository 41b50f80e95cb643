"""The RabbitMQ broker without a server: how it is made, and what it logs of an outage."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker, _RabbitmqConsumer
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from pika.adapters.utils.connection_workflow import AMQPConnectorSocketConnectError
from pika.exceptions import (
    AMQPConnectionError,
    ChannelClosedByBroker,
    NackError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)
from structlog.testing import capture_logs

from services.runtime.logging import redact
from tasks.broker import build_broker
from tasks.rabbitmq_broker import PublishTimedOut, ReportingRabbitmqBroker, _one_error

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
    [parameters] = broker.parameters
    assert (parameters.host, parameters.port, parameters.virtual_host) == ("rabbit", 5673, "pipeline")
    assert (broker.middleware, broker.confirm_delivery) == ([only], True)


@pytest.mark.parametrize(
    ("query", "idle_s"), [("", 5), ("?tcp_options=%7B%22TCP_KEEPIDLE%22%3A60%7D", 60)], ids=["default", "of the URL"]
)
def test_a_host_that_disappears_is_noticed_by_tcp(pika: logging.Logger, query: str, idle_s: int) -> None:
    """Given a URL without options of TCP, I expect keepalives after five seconds; with options, those."""
    broker: Any = build_broker(URL + query, [])

    assert broker.parameters[0].tcp_options["TCP_KEEPIDLE"] == idle_s


def test_the_client_of_rabbitmq_is_silent(pika: logging.Logger) -> None:
    """Given a broker, I expect the dozen lines of its client about a lost connection left out."""
    build_broker(URL, [])

    assert pika.level == logging.CRITICAL


def test_an_outage_is_logged_once(pika: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a server that is down for two attempts, and then refuses one queue for two, beside another that works, I
    expect a line at the first of each, with what it said, and one once something could be read."""
    broker: Any = build_broker(URL, [])
    refused = ChannelClosedByBroker(403, "ACCESS_REFUSED - access to queue 'index' refused")
    attempts: list[Any] = [ConnectionClosed(ConnectionRefusedError(111, "refused"))] * 2 + [None] * 4
    looks: list[Any] = [ConnectionClosed(refused), None, ConnectionClosed(refused), None]

    def attempt(outcomes: list[Any]) -> None:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    def connect(consumer: Any, made_by: Any, queue: str, *_: Any) -> None:
        consumer.broker, consumer.queue_name, consumer.iterator = made_by, queue, iter([])
        attempt(attempts)

    monkeypatch.setattr(RabbitmqBroker, "declare_queue", lambda *_, **__: None)
    monkeypatch.setattr(_RabbitmqConsumer, "__init__", connect)
    monkeypatch.setattr(_RabbitmqConsumer, "__next__", lambda _: attempt(looks))

    with capture_logs() as lines:
        for queue, is_there in (("index", 0), ("index", 0), ("index", 0), ("writes", 1), ("index", 0), ("writes", 1)):
            with nullcontext() if is_there else pytest.raises(ConnectionClosed):
                next(broker.consume(queue))

    assert [(line["event"], str(line.get("reason")).partition(";")[0]) for line in lines] == [
        ("dependency_down", "ConnectionRefusedError: [Errno 111] refused"),
        ("queue_unusable", "ACCESS_REFUSED - access to queue 'index' refused"),
        ("dependency_up", "None"),
    ]
    assert list(broker.refused) == ["index"]  # for which the worker has no heartbeat


def test_a_semicolon_of_a_password_separates_no_hosts(pika: logging.Logger) -> None:
    """Given a password with a semicolon, I expect one host, whose password it is."""
    broker: Any = build_broker("amqp://guest:a;b@rabbit/", [])

    assert [(one.host, one.credentials.password) for one in broker.parameters] == [("rabbit", "a;b")]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ProbableAuthenticationError("x"), "it refuses the user: correct user and password in BROKER_URL"),
        (ProbableAccessDeniedError("x"), "it refuses the virtual host: correct it in BROKER_URL"),
        (
            ChannelClosedByBroker(403, "ACCESS_REFUSED - queue 'q'"),
            "ACCESS_REFUSED - queue 'q'; give the user configure,",
        ),
        (ChannelClosedByBroker(405, "RESOURCE_LOCKED"), "RESOURCE_LOCKED"),
        (NackError([]), "it rejects the message, as by the policy max-length"),
        (
            AMQPConnectionError(AMQPConnectorSocketConnectError(OSError(111, "refused"))),
            "ConnectionRefusedError: [Errno 111] refused",
        ),
        (PublishTimedOut(), "PublishTimedOut: not confirmed in time"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_rabbitmq_refuses_is_in_the_error(error: Exception, said: str) -> None:
    """Given a failure of pika's, I expect the reason that adapters log, with the remedy where there is one."""
    with pytest.raises(ConnectionClosed) as raised, _one_error():
        raise ConnectionClosed(error)

    assert redact(raised.value).startswith(f"RabbitmqUnavailable: {said}")
