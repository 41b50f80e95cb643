"""The metrics of the whole stack, as the gateway's `/metrics` shows them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import fakeredis
import httpx
import pytest
import structlog
from fastapi import FastAPI
from keepsake_client.protocol import (
    COUNTERS,
    REJECTED_STREAM,
    REQUESTS_QUEUE,
    STREAM_GROUP,
    UPDATES_STREAM,
    alive_key,
    instances_key,
    process_key,
)
from prometheus_client import CollectorRegistry, generate_latest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from services.gateway.access import ALL_RIGHTS, Caller, Right, Unauthorized
from services.gateway.app import Gateway, create_app
from services.gateway.metrics import ObserveRequests, add_metrics
from services.runtime.process_record import PROCESSES, ProcessRecord
from services.runtime.prometheus import PrometheusMetrics
from services.runtime.queues import QueueKeys
from services.runtime.settings import load_settings
from services.runtime.stack_metrics import ALARMING, MAX_COUNTERS, StackFigures, StackReader
from services.stack.processes import EXTRACTOR, SERVICES, WORKER
from tests.management_api import management_api, queue
from tests.support import PATIENCE_S, SkippingLoop, free_port
from tests.unit.test_metrics import HOSTILE, labels_of


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


@pytest.fixture
def client(server: fakeredis.FakeServer) -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis(server=server)


def read(server: fakeredis.FakeServer, **settings: Any) -> StackFigures:
    """What one scrape reads."""

    async def scrape() -> StackFigures:
        async with fakeredis.FakeAsyncRedis(server=server) as client:
            return await StackReader(load_settings(**settings), client).read(PATIENCE_S)

    return asyncio.run(scrape())


def page(figures: StackFigures) -> str:
    registry = CollectorRegistry()
    registry.register(figures)
    return generate_latest(registry).decode()


def test_the_processes_are_those_of_the_stack() -> None:
    """Given the processes whose heartbeats are shown, I expect those that `ltm up` starts."""
    assert sorted(PROCESSES) == sorted((*SERVICES, EXTRACTOR))


def test_an_empty_redis_has_nothing_that_waits(server: fakeredis.FakeServer) -> None:
    """Given a Redis that no process has used, I expect it up, no backlog, and no process expected."""
    figures = read(server)

    assert (figures.up, figures.backlog, figures.oldest_s, figures.processes, figures.unseen) == (True, 0, 0.0, {}, {})


def test_what_waits_is_shown(server: fakeredis.FakeServer, client: fakeredis.FakeRedis) -> None:
    """Given requests, messages of the workers, and rejects, I expect their numbers."""
    client.lpush(REQUESTS_QUEUE, "{}", "{}")
    client.rpush(QueueKeys("index").ids, "1")
    client.hset(QueueKeys("index").messages, mapping={"1": "", "2": "", "3": ""})
    client.zadd(QueueKeys("writes").dead_ids, {"4": 1})
    client.xadd(REJECTED_STREAM, {"at": "x"})

    text = page(read(server))

    for line in (
        'keepsake_list_length{list="requests"} 2.0',
        'keepsake_queue_messages{queue="index",state="waiting"} 1.0',
        'keepsake_queue_messages{queue="index",state="working"} 2.0',
        'keepsake_queue_messages{queue="writes",state="dead"} 1.0',
        "keepsake_rejected_entries 1.0",
    ):
        assert line in text


@pytest.mark.parametrize(("read_entries", "oldest_s", "backlog"), [(0, 100.0, 3), (1, 100.0, 3), (3, 80.0, 1)])
def test_the_backlog_is_what_is_not_dispatched(
    server: fakeredis.FakeServer, client: fakeredis.FakeRedis, read_entries: int, oldest_s: float, backlog: int
) -> None:
    """Given messages that wait unread, prefetched or both, I expect the number of them, and the age of the oldest."""
    now = client.time()[0]
    client.xgroup_create(UPDATES_STREAM, STREAM_GROUP, id="0", mkstream=True)
    for seconds in (100, 90, 80):
        client.xadd(UPDATES_STREAM, {"event": "{}"}, id=f"{(now - seconds) * 1000}-0")
    if read_entries:
        taken: Any = client.xreadgroup(STREAM_GROUP, "a", {UPDATES_STREAM: ">"}, count=read_entries)
    if read_entries == 3:
        client.xack(UPDATES_STREAM, STREAM_GROUP, *[entry_id for entry_id, _ in taken[0][1][:2]])

    figures = read(server)
    assert figures.backlog == backlog
    assert figures.oldest_s == pytest.approx(oldest_s, abs=5)


def test_the_whole_stream_waits_before_the_first_adapter(
    server: fakeredis.FakeServer, client: fakeredis.FakeRedis
) -> None:
    """Given messages and no consumer group yet, I expect all of them in the backlog."""
    for _ in range(3):
        client.xadd(UPDATES_STREAM, {"event": "{}"}, id="*")

    assert read(server).backlog == 3


def test_a_process_without_a_heartbeat_is_down_where_one_is_expected(
    server: fakeredis.FakeServer, client: fakeredis.FakeRedis
) -> None:
    """Given a process that runs, two that ended, one of them with a record of a later version, and one that was left
    out, I expect the first up, the ended ones down."""
    for name in ("memory", "chat-ai"):
        client.set(process_key(name), ProcessRecord().model_dump_json())
    client.set(process_key(EXTRACTOR), '{"left_out": {"since": 1}}')
    client.set(process_key("gateway"), ProcessRecord(left_out=True).model_dump_json())
    client.set(alive_key("memory"), "host:1:1")

    assert read(server).processes == {"memory": True, "chat-ai": False, EXTRACTOR: False}


def test_processes_of_one_name_are_counted(server: fakeredis.FakeServer, client: fakeredis.FakeRedis) -> None:
    """Given two workers on two hosts and a third whose host was lost, I expect two, up by what they say alone."""
    client.set(process_key(WORKER), ProcessRecord().model_dump_json())
    last = time.time() + 4  # as of a clock that is ahead: it counts the longer
    client.zadd(instances_key(WORKER), {"a:1": last, "b:1": last, "lost:1": last - 60})

    figures = read(server)

    assert (figures.processes, figures.instances) == ({WORKER: True}, {WORKER: 2})
    assert f'keepsake_instances{{process="{WORKER}"}} 2.0' in page(figures)


def test_a_process_of_an_earlier_release_counts_as_one(
    server: fakeredis.FakeServer, client: fakeredis.FakeRedis
) -> None:
    """Given a worker with a heartbeat that says nothing of instances, I expect one, and not none of what works."""
    client.set(process_key(WORKER), ProcessRecord().model_dump_json())
    client.set(alive_key(WORKER), "host:1:1")

    assert read(server).instances == {WORKER: 1}


def test_instances_that_cannot_be_read_are_no_zeros(server: fakeredis.FakeServer, client: fakeredis.FakeRedis) -> None:
    """Given instances that Redis does not give, as by access rules of an earlier release, I expect them absent and
    named, and the heartbeats shown all the same."""
    client.set(process_key(WORKER), ProcessRecord().model_dump_json())
    client.set(alive_key(WORKER), "host:1:1")
    client.set(instances_key(WORKER), "of another type")

    figures = read(server)

    assert (figures.processes, figures.instances, list(figures.unseen)) == ({WORKER: True}, {}, ["instances"])


def test_counters_are_bounded_and_alarming_ones_begin_at_zero(
    server: fakeredis.FakeServer, client: fakeredis.FakeRedis
) -> None:
    """Given fields that another program has put into the hash, I expect those like counts alone, up to a number."""
    strange = {HOSTILE: "1", "anna@example.org": "2", "Named": "3", "text": "no number", "minus": "-1"}
    many_names: dict[Any, Any] = {f"{first}{second}": "1" for first in "abcdefghijkl" for second in "abcdefghijkl"}
    fields: dict[Any, Any] = {**strange, "a_partial": "7", "rejected": "2"}
    client.hset(COUNTERS, mapping=fields)
    few = read(server).counters
    client.hset(COUNTERS, mapping=many_names)

    many = read(server).counters

    assert (few["a_partial"], few["rejected"], few["updates_lost"]) == (7, 2, 0)
    assert set(few) & set(strange) == set()
    assert len(many) == MAX_COUNTERS + len(ALARMING)
    assert many["rejected"] == 2


def test_a_redis_that_is_down_is_said_to_be(server: fakeredis.FakeServer) -> None:
    """Given a Redis that is away, I expect a page all the same, which says so and shows no other figure."""
    server.connected = False

    text = page(read(server))

    assert "keepsake_up 0.0" in text
    assert 'keepsake_unseen{part="redis"} 1.0' in text
    assert "keepsake_backlog_messages 0" not in text


def test_a_redis_that_hangs_is_not_waited_for() -> None:
    """Given a Redis that never answers, I expect an answer within the limit of a scrape, by the loop's own clock."""

    class Hanging:
        async def ping(self) -> None:
            await asyncio.sleep(3_600)

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        reader = StackReader(load_settings(), cast(Any, Hanging()))
        figures = runner.run(reader.read(timeout_s=2.0))
        took: float = runner.get_loop().time()

    assert (figures.up, list(figures.unseen)) == (False, ["redis"])
    assert took == pytest.approx(2.0)


