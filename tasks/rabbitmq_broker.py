"""Dramatiq's broker on RabbitMQ, for an installation that outgrows one Redis: quorum queues, and every wait bounded.

A quorum queue is on a majority of the cluster's nodes before a message counts as published, and outlives one of three
nodes. tests/integration/test_rabbitmq.py and test_rabbitmq_cluster.py pin what this relies on inside Dramatiq and pika.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import dramatiq
import pika
import structlog
from dramatiq.brokers.rabbitmq import DEAD_MESSAGE_TTL, RabbitmqBroker, _RabbitmqConsumer
from dramatiq.common import dq_name, q_name, xq_name
from dramatiq.errors import BrokerConnectionError, ConnectionClosed
from keepsake_client.errors import Unavailable
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, AMQPError, ChannelClosedByBroker

from services.runtime.amqp import words
from services.runtime.availability import Availability
from services.runtime.metrics import NO_METRICS, Metrics
from services.runtime.settings import hosts_of
from tasks.dead_letters import add_reason
from tasks.decoding import is_sound

#: For a host that disappears without closing, noticed within 12 s; RabbitMQ's heartbeats take two minutes. Shorter ones
#: would have RabbitMQ close the adapters' connections, which send none while they wait.
TCP_OPTIONS = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}
#: Of an attempt to connect, where the URL says nothing else: the next host's turn comes after it. pika's is 10 s.
CONNECT_TIMEOUT_S = 3.0
#: Of all attempts to publish one message. RabbitMQ confirms none while a queue has no majority of its nodes, or while
#: it is out of memory or disk; nor does a frozen node. A new leader is elected within 5 s.
PUBLISH_TIMEOUT_S = 10.0
#: RabbitMQ counts a delivery to a worker that died, or lost its connection, with whatever it had prefetched; from
#: version 4 on, the 20th would make a dead letter of a message that was never run. DeliveryLimit counts runs.
NO_DELIVERY_LIMIT = 1_000_000
QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": NO_DELIVERY_LIMIT}
PRECONDITION_FAILED = 406

log = structlog.get_logger()


class PublishTimedOut(AMQPConnectionError):  # type: ignore[misc]  # pika has no types
    """RabbitMQ has not confirmed the message in time."""

    def __init__(self) -> None:
        super().__init__("not confirmed in time, as without a majority of the nodes, memory or disk")


class RabbitmqUnavailable(Unavailable, ConnectionClosed):
    """Dramatiq's error of a lost connection, on which everything tries again later; it says what RabbitMQ said.

    Args:
        refused: whether RabbitMQ answers, and refuses what was asked of a queue.
    """

    def __init__(self, said: str, *, refused: bool = False) -> None:
        super().__init__(said)  # type: ignore[no-untyped-call]
        self.refused = refused


def server_version(url: str, timeout_s: float = 2.0) -> str | None:
    """The version of the RabbitMQ at `url`; None where it does not answer."""
    for server in hosts_of(url):  # several, of which one is enough
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
    """Dramatiq's broker for RabbitMQ, which pushes messages, so consumers need not poll; an outage is logged once.

    Its queues are quorum queues. A queue of another kind, which a version before 0.3 has declared, is replaced while it
    is empty and no worker consumes it, and used as it is until then.

    Args:
        publish_timeout_s: no call of `enqueue` takes longer, beside the time to connect.
        metrics: of this process.
        parameters: those of Dramatiq's broker.
    """

    def __init__(
        self, *, publish_timeout_s: float = PUBLISH_TIMEOUT_S, metrics: Metrics = NO_METRICS, **parameters: Any
    ) -> None:
        super().__init__(**parameters)
        servers: Any = self.parameters  # one, or a list of several
        for server in servers if isinstance(servers, list) else [servers]:
            if server.tcp_options is None:
                server.tcp_options = TCP_OPTIONS
            if server.socket_timeout == pika.connection.Parameters.DEFAULT_SOCKET_TIMEOUT:
                server.socket_timeout = CONNECT_TIMEOUT_S
            if server.stack_timeout == pika.connection.Parameters.DEFAULT_STACK_TIMEOUT:
                server.stack_timeout = 2 * CONNECT_TIMEOUT_S
        self._publish_timeout_s = publish_timeout_s
        self._kept: set[str] = set()
        self.availability = Availability("broker", metrics=metrics)
        #: Queues that RabbitMQ, which answers, does not let a consumer read, with its words.
        self.refused: dict[str, str] = {}
        # It logs a lost connection in a dozen lines; Dramatiq silences it in workers, and the adapters have it too.
        logging.getLogger("pika").setLevel(logging.CRITICAL)

    @property
    def consumer_class(self) -> type[_Consumer]:
        return _Consumer

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5_000) -> dramatiq.Consumer:
        try:
            with self._bounded():
                return super().consume(queue_name, prefetch, timeout)
        except BrokerConnectionError as error:
            self.failed(queue_name, error)
            raise

    def failed(self, queue_name: str, error: BrokerConnectionError) -> None:
        """Log once that RabbitMQ is away, or that it refuses one queue, beside which others may work."""
        if not (isinstance(error, RabbitmqUnavailable) and error.refused):
            self.availability.down(error)
        elif self.refused.get(queue_name) != str(error):
            self.refused[queue_name] = str(error)
            log.error("queue_unusable", queue=queue_name, reason=str(error))

    def works(self, queue_name: str) -> None:
        """Note that a queue is consumed."""
        self.availability.up()
        self.refused.pop(queue_name, None)

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        """Publish a message, confirmed by a majority of the nodes of its queue.

        Raises:
            BrokerConnectionError: it was not confirmed, and may be on the queue all the same.
        """
        with self._bounded():
            return super().enqueue(message, delay=delay)

    def publish_dead_letter(self, queue_name: str, body: bytes) -> None:
        """Publish a message to the dead letters of a queue, confirmed.

        Raises:
            BrokerConnectionError: it was not confirmed.
        """
        with self._bounded():
            try:
                self.declare_queue(q_name(queue_name), ensure=True)
                properties = pika.BasicProperties(delivery_mode=2, timestamp=int(time.time()))
                self.channel.basic_publish("", xq_name(queue_name), body, properties, mandatory=True)
            except AMQPError:
                del self.connection
                self.queues_pending.add(q_name(queue_name))
                raise

    def _connected(self) -> pika.BlockingConnection:
        """This thread's connection, subject to the time limit of the operation that it is opened in."""
        remaining_s = self.state.until - time.monotonic() if hasattr(self.state, "until") else None
        if remaining_s is not None and remaining_s <= 0:
            raise RabbitmqUnavailable(words(PublishTimedOut()))
        with _one_error():
            is_new = getattr(self.state, "connection", None) is None
            connection: pika.BlockingConnection = RabbitmqBroker.connection.__get__(self)
        if is_new and remaining_s is not None:
            self._limit(connection, remaining_s)
        return connection

    connection = RabbitmqBroker.connection.getter(_connected)  # type: ignore[attr-defined]  # a property

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Bound every wait of this thread's connection within the block; all failures are BrokerConnectionErrors."""
        self.state.until = time.monotonic() + self._publish_timeout_s
        self.state.timers = []
        try:
            if (connection := getattr(self.state, "connection", None)) is not None:
                self._limit(connection, self._publish_timeout_s)
            with _one_error():
                yield
        finally:
            for connection, timer in self.state.timers:
                if connection.is_open:
                    connection._impl.ioloop.remove_timeout(timer)
            del self.state.until, self.state.timers

    def _limit(self, connection: pika.BlockingConnection, timeout_s: float) -> None:
        """End the connection at that time, as pika ends one without heartbeats: what waits for it fails.

        pika has no time limit for a confirmation, and an orderly close would wait for the server, too.
        """
        if connection.is_open:
            expire = partial(connection._impl._terminate_stream, PublishTimedOut())
            self.state.timers.append((connection, connection._impl.ioloop.call_later(timeout_s, expire)))

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        return {**super()._build_queue_arguments(queue_name), **QUORUM}  # type: ignore[no-untyped-call]

    def _declare_queue(self, queue_name: str) -> Any:
        self._kept.discard(queue_name)
        return self._declare(queue_name, queue_name, self._build_queue_arguments(queue_name))

    def _declare_dq_queue(self, queue_name: str) -> Any:
        return self._declare(dq_name(queue_name), queue_name, self._build_queue_arguments(queue_name))

    def _declare_xq_queue(self, queue_name: str) -> Any:
        return self._declare(xq_name(queue_name), queue_name, {"x-message-ttl": DEAD_MESSAGE_TTL, **QUORUM})

    def _declare(self, name: str, of: str, arguments: dict[str, Any]) -> Any:
        """Declare a quorum queue. One of that name and another kind is replaced, or used while that cannot be.

        Args:
            of: the queue whose messages it holds. While this one is kept, so are its delayed messages and its dead
                letters: workers of an earlier version, which declare all three, may be started again.
        """
        try:
            return self.channel.queue_declare(name, durable=True, arguments=arguments)
        except ChannelClosedByBroker as error:
            if error.reply_code != PRECONDITION_FAILED:
                raise
            refused = words(error)
        del self.channel
        if of not in self._kept and self._delete_unused(name):
            log.info("queue_replaced", queue=name, by="a quorum queue")
            return self.channel.queue_declare(name, durable=True, arguments=arguments)
        if name == of:
            self._kept.add(name)
        remedy = f"once it is empty, start the workers again, or stop them and run: rabbitmqctl delete_queue {name}"
        log.warning("queue_not_replicated", queue=name, reason=refused, remedy=remedy)
        return self.channel.queue_declare(name, passive=True)

    def _delete_unused(self, name: str) -> bool:
        """Delete a queue that holds no message and has no consumer; whether it was deleted. A quorum queue never is."""
        try:
            self.channel.queue_delete(name, if_unused=True, if_empty=True)
        except AMQPError:
            del self.connection
            return False
        return True


