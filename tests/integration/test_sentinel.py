"""Redis behind Sentinel: masters that are killed, frozen, cut off and demoted, with real sentinels."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import dramatiq
import pytest
import redis
from keepsake_client import AsyncClient, Client
from keepsake_client.connections import address, connect
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import STREAM_EVENT_FIELD, UPDATES_CHANNEL, UPDATES_STREAM, MemoryUpdateMessage
from structlog.testing import capture_logs

from adapters.loop import Loop
from adapters.stream import UpdateStream
from bench.harness.sentinel_servers import (
    ASKER_PASSWORD,
    PASSWORD,
    PATIENCE_S,
    SentinelServers,
    Server,
    sentinel_servers,
)
from services.cli.subscription import Subscription
from services.runtime import redis as runtime_redis
from services.stack.broker_check import check_redis
from tasks.broker import build_broker
from tests.integration.responder import responding
from tests.integration.worker_process import Servers, servers
from tests.support import eventually, wait_until

QUEUES = ("interactive", "writes", "index")


@pytest.fixture
def redises() -> Iterator[SentinelServers]:
    with sentinel_servers() as running:
        yield running


@pytest.fixture
def at_exit() -> Iterator[ExitStack]:
    """Closes what a test opens."""
    with ExitStack() as stack:
        yield stack


def replicated(server: Server) -> bool:
    """Whether both replicas have all that was written; WAIT counts those that have what its own connection wrote."""
    with server.client.pipeline(transaction=False) as pipeline:
        pipeline.set("replicated", "1")
        pipeline.wait(2, 100)
        return bool(pipeline.execute()[-1] == 2)


async def answered(ltm: AsyncClient) -> bool:
    """Whether a request is answered: redis-py subscribes once more before it reports the connection that it lost."""
    with suppress(Unavailable):
        return (await ltm.profile_get("u1", deadline_ms=10_000)).success
    return False


def again(command: Callable[[], Any]) -> bool:
    """Whether a command succeeds now."""
    with suppress(redis.RedisError):
        command()
        return True
    return False


def test_commands_follow_a_killed_master(redises: SentinelServers, at_exit: ExitStack) -> None:
    """Given kill -9 of the master, I expect each kind of client to write to the next one, by itself."""
    old = redises.master()
    client = at_exit.enter_context(runtime_redis.connect(redises.url))
    persistent = at_exit.enter_context(runtime_redis.connect_persistent(redises.url))
    assert client.set("a", "1")
    assert persistent.set("b", "1")

    old.kill()
    new = redises.failed_over(old)

    wait_until(lambda: again(lambda: client.set("a", "2")), description="a write to the next master")
    wait_until(lambda: again(lambda: persistent.set("b", "2")), description="a write to the next master")
    assert (new.client.get("a"), new.client.get("b")) == (b"2", b"2")
    assert address(client).startswith(f"127.0.0.1:{new.port}/0")


def test_a_persistent_command_amid_which_the_master_is_killed_succeeds(
    redises: SentinelServers, at_exit: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a master that is killed amid a command, I expect the command itself to come through."""
    monkeypatch.setattr(runtime_redis, "RETRY_S", PATIENCE_S)  # on a slow machine, a failover takes as much longer
    persistent: Any = at_exit.enter_context(runtime_redis.connect_persistent(redises.url))
    old = redises.master()
    thread = at_exit.enter_context(ThreadPoolExecutor(1))
    taken = thread.submit(persistent.blpop, "things", 0)
    wait_until(lambda: "blpop" in [each["cmd"] for each in old.client.client_list()], description="the command")
    old.kill()

    redises.failed_over(old).client.lpush("things", "a")

    assert taken.result() == (b"things", b"a")