def test_what_cannot_be_read_is_named(server: fakeredis.FakeServer, client: fakeredis.FakeRedis) -> None:
    """Given counters that Redis refuses to read, as by an ACL, I expect that part named, and the others shown."""
    client.set(COUNTERS, "no hash")

    figures = read(server)

    assert (figures.up, list(figures.unseen), figures.backlog, figures.counters) == (True, ["counters"], 0, {})


def test_what_cannot_be_read_is_logged_once(server: fakeredis.FakeServer) -> None:
    """Given counters that cannot be read in two scrapes, and then can, I expect a line as it begins and as it ends."""

    async def scrape() -> None:
        async with fakeredis.FakeAsyncRedis(server=server) as client:
            reader = StackReader(load_settings(), client)
            await client.set(COUNTERS, "no hash")
            for _ in range(2):
                await reader.read()
            await client.delete(COUNTERS)
            await reader.read()

    with structlog.testing.capture_logs() as lines:
        asyncio.run(scrape())

    assert [(line["event"], line["part"]) for line in lines] == [
        ("scrape_incomplete", "counters"),
        ("scrape_complete", "counters"),
    ]


def test_the_queues_of_another_broker_may_be_away(server: fakeredis.FakeServer) -> None:
    """Given a broker of its own that does not answer, I expect its queues named as unseen, and the rest shown."""
    figures = read(server, broker_url=f"redis://127.0.0.1:{free_port()}/0")

    assert (figures.up, list(figures.unseen), figures.queues, figures.backlog) == (True, ["queues"], {}, 0)


