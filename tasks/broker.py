"""The broker of the workers' queues, by its URL."""

from __future__ import annotations

from collections.abc import Sequence

import dramatiq
from dramatiq.middleware import Middleware

from services.runtime.metrics import NO_METRICS, Metrics
from services.runtime.process_record import Dependency
from services.runtime.settings import hosts_of, mask_url
from tasks.redis_broker import build_redis_broker


def dependencies(url: str) -> list[Dependency]:
    """The broker at `url`, where it is RabbitMQ, as a process record states it."""
    if not url.startswith("amqp"):
        return []
    from tasks.rabbitmq_broker import server_version  # noqa: PLC0415 - its client is seldom needed

    return [Dependency(name="RabbitMQ", version=server_version(url), detail=mask_url(url))]


def build_broker(url: str, middleware: Sequence[Middleware], metrics: Metrics = NO_METRICS) -> dramatiq.Broker:
    """The broker at `url`, RabbitMQ's or Redis's, with exactly these middleware, in this order."""
    if url.startswith("amqp"):
        from tasks.rabbitmq_broker import ReportingRabbitmqBroker  # noqa: PLC0415 - its client is seldom needed

        # Dramatiq would take the semicolon of a password for one between two hosts.
        return ReportingRabbitmqBroker(
            url=hosts_of(url), middleware=list(middleware), metrics=metrics, confirm_delivery=True
        )
    return build_redis_broker(url, middleware, metrics)