def test_a_persistent_command_after_the_master_was_killed_succeeds(
    redises: SentinelServers, at_exit: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a command whose idle connection ended with its master, and no other master yet, I expect it to come
    through."""
    monkeypatch.setattr(runtime_redis, "RETRY_S", PATIENCE_S)
    persistent = at_exit.enter_context(runtime_redis.connect_persistent(redises.url))
    assert persistent.set("a", "1")
    old = redises.master()
    old.kill()

    assert persistent.set("a", "2")

    assert redises.failed_over(old).client.get("a") == b"2"


def test_asyncio_commands_follow_a_killed_master(redises: SentinelServers) -> None:
    """Given the same for asyncio, I expect the same."""

    async def story() -> None:
        async with runtime_redis.connect_async(redises.url) as client:
            await client.set("a", "1")
            old = redises.master()
            old.kill()
            new = redises.failed_over(old)

            async def written() -> bool:
                with suppress(redis.RedisError):
                    return bool(await client.set("a", "2"))
                return False

            await eventually(written, description="a write to the next master")
            assert new.client.get("a") == b"2"

    asyncio.run(story())


def test_a_subscription_leaves_a_master_that_is_cut_off(redises: SentinelServers, at_exit: ExitStack) -> None:
    """Given a master that its peers cannot reach and its clients can, I expect the subscription of a thread to move."""
    events = Subscription(at_exit.enter_context(connect(redises.url)), ["ai_responses"])
    at_exit.callback(events.close)
    events.open()
    old = redises.master()
    old.cut_off()
    new = redises.failed_over(old)

    def heard() -> Any:
        new.client.publish("ai_responses", '{"text": "hello"}')
        try:
            return events.next(time.monotonic() + 0.5)
        except redis.ConnectionError:
            events.open()  # as the command's own loop does
            return None

    assert wait_until(heard, description="an event of the next master") == ("ai_responses", {"text": "hello"})
    assert old.client.pubsub_numsub("ai_responses")[0][1] == 0


def test_a_clients_subscription_leaves_a_master_that_is_cut_off(redises: SentinelServers) -> None:
    """Given the same, and a client that asks nothing meanwhile, I expect its subscription on the next master."""

    async def story() -> None:
        async with AsyncClient(redises.url) as ltm:
            await eventually(lambda: ltm.subscribed, description="a subscription")
            old = redises.master()
            old.cut_off()
            new = redises.failed_over(old)

            await eventually(
                lambda: new.client.pubsub_numsub("ltm_responses")[0][1] == 1, description="a subscription there"
            )
            assert old.client.pubsub_numsub("ltm_responses")[0][1] == 0
            with responding(f"redis://:{PASSWORD}@127.0.0.1:{new.port}/0"):
                await eventually(lambda: answered(ltm), description="an answered request")

    asyncio.run(story())


def test_what_waits_on_a_master_that_is_cut_off_moves(redises: SentinelServers, at_exit: ExitStack) -> None:
    """Given a thread that waits for a list again and again, whose commands all succeed, I expect it on the next one."""
    client: Any = at_exit.enter_context(connect(redises.url, socket_timeout=5))
    assert client.brpop("things", 0.2) is None
    old = redises.master()
    old.cut_off()
    new = redises.failed_over(old)
    new.client.lpush("things", "a")

    def taken() -> Any:
        with suppress(redis.ConnectionError):
            return client.brpop("things", 0.2)
        return None

    assert wait_until(taken, description="the element") == (b"things", b"a")


def test_a_subscription_leaves_a_frozen_master(redises: SentinelServers) -> None:
    """Given a master that is frozen, and resumed after the failover, I expect a client's subscription on the next one,
    and requests answered."""

    async def story() -> None:
        async with AsyncClient(redises.url) as ltm:
            await eventually(lambda: ltm.subscribed, description="a subscription")
            old = redises.master()
            old.freeze()
            new = redises.failed_over(old)
            await eventually(
                lambda: new.client.pubsub_numsub("ltm_responses")[0][1] == 1, description="a subscription there"
            )
            old.resume()
            with responding(f"redis://:{PASSWORD}@127.0.0.1:{new.port}/0"):
                await eventually(lambda: answered(ltm), description="an answered request")

    asyncio.run(story())


def test_a_demoted_master_is_left(redises: SentinelServers, at_exit: ExitStack) -> None:
    """Given a master that becomes a replica while it is connected, I expect a write that it refuses to be an outage, or
    made again elsewhere."""
    client = at_exit.enter_context(connect(redises.url))
    persistent = at_exit.enter_context(runtime_redis.connect_persistent(redises.url))
    assert client.set("a", "1")
    assert persistent.set("b", "1")
    old = redises.master()
    redises.sentinels[0].client.sentinel_failover("mymaster")
    new = redises.failed_over(old)
    old.client.replicaof("127.0.0.1", new.port)  # the sentinels would also close its connections

    assert persistent.set("b", "2")
    wait_until(lambda: again(lambda: client.set("a", "2")), description="a write to the next master")
    assert (new.client.get("a"), new.client.get("b")) == (b"2", b"2")


def test_an_asyncio_watch_ends_with_its_master(redises: SentinelServers) -> None:
    """Given a key that is watched on a master that is cut off then, I expect the transaction refused, and not made on
    the next master without its watch."""

    async def story() -> None:
        async with runtime_redis.connect_async(redises.url) as client, client.pipeline() as pipeline:
            await pipeline.watch("balance")
            old = redises.master()
            old.cut_off()
            new = redises.failed_over(old)
            await eventually(lambda: new.client.set("balance", "5"), description="another's write")
            watching = pipeline.connection
            await eventually(lambda: left(watching), description="the connection to be left")

            pipeline.multi()  # type: ignore[no-untyped-call]
            pipeline.set("balance", "1")
            with pytest.raises(redis.WatchError):
                await pipeline.execute()
            assert new.client.get("balance") == b"5"

    asyncio.run(story())


def left(connection: Any) -> bool:
    """Whether a connection of asyncio is left or lost."""
    return connection._writer is None or connection._writer.transport.is_closing()


def message_of(text: str) -> dramatiq.Message[Any]:
    return dramatiq.Message(queue_name="things", actor_name="thing", args=(text,), kwargs={}, options={})


def test_scripts_are_loaded_on_the_next_master(redises: SentinelServers) -> None:
    """Given a broker whose scripts the next master has never seen, I expect its queue to work on."""
    broker = build_broker(redises.url, [])
    broker.declare_queue("things")
    broker.enqueue(message_of("before"))
    old = redises.master()
    wait_until(lambda: replicated(old), description="replication")
    for server in redises.servers:
        if server is not old:
            server.client.script_flush()
    old.kill()
    redises.failed_over(old)

    wait_until(lambda: again(lambda: broker.enqueue(message_of("after"))), description="the queue to work")
    consumer = broker.consume("things", prefetch=2, timeout=200)
    taken: list[str] = []

    def both() -> bool:
        if (message := next(consumer)) is not None:
            consumer.ack(message)
            taken.append(message.args[0])
        return len(taken) == 2

    wait_until(both, description="both messages")
    assert taken == ["before", "after"]
    broker.close()


def test_what_was_read_of_the_stream_stays_read(redises: SentinelServers, at_exit: ExitStack) -> None:
    """Given a stream that was read to its end before the master was killed, I expect no backlog on the next one."""
    client: Any = at_exit.enter_context(runtime_redis.connect(redises.url))
    stream = UpdateStream(client, UPDATES_STREAM, "a1", 1_000)
    stream.open()
    for number in range(3):
        client.xadd(UPDATES_STREAM, {STREAM_EVENT_FIELD: str(number)})
    stream.rewind()
    wait_until(lambda: again(lambda: read_all(stream)) and stream.backlog() == 0, description="all of it read")
    old = redises.master()
    wait_until(lambda: old.client.wait(2, 100) == 2, description="replication")
    old.kill()
    redises.failed_over(old)

    wait_until(lambda: again(stream.open), description="the next master")

    assert stream.backlog() == 0


def read_all(stream: UpdateStream) -> None:
    """Read what there is, and acknowledge it."""
    while entries := stream.read(10, None):
        stream.ack([entry.id for entry in entries])


def test_sentinels_that_are_away_are_one_outage(redises: SentinelServers, at_exit: ExitStack) -> None:
    """Given no sentinel, then no master, then both, I expect one line that begins the outage, with its reason, and one
    that ends it."""
    old = redises.master()
    for sentinel in redises.sentinels:
        sentinel.kill()
    client = at_exit.enter_context(connect(redises.url))
    ended = threading.Event()

    def ping() -> None:
        client.ping()
        ended.set()

    loop = Loop("asker", ping)
    with capture_logs() as lines:
        loop.start()
        wait_until(lambda: lines, description="the outage")
        old.kill()
        for sentinel in redises.sentinels:
            sentinel.restart()
        assert ended.wait(60)
        wait_until(lambda: len(lines) > 1, description="the end of the outage")
    loop.stop()
    loop.join()

    assert [line["event"] for line in lines] == ["dependency_down", "dependency_up"]
    assert lines[0]["reason"].startswith("MasterNotFoundError: no master of 'mymaster': sentinel 127.0.0.1:")


def test_connections_outlive_their_sentinels(redises: SentinelServers, at_exit: ExitStack) -> None:
    """Given a master that works, and no sentinel that does, I expect the connections that there are to go on."""
    client: Any = at_exit.enter_context(connect(redises.url))
    with client.pubsub() as pubsub:
        pubsub.subscribe("channel")
        client.ping()
        for sentinel in redises.sentinels:
            sentinel.kill()
        pool = client.connection_pool
        pool.sentinel_manager.follow(pool)

        client.publish("channel", "hello")

        wait_until(
            lambda: (pubsub.get_message(timeout=0.1) or {}).get("data") == b"hello", description="what was published"
        )


@pytest.mark.parametrize(
    ("right", "wrong", "reason"),
    [
        (f"sentinel_password={ASKER_PASSWORD}", "sentinel_password=other", "asks for another user or password"),
        (f"?sentinel_username=keepsake&sentinel_password={ASKER_PASSWORD}", "", "asks for another user or password"),
        ("/mymaster/", "/other/", "knows no service 'other'"),
    ],
)
def test_what_is_wrong_with_the_url_is_said(redises: SentinelServers, right: str, wrong: str, reason: str) -> None:
    """Given another password or service, I expect a start to say so, and no password."""
    url = redises.url.replace(right, wrong)

    with runtime_redis.connect(url) as client, pytest.raises(Unavailable, match=reason) as refused:
        check_redis(client, "REDIS_URL", url)

    assert "secret" not in str(refused.value)


class Load:
    """A publisher that repeats each message until a replica has it too, and an asker of searches, in threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._publish, self._search)]
        self.acknowledged: list[str] = []
        self.answered_at = 0.0
        self.longest_silence_s = 0.0

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _publish(self) -> None:
        client = connect(self._url, socket_timeout=2)
        while not self._stopped.wait(0.02):
            content = f"I like tea number {len(self.acknowledged):04}"
            message = MemoryUpdateMessage(
                user_id="u1", content=content, source="user", timestamp=time.time(), message_id=uuid.uuid4().hex
            )
            event = message.to_wire(logged=True)
            while not self._acknowledged(client, event) and not self._stopped.wait(0.05):
                pass
            if not self._stopped.is_set():
                self.acknowledged.append(content)
        client.close()

    @staticmethod
    def _acknowledged(client: redis.Redis, event: str) -> bool:
        with suppress(redis.RedisError), client.pipeline(transaction=False) as pipeline:
            pipeline.xadd(UPDATES_STREAM, {STREAM_EVENT_FIELD: event})
            pipeline.publish(UPDATES_CHANNEL, event)
            pipeline.wait(1, 500)
            return bool(pipeline.execute()[-1] >= 1)
        return False

    def _search(self) -> None:
        with Client(self._url) as ltm:
            while not self._stopped.wait(0.05):
                with suppress(Exception):
                    ltm.request("search", "u1", {"query": "tea number 0001"}, deadline_ms=800)
                    now = time.monotonic()
                    if self.answered_at:
                        self.longest_silence_s = max(self.longest_silence_s, now - self.answered_at)
                    self.answered_at = now

    def answered_after(self, moment: float) -> bool:
        return self.answered_at > moment