def test_the_queues_of_rabbitmq_are_shown(server: fakeredis.FakeServer) -> None:
    """Given RabbitMQ as the broker, I expect its queues by the same names as those of Redis, the dead ones too."""
    with management_api() as api:
        api.queues = [queue("index", messages_ready=3, messages_unacknowledged=2, consumers=1), queue("index.DQ")]
        api.queues.append(queue("index.XQ", messages_ready=6))

        text = page(read(server, broker_url="amqp://unused/", rabbitmq_management_url=api.url))

    for state, number in (("waiting", 3), ("working", 2), ("delayed", 0), ("dead", 6)):
        assert f'keepsake_queue_messages{{queue="index",state="{state}"}} {number}.0' in text
    assert "consumers" not in text
    assert 'keepsake_queue_messages{queue="writes",state="waiting"} 0.0' in text
    assert 'keepsake_unseen{part="' not in text


def test_a_rabbitmq_that_cannot_be_read_is_named_and_its_queues_are_absent(server: fakeredis.FakeServer) -> None:
    """Given no management API, I expect no figure that could be taken for one, that part named, and the rest shown."""
    text = page(read(server, broker_url=f"amqp://user:geheim@127.0.0.1:{free_port()}/"))

    assert "keepsake_queue_messages{" not in text
    assert 'keepsake_unseen{part="queues"} 1.0' in text
    assert ("keepsake_up 1.0" in text, "keepsake_backlog_messages 0.0" in text) == (True, True)


def test_a_management_api_that_hangs_is_not_waited_for(server: fakeredis.FakeServer) -> None:
    """Given a management API that takes a connection and says nothing, I expect the rest within the limit of a scrape,
    by the loop's own clock."""
    with socket.create_server(("127.0.0.1", 0)) as silent, asyncio.Runner(loop_factory=SkippingLoop) as runner:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = load_settings(broker_url="amqp://unused/", rabbitmq_management_url=url)

        async def scrape() -> StackFigures:
            async with fakeredis.FakeAsyncRedis(server=server) as client:
                return await StackReader(settings, client).read(timeout_s=2.0)

        figures = runner.run(scrape())
        took: float = runner.get_loop().time()

    assert (figures.up, list(figures.unseen), figures.queues) == (True, ["queues"], {})
    assert took <= 2.0