class _Consumer(_RabbitmqConsumer):
    """Dramatiq's consumer, which settles what it has itself delivered alone, and records why a message failed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)  # type: ignore[no-untyped-call]
        self.iterator = self._remembering(self.iterator)

    def _remembering(self, deliveries: Iterator[Any]) -> Iterator[Any]:
        for delivery in deliveries:
            self._body = delivery[2]
            yield delivery

    def __next__(self) -> dramatiq.MessageProxy | None:
        try:
            with _one_error():
                message: Any = super().__next__()  # type: ignore[no-untyped-call]
        except BrokerConnectionError as error:
            self.broker.failed(self.queue_name, error)
            raise
        # Not before: a user who may not read a queue is refused as this begins to consume it.
        self.broker.works(self.queue_name)
        if message is None:
            return None
        if not is_sound(message._message, self.queue_name):
            log.error("undecodable_message", queue=self.queue_name)
            self.known_tags.discard(message._tag)
            self._nack(message._tag)
            return None
        message.consumer = self
        return cast(dramatiq.MessageProxy, message)

    def _nack(self, tag: int) -> None:
        """Move what is no message, and was delivered just now, to the dead letters.

        RabbitMQ itself would lose it, of a queue of one's own making that has no dead letters.
        """
        self.broker.publish_dead_letter(self.queue_name, self._body)
        self.connection.add_callback_threadsafe(partial(self.channel.basic_ack, tag))

    def ack(self, message: Any) -> None:
        # A worker may finish what a consumer before this one delivered. Its number is another message's by now, and
        # RabbitMQ has delivered it again.
        if message.consumer is self:
            super().ack(message)  # type: ignore[no-untyped-call]

    def nack(self, message: Any) -> None:
        """Move a message to the dead letters, with its reason: RabbitMQ would move what was once enqueued.

        A worker that dies in between leaves the dead letter and the message, which fails again.
        """
        if message.consumer is self and message._tag in self.known_tags:
            add_reason(message)
            self.broker.publish_dead_letter(message.queue_name, message.encode())
            self.ack(message)


@contextmanager
def _one_error() -> Iterator[None]:
    """Whatever pika raises becomes one error, in words."""
    try:
        yield
    except RabbitmqUnavailable:
        raise
    except (AMQPError, AMQPConnectorException, OSError, ConnectionClosed) as error:
        cause = error.args[0] if isinstance(error, ConnectionClosed) and error.args else error
        raise RabbitmqUnavailable(words(error), refused=isinstance(cause, ChannelClosedByBroker)) from None