@pytest.fixture
def site(redises: SentinelServers) -> Iterator[Servers]:
    with servers(redis_url=redises.url) as running:
        running.worker("long-term-memory-worker", *QUEUES).ready()
        running.adapters().ready()
        yield running


def indexed_once(site: Servers, load: Load) -> None:
    """Wait until everything acknowledged is indexed, and check that nothing is there twice."""
    wait_until(lambda: set(load.acknowledged) <= set(site.indexed()), description="everything acknowledged")
    contents = site.indexed()
    assert len(contents) == len(set(contents))


def test_a_pipeline_under_load_follows_a_killed_master(redises: SentinelServers, site: Servers) -> None:
    """Given kill -9 of the master under load, I expect searches answered again, and each message that a replica had
    indexed once."""
    with Load(redises.url) as load:
        wait_until(lambda: len(load.acknowledged) > 50 and load.answered_at, description="a load")
        old = redises.master()
        old.kill()
        redises.failed_over(old)
        moment = time.monotonic()
        wait_until(lambda: load.answered_after(moment), description="an answered search")
        before = len(load.acknowledged)
        wait_until(lambda: len(load.acknowledged) > before + 50, description="more messages")
    indexed_once(site, load)


def test_a_pipeline_under_load_follows_a_frozen_master(redises: SentinelServers, site: Servers) -> None:
    """Given a master that is frozen under load and resumed after the failover, I expect the same, and the resumed one a
    replica that no process writes to."""
    with Load(redises.url) as load:
        wait_until(lambda: len(load.acknowledged) > 50 and load.answered_at, description="a load")
        old = redises.master()
        old.freeze()
        new = redises.failed_over(old)
        moment = time.monotonic()
        wait_until(lambda: load.answered_after(moment), description="an answered search")
        old.resume()
        wait_until(lambda: redises.replicas_of(new) == 2, description="the old master to follow the new one")
        moment, before = time.monotonic(), len(load.acknowledged)
        wait_until(lambda: load.answered_after(moment), description="a search after it")
        wait_until(lambda: len(load.acknowledged) > before + 50, description="more messages")
    indexed_once(site, load)


