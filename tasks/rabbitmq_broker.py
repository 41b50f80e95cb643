"""Dramatiq's broker on RabbitMQ, for an installation that outgrows one Redis."""

from __future__ import annotations

import logging
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import BrokerConnectionError

from services.runtime.availability import Availability


class ReportingRabbitmqBroker(RabbitmqBroker):
    """Dramatiq's broker for RabbitMQ, which pushes messages, so consumers need not poll; an outage is logged once."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self._availability = Availability("broker")
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
