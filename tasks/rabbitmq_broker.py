"""Dramatiq's broker on RabbitMQ, for an installation that outgrows one Redis."""

from __future__ import annotations

import logging
from typing import Any

import dramatiq
import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import BrokerConnectionError

from services.runtime.availability import Availability
from services.runtime.metrics import NO_METRICS, Metrics

#: For a host that disappears without closing, noticed within 12 s; RabbitMQ's heartbeats take two minutes. Shorter ones
#: would have RabbitMQ close the adapters' connections, which send none while they wait.
TCP_OPTIONS = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}


def server_version(url: str, timeout_s: float = 2.0) -> str | None:
    """The version of the RabbitMQ at `url`; None where it does not answer."""
    for server in url.split(";"):  # several, of which one is enough
        try:
            parameters = pika.URLParameters(server)
            parameters.socket_timeout = parameters.stack_timeout = timeout_s
            connection = pika.BlockingConnection(parameters)
        except Exception:  # noqa: BLE001, S112 - of the name, the socket, TLS or the handshake, without a common class
            continue
        # A public attribute of pika's other connections, which this one wraps.
        version = connection._impl.server_properties.get("version")
        connection.close()
        return None if version is None else str(version)
    return None


class ReportingRabbitmqBroker(RabbitmqBroker):
    """Dramatiq's broker for RabbitMQ, which pushes messages, so consumers need not poll; an outage is logged once."""

    def __init__(self, *, metrics: Metrics = NO_METRICS, **parameters: Any) -> None:
        super().__init__(**parameters)
        servers: Any = self.parameters  # one, or a list of several
        for server in servers if isinstance(servers, list) else [servers]:
            if server.tcp_options is None:
                server.tcp_options = TCP_OPTIONS
        self._availability = Availability("broker", metrics=metrics)
        # It logs a lost connection in a dozen lines; Dramatiq silences it in workers, and the adapters have it too.
        logging.getLogger("pika").setLevel(logging.CRITICAL)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5_000) -> dramatiq.Consumer:
        try:
            consumer = super().consume(queue_name, prefetch, timeout)
        except BrokerConnectionError as error:
            self._availability.down(type(error).__name__)
            raise
        self._availability.up()
        return consumer