def test_a_pipeline_under_load_leaves_a_master_that_is_cut_off(redises: SentinelServers, site: Servers) -> None:
    """Given a master whose replicas and sentinels cannot reach it, and whose clients can, I expect the pipeline on the
    next master, and each message that a replica had indexed once."""
    with Load(redises.url) as load:
        wait_until(lambda: len(load.acknowledged) > 50 and load.answered_at, description="a load")
        old = redises.master()
        old.cut_off()
        new = redises.failed_over(old)
        wait_until(lambda: new.client.exists("ltm:channel-reader"), description="a leader there")
        before, moment = len(load.acknowledged), time.monotonic()
        wait_until(lambda: len(load.acknowledged) > before + 50, description="more messages")
        wait_until(lambda: load.answered_after(moment), description="an answered search")
    indexed_once(site, load)
    assert old.client.pubsub_numsub("memory_updates", "ltm_responses") == [
        (b"memory_updates", 0),
        (b"ltm_responses", 0),
    ]


def test_a_master_without_its_replicas_refuses_and_nothing_is_lost(
    redises: SentinelServers, site: Servers, at_exit: ExitStack
) -> None:
    """Given `min-replicas-to-write 1` and a master that is cut off, I expect it to refuse what the next one would not
    have, and every message that was acknowledged at all indexed once."""
    for server in redises.servers:
        server.client.config_set("min-replicas-to-write", 1)
        server.client.config_set("min-replicas-max-lag", 2)
    client = at_exit.enter_context(connect(redises.url))
    old = redises.master()
    accepted: list[str] = []

    def remember() -> bool:
        content = f"I like tea number {len(accepted):04}"
        message = MemoryUpdateMessage(
            user_id="u1", content=content, source="user", timestamp=1.7e9, message_id=f"m{len(accepted)}"
        )
        with suppress(redis.RedisError):
            client.xadd(UPDATES_STREAM, {STREAM_EVENT_FIELD: message.to_wire(logged=True)})
            accepted.append(content)
            return True
        return False

    wait_until(lambda: remember() and len(accepted) == 50, description="messages")
    wait_until(lambda: replicated(old), description="replication")
    old.cut_off()
    wait_until(lambda: refuses(old), description="a master that refuses writes")
    redises.failed_over(old)
    wait_until(remember, description="the next master")
    wait_until(lambda: remember() and len(accepted) >= 100, description="more messages")
    wait_until(lambda: set(accepted) <= set(site.indexed()), description="everything accepted")
    assert len(site.indexed()) == len(set(site.indexed()))


def refuses(server: Any) -> bool:
    try:
        server.client.set("probe", "1")
    except redis.ResponseError as error:
        return "NOREPLICAS" in str(error)
    return False
