"""The waking broker on a fake Redis, one look at a time; waking itself takes a real one (tests/integration)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import dramatiq
import fakeredis
import pytest
import redis
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from keepsake_client.errors import Unavailable
from structlog.testing import capture_logs

from services.runtime.queues import QueueKeys
from tasks.broker import build_broker
from tasks.dead_letters import MAX_TRACEBACK_CHARS, MAX_TRACEBACK_FRAMES
from tasks.redis_broker import (
    HEARTBEAT_TIMEOUT_MS,
    MIN_BLOCK_MS,
    SOCKET_TIMEOUT_S,
    WakingConsumer,
    WakingRedisBroker,
)
from tests.support import wait_until

QUEUE = "things"
#: Shorter than Redis's own time-outs: a look that finds nothing ends at once.
TIMEOUT_MS = 10


class Site:
    """A fake server, a namespace on it, and its brokers."""

    def __init__(self) -> None:
        self.server = fakeredis.FakeServer()
        self.client: Any = fakeredis.FakeRedis(server=self.server)
        self.keys = QueueKeys(QUEUE, "site")

    def broker(self, **options: Any) -> WakingRedisBroker:
        """A broker as a worker process of its own would have it."""
        client = fakeredis.FakeRedis(server=self.server)
        broker = WakingRedisBroker(**{"client": client, "middleware": [], "namespace": "site", **options})
        broker.declare_queue(QUEUE)
        return broker

    def acks(self, broker: WakingRedisBroker) -> set[bytes]:
        found: set[bytes] = self.client.smembers(self.keys.acks(broker.broker_id))
        return found


@pytest.fixture
def site() -> Site:
    return Site()


def send(broker: dramatiq.Broker, thing: Any, delay: int | None = None) -> str:
    """Send a message; its id in Redis."""
    message: dramatiq.Message[Any] = dramatiq.Message(QUEUE, "note", (thing,), {}, {})
    sent: str = broker.enqueue(message, delay=delay).options["redis_message_id"]
    return sent


def consume(
    broker: WakingRedisBroker, queue: str = QUEUE, prefetch: int = 2, timeout: int = TIMEOUT_MS
) -> WakingConsumer:
    consumer = broker.consume(queue, prefetch=prefetch, timeout=timeout)
    assert isinstance(consumer, WakingConsumer)
    return consumer


def take(consumer: WakingConsumer) -> dramatiq.MessageProxy:
    # A consumer that found fewer messages than it may hold looks again after a wait.
    message = next(consumer) or next(consumer)
    assert message is not None
    return message


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def events(lines: list[Any]) -> list[str]:
    return [line["event"] for line in lines]


# The broker


def test_a_broker_by_url_raises_at_once_and_looks_for_failed_workers_at_every_fetch() -> None:
    """Given a URL of Redis, I expect the middleware given, time-outs of five seconds and no retries of its own."""
    only = Middleware()

    broker = build_broker("redis://somewhere:6380/1", [only])

    assert isinstance(broker, WakingRedisBroker)
    options = broker.client.connection_pool.connection_kwargs
    assert (options["host"], options["port"], options["db"]) == ("somewhere", 6380, 1)
    assert (options["socket_timeout"], options["retry"].get_retries()) == (SOCKET_TIMEOUT_S, 0)
    assert broker.middleware == [only]
    assert (broker.heartbeat_timeout, broker._should_do_maintenance("fetch")) == (HEARTBEAT_TIMEOUT_MS, 1)


def test_a_closed_broker_closes_its_connections(site: Site) -> None:
    """Given a broker that is closed, I expect its client closed."""
    broker, closed = site.broker(), []
    broker.client.close = lambda: closed.append(True)  # type: ignore[method-assign]

    broker.close()

    assert closed == [True]


def test_a_full_redis_is_drained_by_a_script_that_may_run_all_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a Redis that refuses for want of memory, I expect fetches and acknowledgements by the flagged script.

    They are those of the same process, in the same namespace, even one that is set after the broker was made.
    """
    broker = site.broker(namespace="other")
    broker.namespace = "site"
    sent = send(broker, 1)
    flagged = broker._when_full.scripts["dispatch"]
    script = bytes(broker.scripts["dispatch"].script)  # type: ignore[arg-type]
    assert flagged.script == b"#!lua flags=allow-oom\n" + script
    # The fake server knows no flags.
    broker._when_full.scripts["dispatch"] = broker.client.register_script(script)
    monkeypatch.setitem(broker.scripts, "dispatch", raising(redis.OutOfMemoryError("full")))

    message = take(consume(broker))
    assert site.acks(broker) == {sent.encode()}
    consume(broker).ack(message)

    assert not site.client.exists(site.keys.ids, site.keys.messages, site.keys.acks(broker.broker_id))


