"""Composition root of a worker: `dramatiq tasks.worker --queues interactive`."""

from __future__ import annotations

import logging
import os
import sys

import dramatiq
import redis
from dramatiq.middleware import Retries, ShutdownNotifications, TimeLimit

from adapters.ltm_responses import Responses
from services.errors import InvalidSetting
from services.logs import configure_logging
from services.settings import Settings, load_settings
from tasks import memories, profiles
from tasks.broker import build_broker
from tasks.log_filter import DramatiqLogFilter
from tasks.resources import Resources

#: No actor of ours takes this long; one that does is stuck, and its thread is wanted.
TIME_LIMIT_MS = 120_000


def compose(settings: Settings, process: str) -> dramatiq.Broker:
    """The broker of a worker process, with its middleware and actors."""
    responses = redis.Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=2)
    resources = Resources(settings, process)
    broker = build_broker(
        settings.broker.get_secret_value(),
        [
            resources,
            Responses(responses, settings.ltm_responses_channel),
            TimeLimit(time_limit=TIME_LIMIT_MS),
            ShutdownNotifications(),
            Retries(),
        ],
    )
    memories.declare(broker, resources)
    profiles.declare(broker, resources)
    return broker


def _main() -> dramatiq.Broker:
    process = os.environ.get("LTM_PROCESS_NAME", "long-term-memory-worker")
    try:
        settings = load_settings()
    except InvalidSetting as error:
        sys.exit(f"ltm: {error}")
    configure_logging(settings, process)
    for handler in logging.getLogger().handlers:
        handler.addFilter(DramatiqLogFilter())
    return compose(settings, process)


# The Dramatiq CLI imports this module and takes the broker that is set by then: the one root that works at import.
dramatiq.set_broker(_main())
