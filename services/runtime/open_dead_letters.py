"""Opens the dead letters of the workers' queues, wherever these are."""

from __future__ import annotations

import redis

from services.runtime.dead_letters import DeadLetters, RedisDeadLetters
from services.runtime.errors import StackError
from services.runtime.process_record import PROCESSES, other_broker
from services.runtime.rabbitmq_dead_letters import RabbitmqDeadLetters
from services.runtime.redis import connect
from services.runtime.settings import Settings


def open_dead_letters(settings: Settings, timeout_s: float) -> DeadLetters:
    """The dead letters on the broker of these settings.

    Raises:
        StackError: the queues are elsewhere; it says what to do.
        redis.RedisError: the pipeline's Redis, which may be the broker, does not answer.
    """
    url = settings.broker.get_secret_value()
    try:
        elsewhere = other_broker(connect(settings.redis_url.get_secret_value(), timeout_s), settings, PROCESSES)
    except redis.RedisError:
        if settings.broker_url is None:
            raise
        elsewhere = None  # the broker may answer all the same
    if elsewhere:
        raise StackError(f"the workers' queues are on {elsewhere}: set BROKER_URL as for the processes")
    if url.startswith("amqp"):
        return RabbitmqDeadLetters(url, timeout_s)
    return RedisDeadLetters(connect(url, timeout_s))