def test_a_full_redis_accepts_no_more(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Redis that refuses for want of memory, I expect the error when something is enqueued."""
    broker = site.broker()
    monkeypatch.setitem(broker.scripts, "dispatch", raising(redis.OutOfMemoryError("full")))

    with pytest.raises(redis.OutOfMemoryError):
        send(broker, 1)


def test_middleware_sees_a_message_once(site: Site) -> None:
    """Given middleware, I expect it to be the broker's alone: the one for a full Redis has none."""

    class Counts(Middleware):
        enqueued = 0

        def after_enqueue(self, *_: Any) -> None:
            self.enqueued += 1

    counts = Counts()
    broker = site.broker(middleware=[counts])
    send(broker, 1)

    assert counts.enqueued == 1
    assert broker._when_full.middleware == []


# Messages


def test_messages_are_delivered_first_come_first(site: Site) -> None:
    """Given three messages and a prefetch of two, I expect two in order, and the third once one is acknowledged."""
    broker = site.broker()
    for number in range(3):
        send(broker, number)
    consumer = consume(broker, prefetch=2)

    first, second = take(consumer), take(consumer)
    assert (first.args, second.args, next(consumer)) == ((0,), (1,), None)
    consumer.ack(first)

    assert take(consumer).args == (2,)
    assert len(site.acks(broker)) == 2


def test_no_more_is_fetched_than_is_free(site: Site) -> None:
    """Given a prefetch of three and one message held, I expect two more fetched of four."""
    broker = site.broker()
    send(broker, 0)
    consumer = consume(broker, prefetch=3)
    take(consumer)
    for number in range(1, 5):
        send(broker, number)

    take(consumer)

    assert (consumer.outstanding_message_count, site.client.llen(site.keys.ids)) == (3, 2)


def test_a_queue_that_was_drained_is_waited_for_before_it_is_fetched(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a fetch that brought fewer messages than asked for, I expect a wait next, not a fetch of nothing."""
    broker = site.broker()
    send(broker, 1)
    consumer = consume(broker, timeout=1_500)
    take(consumer)
    blocks = Blocks(monkeypatch, broker)
    monkeypatch.setitem(broker.scripts, "dispatch", raising(AssertionError("it was fetched")))

    assert next(consumer) is None

    assert len(blocks.calls) == 1


def test_messages_are_fetched_by_half_windows(site: Site) -> None:
    """Given room for one message of four, I expect none fetched; with room for two, both."""
    broker = site.broker()
    consumer = consume(broker, prefetch=4)
    for number in range(6):
        send(broker, number)
    held = [take(consumer) for _ in range(4)]

    consumer.ack(held[0])
    assert (next(consumer), site.client.llen(site.keys.ids)) == (None, 2)
    consumer.ack(held[1])
    take(consumer)

    assert site.client.llen(site.keys.ids) == 0


def test_a_delayed_message_is_fetched_as_soon_as_one_fits(site: Site) -> None:
    """Given a consumer of delayed messages that holds most of what it may, I expect another one to be fetched."""
    broker = site.broker()
    consumer = consume(broker, dq_name(QUEUE), prefetch=4)
    for number in range(3):
        send(broker, number, delay=15_000)
        take(consumer)
    send(broker, 3, delay=1_000)

    assert take(consumer).args == (3,)


def test_a_full_consumer_waits_for_a_free_slot(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a consumer that holds all it may, I expect it to wait until a message is acknowledged, each time."""
    broker = site.broker()
    send(broker, 0)
    send(broker, 1)
    consumer = consume(broker, prefetch=1, timeout=60_000)
    message = take(consumer)
    begun: list[float | None] = []
    freed: list[bool] = []
    wait = consumer._slot_free.wait

    def note(timeout: float | None = None) -> None:
        begun.append(timeout)
        freed.append(wait(timeout))

    monkeypatch.setattr(consumer._slot_free, "wait", note)
    thread = threading.Thread(target=next, args=(consumer,))
    thread.start()
    wait_until(lambda: begun, description="the wait")
    consumer.ack(message)
    thread.join()
    assert freed == [True]

    consumer.timeout = 100
    take(consumer)
    assert next(consumer) is None
    assert begun == [60, 0.1]
    assert freed == [True, False], "the slot that was free before is taken"


def test_an_acknowledged_message_leaves_nothing_behind(site: Site) -> None:
    """Given a message that was run, delayed or not, I expect no trace of it."""
    broker = site.broker()
    send(broker, 1)
    consumer = consume(broker)

    consumer.ack(take(consumer))

    assert site.client.keys() == [b"site:__heartbeats__"]
    assert (broker.held[QUEUE], consumer.outstanding_message_count) == (set(), 0)


def test_a_message_that_is_put_back_is_held_no_longer(site: Site) -> None:
    """Given messages that are requeued, I expect them on their queue, and the consumer free to fetch again."""
    broker = site.broker()
    sent = [send(broker, number).encode() for number in range(2)]
    consumer = consume(broker)

    consumer.requeue(iter([take(consumer), take(consumer)]))

    assert sorted(site.client.lrange(site.keys.ids, 0, -1)) == sorted(sent)
    assert (broker.held[QUEUE], site.acks(broker)) == (set(), set())


def test_a_consumer_that_is_closed_requeues_what_it_has_not_delivered(site: Site) -> None:
    """Given three fetched messages of which one was delivered and one is undecodable, I expect the third requeued."""
    broker = site.broker()
    sent = [send(broker, number) for number in range(3)]
    consumer = consume(broker, prefetch=3)
    site.client.hset(site.keys.messages, sent[1], b"garbage")
    take(consumer)

    consumer.close()

    assert site.client.lrange(site.keys.ids, 0, -1) == [sent[2].encode()]
    assert (broker.held[QUEUE], consumer.message_cache) == ({sent[0]}, [])


# Dead letters


def failing(site: Site, broker: WakingRedisBroker, error: BaseException | None) -> dramatiq.Message[Any]:
    """Dead-letter one message for this reason; it as it is kept."""
    sent = send(broker, 1)
    consumer = consume(broker)
    message = take(consumer)
    if error is not None:
        message.stuff_exception(error)

    consumer.nack(message)

    assert site.client.zrange(site.keys.dead_ids, 0, -1) == [sent.encode()]
    assert (broker.held[QUEUE], site.acks(broker)) == (set(), set())
    return dramatiq.Message.decode(site.client.hget(site.keys.dead_messages, sent))


def nested(depth: int) -> None:
    """Fail below so many pairs of frames; a traceback shortens frames that are equal."""
    if depth == 0:
        raise Unavailable("PostgreSQL does not answer")
    deeper(depth - 1)


def deeper(depth: int) -> None:
    nested(depth)


def test_a_dead_letter_says_why_and_where(site: Site) -> None:
    """Given a message that failed deep inside, I expect the reason, and the outermost frames of the traceback."""
    with pytest.raises(Unavailable) as raised:
        nested(MAX_TRACEBACK_FRAMES)

    options = failing(site, site.broker(), raised.value).options

    assert options["error"] == "unavailable: PostgreSQL does not answer"
    first, *frames, last = options["traceback"].splitlines()
    assert (first, last) == (
        "Traceback (most recent call last):",
        "keepsake_client.errors.Unavailable: PostgreSQL does not answer",
    )
    assert sum(frame.startswith("  File ") for frame in frames) == MAX_TRACEBACK_FRAMES


def test_a_traceback_is_bounded(site: Site) -> None:
    """Given an error that quotes a long message, I expect the end of its traceback."""
    options = failing(site, site.broker(), ValueError("x" * 100_000 + " the end")).options

    assert len(options["traceback"]) == MAX_TRACEBACK_CHARS
    assert options["traceback"].endswith(" the end\n")


def test_a_dead_letter_without_an_error_has_no_reason(site: Site) -> None:
    """Given a message that is rejected without an error, I expect it as it was."""
    assert set(failing(site, site.broker(), None).options) == {"redis_message_id"}


def test_a_full_redis_has_dead_letters_without_a_reason(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Redis without memory for the reason, I expect the message among the dead letters all the same."""
    monkeypatch.setattr("services.runtime.dead_letters.record", raising(redis.OutOfMemoryError("full")))

    assert "error" not in failing(site, site.broker(), ValueError()).options


UNDECODABLE = {
    "not JSON": b"garbage",
    "a list": b"[]",
    "not a message": b'{"hello": "world"}',
    "no id": b'{"queue_name": "things", "actor_name": "note", "args": [1], "kwargs": {}, "options": {},'
    b' "message_id": "m", "message_timestamp": 1}',
    "no options": b'{"queue_name": "things", "actor_name": "note", "args": [1], "kwargs": {}, "options": null,'
    b' "message_id": "m", "message_timestamp": 1}',
}


@pytest.mark.parametrize("data", UNDECODABLE.values(), ids=UNDECODABLE)
def test_an_undecodable_message_is_a_dead_letter_as_it_was(site: Site, data: bytes) -> None:
    """Given something that is no message before a good one, I expect it dead-lettered when the queue is empty."""
    broker = site.broker()
    site.client.hset(site.keys.messages, "bad", data)
    site.client.rpush(site.keys.ids, "bad")
    send(broker, 1)
    consumer = consume(broker)

    with capture_logs() as lines:
        assert take(consumer).args == (1,)
        assert next(consumer) is None

    assert [(line["event"], line["queue"], line["log_level"]) for line in lines] == [
        ("undecodable_message", QUEUE, "error"),
        ("undecodable_message_dead_lettered", QUEUE, "error"),
    ]
    assert lines[1]["redis_message_id"] == "bad"
    assert site.client.hgetall(site.keys.dead_messages) == {b"bad": data}
    assert len(site.acks(broker)) == 1


def test_an_id_without_a_message_is_forgotten(site: Site) -> None:
    """Given an id whose message is gone, I expect no trace of it after a look at the empty queue."""
    broker = site.broker()
    site.client.rpush(site.keys.ids, "gone")
    consumer = consume(broker)

    with capture_logs() as lines:
        assert next(consumer) is None

    assert site.client.keys() == [b"site:__heartbeats__"]
    assert events(lines) == ["undecodable_message"]


# Reconciling


def test_what_is_acknowledged_while_it_reconciles_is_no_dead_letter(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a message that a worker thread acknowledges after Redis was asked what is held, I expect it left alone."""
    broker = site.broker(reconcile_interval_s=0.0)
    send(broker, 1)
    consumer = consume(broker)
    message = take(consumer)
    held_in_redis = broker.client.smembers

    def acknowledged_meanwhile(key: str) -> Any:
        found = held_in_redis(key)
        consumer.ack(message)
        return found

    monkeypatch.setattr(broker.client, "smembers", acknowledged_meanwhile)

    with capture_logs() as lines:
        assert next(consumer) is None

    assert events(lines) == []
    assert site.client.keys() == [b"site:__heartbeats__"]


def test_a_fetch_whose_reply_was_lost_is_reconciled(site: Site) -> None:
    """Given messages that Redis delivered and that never arrived, I expect a look at an empty queue to requeue them.

    The one that a worker holds stays where it is.
    """
    broker = site.broker(reconcile_interval_s=0.0)
    held = send(broker, "held")
    consumer = consume(broker)
    take(consumer)
    lost = send(broker, "lost")
    broker.do_fetch(QUEUE, 1)  # and the reply is dropped

    with capture_logs() as lines:
        assert next(consumer) is None

    assert [(line["event"], line["queue"], line["redis_message_id"], line["log_level"]) for line in lines] == [
        ("stranded_message_requeued", QUEUE, lost, "warning")
    ]
    assert site.client.lrange(site.keys.ids, 0, -1) == [lost.encode()]
    assert site.acks(broker) == {held.encode()}


def test_it_reconciles_at_its_interval(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given looks at an empty queue over an interval, I expect the first comparison after it, and then one each."""
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    broker = site.broker(reconcile_interval_s=5.0)
    consumer = consume(broker)
    compared: list[float] = []

    def compare(_: str) -> set[bytes]:
        compared.append(now)
        return set()

    monkeypatch.setattr(broker.client, "smembers", compare)

    for now in (1_000.0, 1_004.9, 1_005.0, 1_005.1, 1_009.9, 1_010.0):  # noqa: B007 - the clock reads it
        assert next(consumer) is None

    assert compared == [1_005.0, 1_010.0]


def test_messages_outlive_their_consumer(site: Site) -> None:
    """Given a message that a worker still runs after a lost connection, I expect the next consumer to count it."""
    broker = site.broker(reconcile_interval_s=0.0)
    send(broker, 1)
    take(consume(broker, prefetch=1))

    consumer = consume(broker, prefetch=1)

    assert consumer.outstanding_message_count == 1
    assert next(consumer) is None
    assert site.client.llen(site.keys.ids) == 0


def test_delayed_messages_do_not_outlive_their_consumer(site: Site) -> None:
    """Given a delayed message that a consumer held when its connection was lost, I expect the next one to requeue it.

    Dramatiq keeps it in the consumer's thread, which has ended.
    """
    broker = site.broker(reconcile_interval_s=0.0)
    sent = send(broker, 1, delay=3_600_000)
    take(consume(broker, dq_name(QUEUE)))

    with capture_logs() as lines:
        assert next(consume(broker, dq_name(QUEUE))) is None

    assert events(lines) == ["stranded_message_requeued"]
    assert site.client.lrange(QueueKeys(dq_name(QUEUE), "site").ids, 0, -1) == [sent.encode()]


# Waiting


class Blocks:
    """The blocking looks at the queue, and how each ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broker: WakingRedisBroker) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.slept: list[float] = []
        self.outcome: Callable[[], Any] = lambda: None
        monkeypatch.setattr(broker.client, "blmove", self._blmove)
        monkeypatch.setattr(time, "sleep", self.slept.append)

    def _blmove(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return self.outcome()


def test_an_idle_consumer_waits_in_redis(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an empty queue, I expect a blocking look at it, which moves its first id to where it was."""
    broker = site.broker()
    blocks = Blocks(monkeypatch, broker)

    assert next(consume(broker, timeout=1_500)) is None

    assert blocks.calls == [(site.keys.ids, site.keys.ids, 1.5, "LEFT", "LEFT")]
    assert blocks.slept == []


def test_a_consumer_that_is_woken_fetches(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a message that comes while the consumer waits, I expect it delivered by the same look."""
    broker = site.broker()
    blocks = Blocks(monkeypatch, broker)
    blocks.outcome = lambda: send(broker, 1).encode()

    message = next(consume(broker, timeout=1_500))

    assert message is not None
    assert message.args == (1,)


@pytest.mark.parametrize(
    ("timeout_ms", "blocked", "slept"), [(MIN_BLOCK_MS, [0.2], []), (MIN_BLOCK_MS - 50, [], [0.15])]
)
def test_a_wait_that_is_too_short_for_redis_is_slept(
    site: Site, monkeypatch: pytest.MonkeyPatch, timeout_ms: int, blocked: list[float], slept: list[float]
) -> None:
    """Given a wait of 200 ms, I expect it in Redis; given a shorter one, a sleep."""
    broker = site.broker()
    blocks = Blocks(monkeypatch, broker)

    assert next(consume(broker, timeout=timeout_ms)) is None

    assert ([call[2] for call in blocks.calls], blocks.slept) == (blocked, slept)


@pytest.mark.parametrize(
    ("due_in_ms", "blocked", "slept"),
    [([3_000], [1.5], []), ([1_000], [1.0], []), ([3_000, 500], [0.5], []), ([100], [], [0.1]), ([-100], [], [0.0])],
)
def test_a_wait_ends_when_a_delayed_message_is_due(
    site: Site, monkeypatch: pytest.MonkeyPatch, due_in_ms: list[int], blocked: list[float], slept: list[float]
) -> None:
    """Given delayed messages that are held, I expect a wait until the first is due, and 1.5 s at most."""
    now = current_millis()
    monkeypatch.setattr("tasks.redis_broker.current_millis", lambda: now)
    monkeypatch.setattr("dramatiq.brokers.redis.current_millis", lambda: now)
    broker = site.broker()
    consumer = consume(broker, dq_name(QUEUE), prefetch=10, timeout=1_500)
    for delay in due_in_ms:
        send(broker, delay, delay=delay)
        take(consumer)
    blocks = Blocks(monkeypatch, broker)

    assert next(consumer) is None

    assert ([call[2] for call in blocks.calls], blocks.slept) == (blocked, slept)


def test_a_delayed_message_that_was_passed_on_shortens_no_wait(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a delayed message that is acknowledged, I expect the next wait to be the longest."""
    broker = site.broker()
    consumer = consume(broker, dq_name(QUEUE), timeout=1_500)
    send(broker, 1, delay=1_000)
    consumer.ack(take(consumer))
    blocks = Blocks(monkeypatch, broker)

    assert next(consumer) is None

    assert [call[2] for call in blocks.calls] == [1.5]


def test_a_full_redis_is_polled(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Redis that refuses the blocking look for want of memory, I expect a pause of 0.2 s and no error."""
    broker = site.broker()
    blocks = Blocks(monkeypatch, broker)
    blocks.outcome = raising(redis.OutOfMemoryError("full"))

    assert next(consume(broker, timeout=1_500)) is None

    assert blocks.slept == [0.2]


# Outages

Act = Callable[[WakingConsumer, dramatiq.MessageProxy], Any]
ACTS: dict[str, Act] = {
    "next": lambda consumer, _: take(consumer),
    "ack": lambda consumer, message: consumer.ack(message),
    "nack": lambda consumer, message: consumer.nack(message),
    "requeue": lambda consumer, message: consumer.requeue([message]),
}


@pytest.fixture
def holding(site: Site) -> tuple[WakingConsumer, dramatiq.MessageProxy]:
    """A consumer, and a message that it has delivered."""
    broker = site.broker()
    send(broker, 1)
    consumer = consume(broker)
    return consumer, take(consumer)


@pytest.mark.parametrize("error", [redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError])
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_an_outage_is_one_that_dramatiq_knows_and_the_message_stays_held(
    holding: tuple[WakingConsumer, dramatiq.MessageProxy],
    monkeypatch: pytest.MonkeyPatch,
    act: Act,
    error: type[redis.RedisError],
) -> None:
    """Given any refusal of Redis, I expect Dramatiq's lost connection, one line of it, and the message held."""
    consumer, message = holding
    monkeypatch.setitem(consumer.broker.scripts, "dispatch", raising(error("gone")))

    with capture_logs() as lines:
        for _ in range(2):
            with pytest.raises(ConnectionClosed, match="gone"):
                act(consumer, message)

    assert [(line["event"], line["dependency"], line["reason"]) for line in lines] == [
        ("dependency_down", "broker", f"{error.__name__}: gone")
    ]
    assert consumer.outstanding_message_count == 1


def test_the_end_of_an_outage_is_logged_once(
    holding: tuple[WakingConsumer, dramatiq.MessageProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an outage that is over, I expect one line at the next look, and none at those after it."""
    consumer, message = holding
    with monkeypatch.context() as patch, capture_logs():
        patch.setitem(consumer.broker.scripts, "dispatch", raising(redis.ConnectionError("gone")))
        with pytest.raises(ConnectionClosed):
            consumer.ack(message)

    with capture_logs() as lines:
        for _ in range(2):
            assert next(consumer) is None

    assert events(lines) == ["dependency_up"]