def test_a_redis_that_is_down_hides_no_queue_of_rabbitmq(server: fakeredis.FakeServer) -> None:
    """Given the pipeline's Redis away, I expect the queues of RabbitMQ shown all the same."""
    server.connected = False
    with management_api() as api:
        api.queues = [queue("index", messages_ready=3)]

        figures = read(server, broker_url="amqp://unused/", rabbitmq_management_url=api.url)

    assert (list(figures.unseen), figures.queues["index"]["waiting"]) == (["redis"], 3)


def test_a_queue_of_which_rabbitmq_knows_no_depth_is_named(server: fakeredis.FakeServer) -> None:
    """Given a queue without a majority of its nodes, I expect it absent, and the reason given."""
    with management_api() as api:
        api.queues = [queue("index", online=1, messages_ready=3)]

        figures = read(server, broker_url="amqp://unused/", rabbitmq_management_url=api.url)

    assert figures.unseen == {"queues": "index: no majority of its nodes is up"}
    assert sorted(figures.queues) == ["extract", "interactive", "writes"]


def test_queues_that_the_processes_have_elsewhere_are_no_zeros(
    server: fakeredis.FakeServer, client: fakeredis.FakeRedis
) -> None:
    """Given processes whose queues are on RabbitMQ, and a gateway without BROKER_URL, I expect no figures of Redis's
    queues, and what to set."""
    record = ProcessRecord(broker="amqp://rabbit/v")
    client.set(process_key("long-term-memory-adapters"), record.model_dump_json())
    stopped = read(server)
    client.set(alive_key("long-term-memory-adapters"), "host:1:1")

    figures = read(server)

    assert "queues" not in stopped.unseen  # it may have been stopped before the queues were moved
    assert figures.queues == {}
    assert figures.unseen["queues"].startswith("the workers' queues are on amqp://rabbit/v: set BROKER_URL")


def gateway_app(server: fakeredis.FakeServer, caller: Callable[[], Caller]) -> FastAPI:
    """The gateway with this door alone."""
    client: Any = fakeredis.FakeAsyncRedis(server=server)
    authenticator: Any = SimpleNamespace(caller=lambda _: caller())
    return create_app(Gateway(load_settings(), cast(Any, None), client, authenticator), [add_metrics])


def get(app: Any, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.get(path)

    return asyncio.run(ask())


def test_a_key_that_may_is_shown_the_metrics(server: fakeredis.FakeServer) -> None:
    """Given a key with the right, I expect the page in Prometheus's text format."""
    caller = Caller("prometheus", frozenset({Right.METRICS}))

    response = get(gateway_app(server, lambda: caller), "/metrics")

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "keepsake_up 1.0" in response.text


def test_a_key_that_may_not_is_refused(server: fakeredis.FakeServer) -> None:
    """Given a key with every other right, I expect 403, and the command that gives it this one."""
    caller = Caller("a-bot", ALL_RIGHTS - {Right.METRICS})

    response = get(gateway_app(server, lambda: caller), "/metrics")

    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert "--may metrics" in response.json()["detail"]


def test_no_key_is_refused(server: fakeredis.FakeServer) -> None:
    """Given a request without a valid key, I expect 401."""

    def refuse() -> Caller:
        raise Unauthorized("no key")

    assert get(gateway_app(server, refuse), "/metrics").status_code == 401


def test_http_requests_are_observed_by_door_and_status() -> None:
    """Given requests to a door, to a path of the caller's own making, and one given up, I expect bounded labels."""
    metrics = PrometheusMetrics()
    app = FastAPI()
    app.add_middleware(ObserveRequests, metrics=metrics)

    @app.get("/v1/memories")
    async def memories(request: Request) -> Response:
        return Response("[]")

    @app.get("/v1/gone")
    async def gone(request: Request) -> Response:
        raise ClientDisconnect

    for path in ("/v1/memories", "/anna/secret", "/", "/v1/gone"):
        get(app, path)

    shown = generate_latest(metrics.registry).decode()
    assert 'keepsake_http_requests_total{door="v1",status="200"} 1.0' in shown
    assert 'keepsake_http_requests_total{door="other",status="404"} 2.0' in shown
    assert 'keepsake_http_requests_total{door="v1",status="499"} 1.0' in shown
    assert labels_of(shown) == {"v1", "other", "200", "404", "499"}
