"""The stream and the dispatcher on a fake Redis: bounds, backpressure, acknowledgements and claims."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import dramatiq
import fakeredis
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from keepsake_client.protocol import COUNTERS, STREAM_GROUP, UPDATES_STREAM, MemoryUpdateMessage
from structlog.testing import capture_logs

from adapters.dispatcher import FULL_PAUSE_S, Dispatcher
from adapters.membership import Membership
from adapters.stream import CONSUMER_GONE_MS, Entry, UpdateStream, digest
from services.runtime.queues import QueueKeys
from services.runtime.rejected import RejectSink

INDEX = QueueKeys("index")
WINDOW = 100


@pytest.fixture
def client() -> Iterator[fakeredis.FakeRedis]:
    with fakeredis.FakeRedis() as client:
        yield client


def event(content: str, user: str = "u1") -> str:
    return json.dumps({"user_id": user, "content": content, "source": "user"})


def publish(client: Any, *contents: str) -> None:
    for content in contents:
        client.xadd(UPDATES_STREAM, {"event": event(content)})


def pending(client: Any) -> int:
    [group] = client.xinfo_groups(UPDATES_STREAM)
    return int(group["pending"])


class Site:
    """A dispatcher, its stream, and an index queue whose window a test opens and closes."""

    def __init__(self, client: fakeredis.FakeRedis, **options: Any) -> None:
        self.client: Any = client
        self.broker = RedisBroker(client=client, middleware=[])
        self.stream = UpdateStream(client, UPDATES_STREAM, "a1", 1_000)
        self.dispatcher = Dispatcher(
            self.stream,
            Membership(client, "a1"),
            self.broker,
            RejectSink(client, UPDATES_STREAM),
            1_000,
            **{"prefetch": 100, "window": WINDOW, "poll_timeout_s": 0.02, **options},
        )
        self.dispatcher.connect()
        self.dispatcher.run_once()  # nothing was pending

    def run(self, times: int = 1) -> None:
        for _ in range(times):
            self.dispatcher.run_once()

    def close_window(self) -> None:
        self.client.hset(INDEX.messages, mapping={f"filler-{number}": "x" for number in range(WINDOW)})

    def open_window(self) -> None:
        self.client.hdel(INDEX.messages, *(f"filler-{number}" for number in range(WINDOW)))

    def dispatched(self) -> list[str]:
        """The contents on the index queue, in order."""
        bodies = [self.client.hget(INDEX.messages, each) for each in self.client.lrange(INDEX.ids, 0, -1)]
        return [dramatiq.Message.decode(body).kwargs["update"]["content"] for body in bodies]


# Arrival


def test_an_event_arrived_when_its_entry_was_written(client: fakeredis.FakeRedis) -> None:
    """Given entries that waited for an hour, I expect them judged by the time they were written: local time of UTC+8 is
    that moment, seconds since boot and no time are, and the indexers are told."""
    site = Site(client)
    arrived_at = 1_732_865_400.25
    for number, timestamp in enumerate(["2024-11-29T15:30:00", 1061.277, None]):
        sent = {"user_id": "u1", "content": f"m{number}", "source": "user", "timestamp": timestamp}
        site.client.xadd(UPDATES_STREAM, {"event": json.dumps(sent)}, id=f"1732865400250-{number}")

    site.run(2)

    updates = [
        dramatiq.Message.decode(site.client.hget(INDEX.messages, each)).kwargs["update"]
        for each in site.client.lrange(INDEX.ids, 0, -1)
    ]
    assert [update["timestamp"] for update in updates] == [1_732_865_400, arrived_at, arrived_at]
    assert [update["meta"].get("sent_timestamp") for update in updates] == ["2024-11-29T15:30:00", 1061.277, None]
    assert {update["arrived_at"] for update in updates} == {arrived_at}


def test_an_entry_with_an_id_that_is_no_time_arrived_now(client: fakeredis.FakeRedis) -> None:
    """Given a publisher that numbers the entries itself, I expect its events to keep their time."""
    site = Site(client)
    sent = {"user_id": "u1", "content": "m0", "source": "user", "timestamp": 1_712_345_678}
    site.client.xadd(UPDATES_STREAM, {"event": json.dumps(sent)}, id="1-1")

    site.run(2)

    [message_id] = site.client.lrange(INDEX.ids, 0, -1)
    update = dramatiq.Message.decode(site.client.hget(INDEX.messages, message_id)).kwargs["update"]
    assert (update["timestamp"], abs(update["arrived_at"] - time.time()) < 60) == (1_712_345_678, True)


# Bounds of the prefetch


def test_reading_goes_on_after_many_bytes(client: fakeredis.FakeRedis) -> None:
    """Given a bound of bytes that every read reaches, I expect all entries dispatched: those that left do not count."""
    site = Site(client, prefetch=2, max_prefetch_bytes=1)
    publish(client, *(f"m{number}" for number in range(8)))

    site.run(8)

    assert site.dispatched() == [f"m{number}" for number in range(8)]
    assert pending(client) == 0


def test_no_more_bytes_are_prefetched_than_allowed(client: fakeredis.FakeRedis) -> None:
    """Given a full window, I expect nothing read once the bound is reached, and all of it when there is room again."""
    site = Site(client, max_prefetch_bytes=2 * len(event("m0")))
    site.close_window()
    for number in range(4):
        publish(client, f"m{number}")
        site.run()
    assert pending(client) == 2

    site.open_window()
    site.run(4)

    assert site.dispatched() == ["m0", "m1", "m2", "m3"]


def test_no_more_entries_are_prefetched_than_allowed(client: fakeredis.FakeRedis) -> None:
    """Given a full window and prefetch=3, I expect three entries read of five, in however many iterations."""
    site = Site(client, prefetch=3)
    site.close_window()
    publish(client, "m0", "m1")
    site.run()
    publish(client, "m2", "m3", "m4")

    site.run(3)

    assert pending(client) == 3


def test_reading_goes_on_once_a_batch_fits(client: fakeredis.FakeRedis) -> None:
    """Given prefetch=3, reached, and room for one in the window, I expect nothing read until all three have left."""
    site = Site(client, prefetch=3)
    site.close_window()
    publish(client, *(f"m{number}" for number in range(5)))
    site.run(2)
    assert pending(client) == 3

    site.client.hdel(INDEX.messages, "filler-0")
    site.run(3)
    assert pending(client) == 2

    site.open_window()
    site.run(2)
    assert site.dispatched() == [f"m{number}" for number in range(5)]


def test_entries_trimmed_while_nothing_was_read_are_counted(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a dispatcher that was full, I expect it to count trimmed entries once, before it reads on."""
    site = Site(client, prefetch=2)
    counted: list[int] = []
    monkeypatch.setattr(site.stream, "count_trimmed", lambda: counted.append(pending(client)))
    site.close_window()
    publish(client, *(f"m{number}" for number in range(4)))
    site.run(2)
    site.open_window()
    site.run()
    assert counted == []

    site.run(2)

    assert counted == [0]
    assert len(site.dispatched()) == 4


