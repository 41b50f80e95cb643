"""What RabbitMQ's management API answers, and what the status makes of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from services.runtime.errors import StackError
from services.runtime.rabbitmq import ManagementApi
from services.runtime.settings import hosts_of, load_settings, mask_url
from tests.management_api import RUNNING, Api, management_api, queue
from tests.support import SkippingLoop, free_port

NOTHING = {"waiting": 0, "working": 0, "delayed": 0, "dead": 0, "consumers": 0}


@pytest.fixture
def api() -> Iterator[Api]:
    with management_api() as api:
        yield api


def test_the_depths_of_a_queue_are_those_of_its_three(api: Api) -> None:
    """Given a queue, its delayed messages and its dead letters, I expect one row; other queues are left out."""
    api.queues = [
        queue("index", messages_ready=3, messages_unacknowledged=2, consumers=1),
        queue("index.DQ", messages_ready=1, messages_unacknowledged=4),
        queue("index.XQ", messages_ready=6),
        queue("another program's", messages_ready=9),
    ]

    depths = api.report().depths

    assert depths["index"] == {"waiting": 3, "working": 2, "delayed": 5, "dead": 6, "consumers": 1}
    assert "another program's" not in depths


def test_a_queue_that_no_process_has_declared_holds_nothing(api: Api) -> None:
    """Given an API that answers and shows no queues, I expect zeros for each, as of a Redis that has none."""
    assert api.report().depths == dict.fromkeys(("interactive", "writes", "index", "extract"), NOTHING)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ({"name": "index", "type": "quorum", "members": ["a"], "online": ["a"]}, "index: RabbitMQ has no figures yet"),
        (queue("index.XQ", online=1, messages_ready=3), "index.XQ: no majority of its nodes is up"),
    ],
)
def test_what_is_not_known_is_no_zero(api: Api, part: dict[str, Any], why: str) -> None:
    """Given a queue without figures, as for 10 s after its declaration, or with figures of before its nodes were lost,
    I expect it named with the reason, and the depths of the others alone."""
    api.queues = [part, queue("writes", messages_ready=2)]

    report = api.report()

    assert report.unknown == {"index": why}
    assert "index" not in report.depths
    assert report.depths["writes"]["waiting"] == 2


def test_an_api_that_is_silent_is_not_waited_for() -> None:
    """Given an API that takes a connection and says nothing, I expect the wait to end by the loop's own clock."""
    with socket.create_server(("127.0.0.1", 0)) as silent, asyncio.Runner(loop_factory=SkippingLoop) as runner:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = load_settings(broker_url="amqp://unused/", rabbitmq_management_url=url)

        with pytest.raises(StackError, match=f"does not answer at {url}: [A-Za-z]*Time"):
            runner.run(ManagementApi(settings, 2.0).queues())


def test_a_host_that_did_not_answer_is_asked_last_the_next_time(api: Api) -> None:
    """Given several hosts of which the first is down, I expect the second asked at once from then on."""
    away = f"http://127.0.0.1:{free_port()}"
    reader = ManagementApi(load_settings(broker_url="amqp://unused/"), 5.0)
    reader._bases = [away, api.url]

    reader.report()

    assert reader._bases == [api.url, away]


def test_two_reads_at_once_leave_the_host_that_answers_first(api: Api) -> None:
    """Given two reads at once, as by two scrapes, which both find the first of two hosts down, I expect it asked last
    the next time."""
    away = f"http://127.0.0.1:{free_port()}"
    reader = ManagementApi(load_settings(broker_url="amqp://unused/"), 5.0)
    reader._bases = [away, api.url]

    async def at_once() -> None:
        await asyncio.gather(reader.queues(), reader.queues())

    asyncio.run(at_once())

    assert reader._bases == [api.url, away]


def test_the_password_is_not_sent_to_a_proxy(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a proxy in the environment, I expect the API asked without it, as RabbitMQ itself is."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")

    assert api.report().nodes


