"""Dead letters on RabbitMQ, over AMQP: read without being taken, and sent again before they are removed.

RabbitMQ's management API could read them too, but it can take a message only before it is published again, and lose it
in between. A dead letter is in its queue until RabbitMQ has confirmed what was to become of it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from services.runtime.dead_letters import DeadLetter, DeadLetters, as_first_sent, decoded
from services.runtime.errors import StackError
from services.runtime.queues import QUEUES, dead_letter_queue
from services.runtime.settings import hosts_of, mask_url

#: Of one queue, the oldest: they are all read at once.
MAX_READ = 10_000
_ID = re.compile(r"[\w:.-]{1,64}")


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
        return self.replay_all([letter]) == 1

    def drop(self, letter: DeadLetter) -> bool:
        return self.drop_all([letter]) == 1

    def replay_all(self, letters: Iterable[DeadLetter]) -> int:
        sendable = [letter for letter in letters if letter.message is not None]
        return self._remove(sendable, again=True)

    def drop_all(self, letters: Iterable[DeadLetter]) -> int:
        return self._remove(letters, again=False)

    def _remove(self, letters: Iterable[DeadLetter], *, again: bool) -> int:
        """Acknowledge dead letters, each once its new copy is on its queue where it is to be done again; how many."""
        import pika  # noqa: PLC0415 - an extra

        chosen: dict[str, Counter[bytes]] = {}
        for letter in letters:
            chosen.setdefault(letter.queue, Counter())[letter.raw] += 1
        persistent, removed = pika.BasicProperties(delivery_mode=2), 0
        for queue, left in chosen.items():
            with self._channel() as channel:
                for found, tag in self._read(channel, queue):
                    if left[found.raw]:
                        if again and (body := as_first_sent(found)):
                            channel.basic_publish("", queue, body.encode(), persistent, mandatory=True)
                        channel.basic_ack(tag)
                        left[found.raw] -= 1
                        removed += 1
                    if not left.total():
                        break
        return removed

    def _read(self, channel: Any, queue: str) -> Iterator[tuple[DeadLetter, int]]:
        """The dead letters of a queue with their numbers on this channel, which holds them until it is closed."""
        name = dead_letter_queue(queue)
        number = min(channel.queue_declare(name, passive=True).method.message_count, MAX_READ)
        channel.basic_qos(prefetch_count=number)  # of 0 there is no limit, and nothing is consumed
        for _, (method, properties, raw) in zip(range(number), self._deliveries(channel, name), strict=False):
            message = decoded(raw)
            yield DeadLetter(_id_of(message, raw), queue, _died_at(properties), raw, message), method.delivery_tag

    def _deliveries(self, channel: Any, name: str) -> Iterator[Any]:
        """What the queue holds, until nothing has come for a while: another process may have it."""
        for delivery in channel.consume(name, inactivity_timeout=self._timeout_s):
            if delivery[0] is None:
                return
            yield delivery

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        try:
            import pika  # noqa: PLC0415 - an extra that is seldom installed
            from pika.adapters.utils.connection_workflow import AMQPConnectorException  # noqa: PLC0415
            from pika.exceptions import AMQPError, ChannelClosedByBroker  # noqa: PLC0415

            from services.runtime.amqp import words  # noqa: PLC0415
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
                raise StackError(f"{mask_url(self._url)}: {words(error)}") from None
        except (AMQPError, AMQPConnectorException, OSError) as error:
            raise StackError(f"{mask_url(self._url)}: {words(error)}") from None


def _id_of(message: dict[str, Any] | None, raw: bytes) -> str:
    """The id of its message; of one that is none, or that another program gave an id that is no word, its hash."""
    found = (message or {}).get("message_id")
    if isinstance(found, str) and _ID.fullmatch(found):
        return found
    return hashlib.sha256(raw).hexdigest()[:32]


def _died_at(properties: Any) -> float:
    """When a worker moved the message to the dead letters, or RabbitMQ itself did; 0 where it is not known."""
    if properties.timestamp is not None:
        return float(properties.timestamp)
    try:
        moved: datetime = properties.headers["x-death"][0]["time"]
        return (moved if moved.tzinfo else moved.replace(tzinfo=UTC)).timestamp()
    except (TypeError, LookupError, AttributeError):
        return 0.0