# Fairness


def test_users_are_dispatched_in_turn(client: fakeredis.FakeRedis) -> None:
    """Given four entries of one user before two of another, I expect them in turn, each user's in order."""
    site = Site(client)
    for content in ("a0", "a1", "a2", "a3", "b0", "b1"):
        site.client.xadd(UPDATES_STREAM, {"event": event(content, user=content[0])})

    site.run()

    assert site.dispatched() == ["a0", "b0", "a1", "b1", "a2", "a3"]


# Backpressure


def test_no_more_is_dispatched_than_the_window_allows(client: fakeredis.FakeRedis) -> None:
    """Given window=3, I expect three of five on the queue, and one more for each that is acknowledged."""
    site = Site(client, window=3)
    publish(client, *(f"m{number}" for number in range(5)))
    site.run(2)
    assert (site.dispatched(), pending(client)) == (["m0", "m1", "m2"], 2)

    [first] = site.client.lrange(INDEX.ids, 0, 0)
    site.client.lpop(INDEX.ids)
    site.run()
    assert site.dispatched() == ["m1", "m2"], "it is fetched and not acknowledged"
    site.client.hdel(INDEX.messages, first)
    site.run()

    assert site.dispatched() == ["m1", "m2", "m3"]


def test_it_pauses_where_the_window_is_full(client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given iterations that dispatch, find nothing, and find the window full, I expect a pause after the last alone."""
    site = Site(client)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    publish(client, "m0")
    site.run(2)
    assert slept == []

    site.close_window()
    publish(client, "m1")
    site.run()

    assert slept == [FULL_PAUSE_S]


def test_a_namespace_of_its_own_is_counted(client: fakeredis.FakeRedis) -> None:
    """Given a broker with another namespace, I expect the window to be that of its queue."""
    site = Site(client, window=1)
    site.broker.namespace = "other"
    publish(client, "m0", "m1")

    site.run(2)

    assert client.hlen(QueueKeys("index", "other").messages) == 1


# Acknowledgements


def test_what_was_enqueued_before_a_failure_is_acknowledged(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a broker that goes down after two of five, I expect three pending, and each on the queue once."""
    site = Site(client)
    enqueue = site.broker.enqueue
    taken: list[dramatiq.Message[Any]] = []

    def fail_after_two(message: dramatiq.Message[Any], **options: Any) -> Any:
        if len(taken) == 2:
            raise redis.ConnectionError("down")
        taken.append(message)
        return enqueue(message, **options)

    publish(client, *(f"m{number}" for number in range(5)))
    with monkeypatch.context() as patch:
        patch.setattr(site.broker, "enqueue", fail_after_two)
        with pytest.raises(redis.ConnectionError):
            site.run()
    assert pending(client) == 3

    site.dispatcher.connect()  # as the loop does
    site.run(2)

    assert (site.dispatched(), pending(client)) == ([f"m{number}" for number in range(5)], 0)


def test_an_entry_is_acknowledged_once(client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given entries dispatched in several iterations, I expect each id in one acknowledgement, and no empty one."""
    site = Site(client)
    acknowledge = site.stream.ack
    calls: list[list[bytes]] = []

    def note(ids: Iterable[bytes]) -> None:
        calls.append(list(ids))
        acknowledge(ids)

    monkeypatch.setattr(site.stream, "ack", note)
    for number in range(3):
        publish(client, f"m{number}")
        site.run()
    site.run(2)

    assert [len(ids) for ids in calls] == [1, 1, 1]
    assert len({entry_id for ids in calls for entry_id in ids}) == 3


def test_an_adapter_is_a_member_before_it_reads(client: fakeredis.FakeRedis) -> None:
    """Given a dispatcher that has connected, I expect a heartbeat: what an unknown adapter reads would be claimed."""
    Site(client)

    assert Membership(client, "other").live() == {"a1"}


def test_it_waits_for_new_entries_only_where_nothing_is_prefetched(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an idle iteration, then one with entries behind a full window, I expect the first alone to wait."""
    site = Site(client)
    read = site.stream.read
    waits: list[int | None] = []

    def note(count: int, wait_ms: int | None) -> list[Entry]:
        waits.append(wait_ms)
        return read(count, wait_ms)

    monkeypatch.setattr(site.stream, "read", note)
    site.close_window()
    site.run()
    publish(client, "m0")
    site.run(2)

    assert waits == [20, 20, None]


def test_an_unreadable_entry_is_rejected_and_acknowledged(client: fakeredis.FakeRedis) -> None:
    """Given entries that are no events around a good one, I expect both rejected, none pending, the good one sent."""
    site = Site(client)
    site.client.xadd(UPDATES_STREAM, {"hello": "world"})
    publish(client, "good")
    site.client.xadd(UPDATES_STREAM, {"event": "{}"})

    site.run(2)

    assert (site.dispatched(), pending(client)) == (["good"], 0)
    assert client.hgetall(COUNTERS) == {b"rejected": b"2"}


# Reset


def test_a_reset_reads_what_is_pending_again(client: fakeredis.FakeRedis) -> None:
    """Given prefetched entries up to both bounds, I expect them read again after a reset, and dispatched once."""
    site = Site(client, prefetch=3, max_prefetch_bytes=3 * len(event("m0")))
    site.close_window()
    publish(client, "m0", "m1", "m2", "m3")
    site.run()

    site.dispatcher.reset()
    site.run()
    site.open_window()
    site.run(4)

    assert (site.dispatched(), pending(client)) == (["m0", "m1", "m2", "m3"], 0)


def test_what_another_adapter_claimed_is_not_dispatched_here(client: fakeredis.FakeRedis) -> None:
    """Given prefetched entries that another adapter has claimed, I expect a reset to forget them."""
    site = Site(client)
    site.close_window()
    publish(client, "m0", "m1")
    site.run()
    other = UpdateStream(client, UPDATES_STREAM, "a2", 1_000)
    assert other.claim_from_failed(live=set()) == 2

    site.dispatcher.reset()
    site.open_window()
    site.run(2)

    assert (site.dispatched(), pending(client)) == ([], 2)


# The stream


@pytest.fixture
def stream(client: fakeredis.FakeRedis) -> UpdateStream:
    stream = UpdateStream(client, UPDATES_STREAM, "a1", 1_000)
    stream.open()
    return stream


def lost(count: int) -> dict[str, Any]:
    """The line that reports so many lost entries, and what the operator is to do."""
    mend = "raise LTM_STREAM_MAX_LEN; run ltm backfill"
    return {"event": "stream_trimmed_unread", "at": UPDATES_STREAM, "lost": count, "mend": mend, "log_level": "error"}


def read(stream: UpdateStream, count: int) -> list[str]:
    return [json.loads(entry.event)["content"] for entry in stream.read(count, None)]


def test_pending_entries_are_read_in_order_before_new_ones(client: fakeredis.FakeRedis, stream: UpdateStream) -> None:
    """Given five pending entries and one new, I expect them in batches of two from the first on, then the new one."""
    publish(client, *(f"m{number}" for number in range(5)))
    read(stream, 10)
    assert len(read(stream, 10)) == 5
    publish(client, "new")

    stream.rewind()

    assert [read(stream, 2) for _ in range(5)] == [["m0", "m1"], ["m2", "m3"], ["m4"], [], ["new"]]


def test_a_pending_entry_that_was_trimmed_is_counted_as_lost(client: Any, stream: UpdateStream) -> None:
    """Given pending entries that have left the stream, I expect them acknowledged, counted and logged, others read."""
    publish(client, "m0", "m1", "m2")
    read(stream, 10)
    first, second, _ = stream.read(10, None)
    client.xdel(UPDATES_STREAM, first.id, second.id)
    stream.rewind()

    with capture_logs() as lines:
        assert read(stream, 10) == ["m2"]

    assert pending(client) == 1
    assert client.hgetall(COUNTERS) == {b"log_trimmed_unread": b"2"}
    assert lines == [lost(2)]


def test_a_stream_that_is_deleted_is_read_on(client: fakeredis.FakeRedis, stream: UpdateStream) -> None:
    """Given a stream that is deleted and written again, I expect one line in the log, and what was written since."""
    read(stream, 10)
    client.delete(UPDATES_STREAM)
    publish(client, "new")

    with capture_logs() as lines:
        assert read(stream, 10) == []
    assert lines == [{"event": "stream_recreated", "at": UPDATES_STREAM, "log_level": "warning"}]

    assert read(stream, 10) == ["new"]


def test_a_stream_that_is_deleted_while_it_is_waited_for_is_read_on(
    client: fakeredis.FakeRedis, stream: UpdateStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the error by which Redis 7.0 ends a wait for a stream that is deleted, I expect the group made again."""
    read(stream, 10)
    client.delete(UPDATES_STREAM)

    def end_the_wait(*_: Any, **__: Any) -> Any:
        raise redis.ResponseError("UNBLOCKED the stream key no longer exists")

    with monkeypatch.context() as patch:
        patch.setattr(client, "xreadgroup", end_the_wait)
        assert stream.read(10, 1_000) == []

    publish(client, "new")
    assert read(stream, 10) == ["new"]


def test_an_entry_without_an_event_is_read_as_an_empty_one(client: Any, stream: UpdateStream) -> None:
    """Given an entry of other fields, I expect an empty event, which is rejected, and not a lost entry."""
    entry_id = client.xadd(UPDATES_STREAM, {"hello": "world"})
    stream.read(10, None)

    assert stream.read(10, None) == [Entry(entry_id, b"")]


# Opening it, and Redis 6.2


def test_what_was_written_before_the_group_is_read(client: Any) -> None:
    """Given entries older than the group, I expect the group to begin before them, and none counted as lost.

    Redis 7 knows the backlog of a group that was made with the number of entries it has read.
    """
    publish(client, "m0", "m1")
    stream = UpdateStream(client, UPDATES_STREAM, "a1", 1_000)

    stream.open()
    [group] = client.xinfo_groups(UPDATES_STREAM)
    assert group["entries-read"] == 0
    read(stream, 10)

    assert read(stream, 10) == ["m0", "m1"]
    assert client.hgetall(COUNTERS) == {}


def test_entries_trimmed_before_there_was_a_group_are_counted(client: Any) -> None:
    """Given five entries of which two are left when the group is made, I expect three counted, once by two adapters."""
    publish(client, *(f"m{number}" for number in range(5)))
    client.xtrim(UPDATES_STREAM, maxlen=2, approximate=False)

    for name in ("a1", "a2"):
        UpdateStream(client, UPDATES_STREAM, name, 1_000).open()
        assert client.hgetall(COUNTERS) == {b"log_trimmed_unread": b"3"}


def test_an_adapter_that_joins_counts_what_was_trimmed(client: Any, stream: UpdateStream) -> None:
    """Given a group that exists, and entries trimmed since, I expect the next adapter that opens it to count them."""
    publish(client, "m0", "m1")
    client.xtrim(UPDATES_STREAM, maxlen=1, approximate=False)

    UpdateStream(client, UPDATES_STREAM, "a2", 1_000).open()

    assert client.hgetall(COUNTERS) == {b"log_trimmed_unread": b"1"}


def test_a_key_of_another_type_is_no_stream(client: Any) -> None:
    """Given a key of another type, I expect the error of Redis."""
    client.set(UPDATES_STREAM, "x")

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        UpdateStream(client, UPDATES_STREAM, "a1", 1_000).open()


@pytest.fixture
def redis_6(client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Redis that does not count what was added to a stream, and what a group has read."""
    create = client.xgroup_create

    def create_without_count(*arguments: Any, **options: Any) -> Any:
        if "entries_read" in options:
            raise redis.ResponseError("ERR syntax error")
        return create(*arguments, **options)

    monkeypatch.setattr(client, "xgroup_create", create_without_count)
    for command, unknown in {"xinfo_groups": {"entries-read", "lag"}, "xinfo_stream": {"entries-added"}}.items():
        _forget(monkeypatch, command, unknown)
    return client


def _forget(monkeypatch: pytest.MonkeyPatch, command: str, unknown: set[str]) -> None:
    """Leave these fields out of a command's replies, in transactions too."""
    call: Any = getattr(redis.Redis, command)

    def known(reply: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in reply.items() if name not in unknown}

    def ask(self: Any, *arguments: Any) -> Any:
        reply = call(self, *arguments)
        return [known(each) for each in reply] if isinstance(reply, list) else known(reply)

    for kind in (redis.Redis, redis.client.Pipeline):
        monkeypatch.setattr(kind, command, ask, raising=False)


def test_redis_6_reads_on_and_counts_no_trimmed_entries(redis_6: Any) -> None:
    """Given Redis 6.2, which does not know how many entries were trimmed, I expect the rest read, and none counted."""
    stream = UpdateStream(redis_6, UPDATES_STREAM, "a1", 1_000)
    stream.open()
    publish(redis_6, "m0", "m1", "m2")
    redis_6.xtrim(UPDATES_STREAM, maxlen=2, approximate=False)

    with capture_logs() as lines:
        stream.count_trimmed()
        read(stream, 10)
        assert read(stream, 10) == ["m1", "m2"]
        stream.count_trimmed()

    assert (redis_6.hgetall(COUNTERS), lines) == ({}, [])


@pytest.mark.parametrize(("read_any", "counted"), [(False, {b"log_trimmed_unread": b"2"}), (True, {})])
def test_a_group_of_redis_6_on_a_later_one(
    client: Any, monkeypatch: pytest.MonkeyPatch, read_any: bool, counted: dict[bytes, bytes]
) -> None:
    """Given a group of which Redis does not know how much it has read, I expect trimmed entries counted until it reads.

    That is nothing where it has read nothing, and may be anything after.
    """
    stream = UpdateStream(client, UPDATES_STREAM, "a1", 1_000)
    stream.open()
    _forget(monkeypatch, "xinfo_groups", {"entries-read"})
    publish(client, "m0", "m1", "m2")
    if read_any:
        stream.read(1, None)
        stream.read(1, None)
    client.xtrim(UPDATES_STREAM, maxlen=1, approximate=False)

    stream.count_trimmed()

    assert client.hgetall(COUNTERS) == counted


def test_the_backlog_of_redis_6_is_what_is_pending(redis_6: Any) -> None:
    """Given Redis 6.2 with one pending entry and one unread, I expect a backlog of one."""
    stream = UpdateStream(redis_6, UPDATES_STREAM, "a1", 1_000)
    stream.open()
    publish(redis_6, "m0", "m1")
    read(stream, 1)
    assert read(stream, 1) == ["m0"]

    assert stream.backlog() == 1


# Claims, bounds and figures


def test_another_error_of_redis_is_not_swallowed(
    client: fakeredis.FakeRedis, stream: UpdateStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a key of another type in place of the stream, I expect the error, and not a group made again and again."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")

    monkeypatch.setattr(client, "xreadgroup", refuse)

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        stream.read(10, None)


def test_the_entries_of_failed_consumers_alone_are_claimed(client: Any, stream: UpdateStream) -> None:
    """Given a live and two failed consumers with entries, I expect the failed ones', the lost of them counted."""
    for name, contents in {"live": ["m0"], "failed": ["m1", "m2", "m3"], "failed too": ["m4"]}.items():
        publish(client, *contents)
        client.xreadgroup(STREAM_GROUP, name, {UPDATES_STREAM: ">"})
    trimmed = client.xpending_range(UPDATES_STREAM, STREAM_GROUP, "-", "+", 1, "failed")[0]["message_id"]
    client.xdel(UPDATES_STREAM, trimmed)

    with capture_logs() as lines:
        assert stream.claim_from_failed(live={"live", "a1"}) == 3
        assert stream.claim_from_failed(live={"live", "a1"}) == 0

    assert read(stream, 10) == ["m2", "m3", "m4"]
    assert [each["pending"] for each in client.xinfo_consumers(UPDATES_STREAM, STREAM_GROUP) if each["name"] == b"live"]
    assert client.hgetall(COUNTERS) == {b"log_trimmed_unread": b"1"}
    claimed = {"event": "entries_claimed", "at": UPDATES_STREAM, "entries": 3, "log_level": "warning"}
    assert lines == [lost(1), claimed]


def test_entries_trimmed_before_they_were_read_are_counted_once(client: Any, stream: UpdateStream) -> None:
    """Given five entries of which two are left, I expect three counted by one of two adapters, and the two read."""
    publish(client, *(f"m{number}" for number in range(5)))
    client.xtrim(UPDATES_STREAM, maxlen=2, approximate=False)

    with capture_logs() as lines:
        for each in (stream, UpdateStream(client, UPDATES_STREAM, "a2", 1_000), stream):
            each.count_trimmed()

    assert client.hgetall(COUNTERS) == {b"log_trimmed_unread": b"3"}
    assert lines == [lost(3)]
    read(stream, 10)
    assert read(stream, 10) == ["m3", "m4"]
    stream.count_trimmed()
    assert client.hgetall(COUNTERS) == {b"log_trimmed_unread": b"3"}


def test_entries_that_were_read_before_they_were_trimmed_are_not_counted(client: Any, stream: UpdateStream) -> None:
    """Given five entries, two of them read, and four trimmed, I expect two counted and logged."""
    publish(client, *(f"m{number}" for number in range(5)))
    stream.read(2, None)
    stream.read(2, None)
    client.xtrim(UPDATES_STREAM, maxlen=1, approximate=False)

    with capture_logs() as lines:
        stream.count_trimmed()

    assert client.hgetall(COUNTERS) == {b"log_trimmed_unread": b"2"}
    assert lines == [lost(2)]


def test_the_backlog_is_what_is_pending_and_what_is_unread(client: Any, stream: UpdateStream) -> None:
    """Given two pending entries, one acknowledged and three unread, I expect a backlog of five."""
    publish(client, "m0", "m1", "m2")
    read(stream, 10)
    first, *_ = stream.read(10, None)
    stream.ack([first.id])
    publish(client, "m3", "m4", "m5")

    assert stream.backlog() == 5


@pytest.mark.parametrize("kept", [3, 0])
def test_what_was_read_before_a_failover_is_neither_backlog_nor_lost(
    client: Any, stream: UpdateStream, kept: int
) -> None:
    """Given a stream that was read to its end, on a server that does not know how much of it was read, as one that was
    a replica before, and that may have trimmed it since, I expect no backlog and no loss."""
    publish(client, "m0", "m1", "m2")
    read(stream, 10)
    stream.ack([entry.id for entry in stream.read(10, None)])
    [group] = client.xinfo_groups(UPDATES_STREAM)
    client.xgroup_setid(UPDATES_STREAM, STREAM_GROUP, group["last-delivered-id"], entries_read=0)
    client.xtrim(UPDATES_STREAM, maxlen=kept, approximate=False)

    stream.open()
    stream.count_trimmed()

    assert stream.backlog() == 0
    assert not client.exists(COUNTERS)


def test_what_was_read_while_a_backlog_is_taken_over_is_corrected_at_its_end(client: Any, stream: UpdateStream) -> None:
    """Given the same server with an unread entry, I expect the backlog right once that is read."""
    publish(client, "m0", "m1", "m2")
    read(stream, 10)
    stream.ack([entry.id for entry in stream.read(10, None)])
    [group] = client.xinfo_groups(UPDATES_STREAM)
    client.xgroup_setid(UPDATES_STREAM, STREAM_GROUP, group["last-delivered-id"], entries_read=0)
    publish(client, "m3")

    stream.open()
    stream.ack([entry.id for entry in stream.read(10, None)])
    stream.count_trimmed()

    assert stream.backlog() == 0
    assert not client.exists(COUNTERS)


def test_an_adapter_claims_nothing_from_itself(client: fakeredis.FakeRedis, stream: UpdateStream) -> None:
    """Given pending entries of this adapter, whose heartbeat is late, I expect it to leave them as they are."""
    publish(client, "m0")
    read(stream, 10)
    read(stream, 10)

    assert stream.claim_from_failed(live=set()) == 0
    assert pending(client) == 1


def test_a_consumer_that_is_gone_is_deleted_once_nothing_is_pending(
    client: Any, stream: UpdateStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given failed consumers idle for more and less than an hour, I expect the long idle one without entries deleted.

    Redis would delete the pending entries of the other with it.
    """
    for name in ("idle", "recent"):
        client.xgroup_createconsumer(UPDATES_STREAM, STREAM_GROUP, name)
    publish(client, "m0")
    client.xreadgroup(STREAM_GROUP, "pending", {UPDATES_STREAM: ">"})
    consumers = client.xinfo_consumers

    def aged(*arguments: Any) -> Any:
        return [
            {**each, "idle": CONSUMER_GONE_MS + (-1 if each["name"] == b"recent" else 1)}
            for each in consumers(*arguments)
        ]

    with monkeypatch.context() as patch:
        patch.setattr(client, "xinfo_consumers", aged)
        assert stream.claim_from_failed(live=set()) == 1

    assert {each["name"] for each in consumers(UPDATES_STREAM, STREAM_GROUP)} == {b"recent", b"pending", b"a1"}


def test_the_stream_is_trimmed_by_hours(client: Any, stream: UpdateStream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given two hours, I expect Redis asked to trim the entries before that moment, in whole nodes: the cheap way."""
    asked: list[Any] = []
    monkeypatch.setattr(client, "xtrim", lambda key, minid, approximate: asked.append((key, minid, approximate)))

    stream.trim(hours=2)

    assert asked == [(UPDATES_STREAM, pytest.approx((time.time() - 7_200) * 1000, abs=60_000), True)]


def test_what_adapters_wrote_is_found_since_a_time(client: Any, stream: UpdateStream) -> None:
    """Given entries of two ages and one of a publisher, I expect the digests of what adapters wrote since then, with
    the times of their entries."""
    now = round(time.time())
    for seconds, raw in ((10, b"old"), (1, b"new"), (0.5, b"new")):
        fields = {"event": "{}", "heard": digest(raw)}
        client.xadd(UPDATES_STREAM, fields, id=f"{int((now - seconds) * 1000)}-1")
    publish(client, "of a publisher")

    assert list(stream.written_since(now - 5)) == [(now - 1, digest(b"new")), (now - 0.5, digest(b"new"))]
    assert list(stream.written_since(now - 0.9995)) == [(now - 0.5, digest(b"new"))]


def test_digests_and_derived_ids_are_those_of_other_versions(client: Any, stream: UpdateStream) -> None:
    """Given an event without an id, I expect the digest and id that version 0.1 wrote: adapters of both run at once.

    By the digest a new leader leaves out what the last one wrote, by the id an event published twice is deduplicated.
    """
    update = MemoryUpdateMessage(user_id="u1", content="I like tea", source="user", timestamp=1_712_345_678)

    stream.append(update, b'{"user_id": "u1"}', 1_000.0)

    [(_, fields)] = client.xrange(UPDATES_STREAM)
    assert fields[b"heard"] == b"ee4a8a7d4e207cc3d0c069fd0c807f3f"
    assert json.loads(fields[b"event"])["message_id"] == "738be5fd07df619140898621d4891821"


def test_the_same_words_of_two_people_get_two_ids(client: Any, stream: UpdateStream) -> None:
    """Given one text in one second of two speakers and to two agents, I expect an id each, the same when repeated."""
    said = {"user_id": "room", "content": "yes", "source": "user", "timestamp": 1}
    for who in ({"speaker": "Anna"}, {"speaker": "Ben"}, {"agent_id": "luna"}, {"agent_id": "sol"}, {}) * 2:
        stream.append(MemoryUpdateMessage.model_validate({**said, **who}), b"raw", 1_000.0)

    ids = [json.loads(fields[b"event"])["message_id"] for _, fields in client.xrange(UPDATES_STREAM)]
    assert len(set(ids[:5])) == 5
    assert ids[:5] == ids[5:]


def test_the_stream_is_capped(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given far more events than the stream keeps, I expect the oldest gone, in whole nodes: the cheap way."""
    stream = UpdateStream(client, UPDATES_STREAM, "a1", max_len=100)
    xadd, options = client.xadd, []

    def note(key: str, fields: Any, **given: Any) -> Any:
        options.append(given)
        return xadd(key, fields, **given)

    monkeypatch.setattr(client, "xadd", note)
    for number in range(500):
        update = MemoryUpdateMessage(user_id="u1", content=f"m{number}", source="ai")
        stream.append(update, b"raw", 1_000.0)

    assert client.xlen(UPDATES_STREAM) < 300
    assert options[0] == {"maxlen": 100, "approximate": True}
    [(_, newest)] = client.xrevrange(UPDATES_STREAM, count=1)
    assert json.loads(newest[b"event"])["content"] == "m499"