def test_it_is_asked_as_the_user_for_the_virtual_host(api: Api) -> None:
    """Given a user and a virtual host with characters that are escaped in a URL, I expect both as they are."""
    api.report()

    assert api.asked == [("/api/queues/keep%2Fsake", "ltm:h@sh"), ("/api/nodes", "ltm:h@sh")]


def test_a_queue_without_a_majority_is_told(api: Api) -> None:
    """Given queues on three nodes, of which one and two are up, I expect the former named, and of how many."""
    api.queues = [queue("index", online=1), queue("index.XQ", online=2), queue("writes", online=3)]

    assert api.report().without_majority == {"index": "1 of its 3 nodes are up"}


def test_a_queue_of_an_earlier_version_is_told(api: Api) -> None:
    """Given a classic queue, I expect it named."""
    api.queues = [queue("index"), {"name": "index.XQ", "type": "classic"}]

    assert api.report().not_replicated == ["index.XQ"]


def test_nodes_that_are_down_or_take_nothing_are_told(api: Api) -> None:
    """Given a node that is down and one with both alarms, I expect their states, and why."""
    down = {"name": "rabbit@b", "running": False}
    alarmed = {"name": "rabbit@c", "running": True, "mem_alarm": True, "disk_free_alarm": True}
    api.nodes = [RUNNING[0], down, alarmed]

    assert api.report().nodes == {
        "rabbit@a": ("answers", None),
        "rabbit@b": ("down", None),
        "rabbit@c": ("refuses writes", "alarm: too little memory and disk"),
    }


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (401, [], r"refuses the user 'ltm': correct its password, give it the tag monitoring"),
        (404, [], r"answers 404 at http://127.0.0.1:[0-9]+, as for a virtual host that does not exist \('keep/sake'\)"),
        (503, [], r"answers 503 at http://127.0.0.1:[0-9]+; enable it"),
        (200, b"<html>", r"is not at http://127.0.0.1:[0-9]+; enable it"),
        (200, {"not": "a list"}, r"is not at http://127.0.0.1:[0-9]+; enable it"),
    ],
)
def test_what_is_no_answer_is_one_line_with_its_remedy(api: Api, status: int, answer: Any, words: str) -> None:
    """Given a refusal, a fault and something else that answers, I expect one line, without the password."""
    api.status, api.queues = status, answer

    with pytest.raises(StackError, match=words) as raised:
        api.report()

    assert "h@sh" not in str(raised.value)
    assert "h%40sh" not in str(raised.value)


def test_the_apis_of_the_brokers_hosts_are_asked_by_default() -> None:
    """Given no address of it, I expect it looked for on each host of the broker, and the last one named."""
    settings = load_settings(broker_url="amqp://ltm:hush@127.0.0.1:1/;amqps://ltm:hush@[::1]:1/")

    with pytest.raises(StackError, match=r"does not answer at https://\[::1\]:15671: ") as raised:
        ManagementApi(settings, 0.2).report()

    assert "hush" not in str(raised.value)


def test_a_broker_without_a_host_is_on_this_one() -> None:
    """Given a URL of the broker that names no host, I expect its API looked for where pika connects to."""
    assert ManagementApi(load_settings(broker_url="amqp:///keepsake"), 5.0)._bases == ["http://localhost:15672"]


def test_several_hosts_are_masked_one_by_one() -> None:
    """Given several hosts, I expect all of them shown, none with its password; and accepted as a setting."""
    port = free_port()
    url = f"amqp://a:hush@one:{port};amqps://b:hush@two/v"

    assert hosts_of(url) == [f"amqp://a:hush@one:{port}", "amqps://b:hush@two/v"]
    assert mask_url(url) == f"amqp://a:***@one:{port};amqps://b:***@two/v"
    assert load_settings(broker_url=url).broker.get_secret_value() == url
