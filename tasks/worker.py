"""Composition root of a worker: `dramatiq tasks.worker --queues interactive`."""

from __future__ import annotations

import logging
import os

import dramatiq
import dramatiq.worker
from dramatiq.middleware import TimeLimit

from adapters.ltm_responses import ResponsePublisher
from services.runtime.process import bootstrap
from services.runtime.redis import connect
from services.runtime.settings import Settings
from tasks import actors
from tasks.log_filter import install_log_filter
from tasks.middleware.deliveries import DeliveryLimit
from tasks.middleware.resources import Resources
from tasks.middleware.retries import Retries
from tasks.queues import INDEX_TIME_LIMIT_MS
from tasks.redis_broker import build_broker

#: How soon a lost broker is tried again; Dramatiq's own pauses are 3 and 5 s.
RECONNECT_S = 0.5


def compose(settings: Settings, process: str) -> dramatiq.Broker:
    """The broker of a worker process, with its middleware and actors."""
    responses = connect(settings.redis_url.get_secret_value(), 2.0)
    resources = Resources(settings, process)
    broker = build_broker(
        settings.broker.get_secret_value(),
        [
            resources,
            ResponsePublisher(responses, settings.ltm_responses_channel),
            DeliveryLimit(responses),
            TimeLimit(time_limit=INDEX_TIME_LIMIT_MS),
            Retries(),
        ],
    )
    actors.declare(broker, resources)
    return broker


def _main() -> dramatiq.Broker:
    process = os.environ.get("LTM_PROCESS_NAME", "long-term-memory-worker")
    settings = bootstrap(process)
    install_log_filter(logging.getLogger().handlers)
    # Dramatiq reads the first of them from the environment before this module is there to set it.
    dramatiq.worker.CONSUMER_RESTART_DELAY_SECS = RECONNECT_S
    dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS = RECONNECT_S  # type: ignore[assignment]
    return compose(settings, process)


# The Dramatiq CLI imports this module and takes the broker that is set by then: the one root that works at import.
dramatiq.set_broker(_main())
