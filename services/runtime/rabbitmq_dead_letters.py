"""Dead letters on RabbitMQ, over AMQP: read without being taken, and sent again before they are removed.

RabbitMQ's management API could read them too, but it can take a message only before it is published again, and lose it
in between. A dead letter is in its queue until RabbitMQ has confirmed what was to become of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from services.runtime.dead_letters import DeadLetter, DeadLetters, as_first_sent, decoded
from services.runtime.errors import StackError
from services.runtime.queues import QUEUES, dead_letter_queue
from services.runtime.settings import hosts_of, mask_url

#: Of one queue, the oldest: they are all read at once.
MAX_READ = 10_000


class RabbitmqDeadLetters(DeadLetters):
    """Dead letters on RabbitMQ. While one process reads them, another sees those that are left.

    Every method raises StackError where RabbitMQ does not answer.

    Args:
        timeout_s: of each wait for RabbitMQ, approximately.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s

    def all(self, queue: str | None = None) -> Iterator[DeadLetter]:
        for name in [queue] if queue else QUEUES:
            letters: list[DeadLetter] = []
            with self._channel() as channel:
                letters = [letter for letter, _ in self._read(channel, name)]
            yield from sorted(letters, key=lambda letter: letter.died_at)

    def replay(self, letter: DeadLetter) -> bool:
        body = as_first_sent(letter)
        return body is not None and self._remove(letter, body.encode())

    def drop(self, letter: DeadLetter) -> bool:
        return self._remove(letter, None)

    def _remove(self, letter: DeadLetter, body: bytes | None) -> bool:
        """Acknowledge a dead letter, once its new copy, if there is to be one, is on its queue."""
        import pika  # noqa: PLC0415 - an extra

        with self._channel() as channel:
            for found, tag in self._read(channel, letter.queue):
                if found.raw == letter.raw:
                    if body is not None:
                        persistent = pika.BasicProperties(delivery_mode=2)
                        channel.basic_publish("", letter.queue, body, persistent, mandatory=True)
                    channel.basic_ack(tag)
                    return True
        return False

    def _read(self, channel: Any, queue: str) -> Iterator[tuple[DeadLetter, int]]:
        """The dead letters of a queue with their numbers on this channel, which holds them until it is closed."""
        for _ in range(MAX_READ):
            method, properties, raw = channel.basic_get(dead_letter_queue(queue))
            if method is None:
                return
            message = decoded(raw)
            name = (message or {}).get("message_id") or hashlib.sha256(raw).hexdigest()[:32]
            yield DeadLetter(str(name), queue, _died_at(properties), raw, message), method.delivery_tag

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        try:
            import pika  # noqa: PLC0415 - an extra that is seldom installed
            from pika.adapters.utils.connection_workflow import AMQPConnectorException  # noqa: PLC0415
            from pika.exceptions import AMQPError, ChannelClosedByBroker  # noqa: PLC0415
        except ImportError:
            raise StackError(
                "the workers' queues are on RabbitMQ, whose client is not installed: add keepsake-ltm[rabbitmq]"
            ) from None
        servers = [pika.URLParameters(url) for url in hosts_of(self._url)]
        for server in servers:
            server.socket_timeout = server.stack_timeout = self._timeout_s
            # The wait for a node that answers no more ends after two of these.
            server.heartbeat = server.blocked_connection_timeout = max(2, round(self._timeout_s))
        try:
            connection = pika.BlockingConnection(servers)
            try:
                channel = connection.channel()
                channel.confirm_delivery()
                yield channel
            finally:
                if connection.is_open:
                    connection.close()  # what was read and not acknowledged is in its queue again
        except ChannelClosedByBroker as error:
            if error.reply_code != 404:  # no such queue: no worker has run yet
                raise StackError(f"{mask_url(self._url)} refuses: {error.reply_text}") from None
        except (AMQPError, AMQPConnectorException, OSError) as error:
            raise StackError(f"{mask_url(self._url)} does not answer: {type(error).__name__}") from None


def _died_at(properties: Any) -> float:
    """When a worker moved the message to the dead letters, or RabbitMQ itself did; 0 where it is not known."""
    if properties.timestamp is not None:
        return float(properties.timestamp)
    try:
        moved: datetime = properties.headers["x-death"][0]["time"]
        return (moved if moved.tzinfo else moved.replace(tzinfo=UTC)).timestamp()
    except (TypeError, LookupError, AttributeError):
        return 0.0
