"""The broker for those who outgrow one Redis: RabbitMQ."""

from __future__ import annotations

import logging
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import BrokerConnectionError

from services.runtime.availability import Availability


class TellingRabbitmqBroker(RabbitmqBroker):
    """Dramatiq's broker for RabbitMQ, which pushes messages and so wakes by itself; a lost server is told of once."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self._availability = Availability("broker")
        # It tells of a lost connection in a dozen lines; Dramatiq silences it in workers, and the adapters have it too.
        logging.getLogger("pika").setLevel(logging.CRITICAL)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5_000) -> dramatiq.Consumer:
        try:
            consumer = super().consume(queue_name, prefetch, timeout)
        except BrokerConnectionError as error:
            self._availability.down(type(error).__name__)
            raise
        self._availability.up()
        return consumer
