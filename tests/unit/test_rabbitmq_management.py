"""What RabbitMQ's management API answers, and what the status makes of it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from services.runtime.errors import StackError
from services.runtime.rabbitmq import ManagementApi, RabbitmqReport
from services.runtime.settings import hosts_of, load_settings, mask_url
from tests.support import free_port

NODES = ["rabbit@a", "rabbit@b", "rabbit@c"]
RUNNING = [{"name": name, "running": True, "mem_alarm": False, "disk_free_alarm": False} for name in NODES]


def queue(name: str, online: int = 3, **figures: Any) -> dict[str, Any]:
    """A quorum queue on three nodes, as the API shows it."""
    return {"name": name, "type": "quorum", "members": NODES, "online": NODES[:online], **figures}


class Api:
    """A management API that answers what it is told to."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: dict[str, Any] = {"queues": [], "nodes": RUNNING}
        self.status = 200
        self.asked: list[tuple[str, str]] = []

    def report(self, broker_url: str = "amqp://ltm:h%40sh@unused/keep%2Fsake") -> RabbitmqReport:
        own = f"http://ltm:h%40sh@127.0.0.1:{self.port}/"
        return ManagementApi(load_settings(broker_url=broker_url, rabbitmq_management_url=own), 5.0).report()


@pytest.fixture
def api() -> Iterator[Api]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            user = base64.b64decode(self.headers["Authorization"].partition(" ")[2]).decode()
            told.asked.append((self.path.partition("?")[0], user))
            answer = told.answers[self.path.split("/")[2].partition("?")[0]]
            self.send_response(told.status)
            self.end_headers()
            self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told = Api(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield told
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_depths_of_a_queue_are_those_of_its_three(api: Api) -> None:
    """Given a queue, its delayed messages and its dead letters, I expect one row; other queues are left out."""
    api.answers["queues"] = [
        queue("index", messages_ready=3, messages_unacknowledged=2, consumers=1),
        queue("index.DQ", messages_ready=1, messages_unacknowledged=4),
        queue("index.XQ", messages_ready=6),
        queue("another program's", messages_ready=9),
    ]

    depths = api.report().depths

    assert depths == {"index": {"waiting": 3, "working": 2, "delayed": 5, "dead": 6, "consumers": 1}}


def test_it_is_asked_as_the_user_for_the_virtual_host(api: Api) -> None:
    """Given a user and a virtual host with characters that are escaped in a URL, I expect both as they are."""
    api.report()

    assert api.asked == [("/api/queues/keep%2Fsake", "ltm:h@sh"), ("/api/nodes", "ltm:h@sh")]


def test_a_queue_without_a_majority_is_told(api: Api) -> None:
    """Given queues on three nodes, of which one and two are up, I expect the former named, and of how many."""
    api.answers["queues"] = [queue("index", online=1), queue("index.XQ", online=2), queue("writes", online=3)]

    assert api.report().without_majority == {"index": "1 of its 3 nodes are up"}


def test_a_queue_of_an_earlier_version_is_told(api: Api) -> None:
    """Given a classic queue, I expect it named."""
    api.answers["queues"] = [queue("index"), {"name": "index.XQ", "type": "classic"}]

    assert api.report().not_replicated == ["index.XQ"]


def test_nodes_that_are_down_or_take_nothing_are_told(api: Api) -> None:
    """Given a node that is down and one with both alarms, I expect their states, and why."""
    down = {"name": "rabbit@b", "running": False}
    alarmed = {"name": "rabbit@c", "running": True, "mem_alarm": True, "disk_free_alarm": True}
    api.answers["nodes"] = [RUNNING[0], down, alarmed]

    assert api.report().nodes == {
        "rabbit@a": ("answers", None),
        "rabbit@b": ("down", None),
        "rabbit@c": ("refuses writes", "alarm: too little memory and disk"),
    }


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (401, [], r"refuses the user 'ltm': give it the tag monitoring"),
        (503, [], r"answers 503 at http://127.0.0.1:[0-9]+; enable it"),
        (200, b"<html>", r"is not at http://127.0.0.1:[0-9]+; enable it"),
        (200, {"not": "a list"}, r"is not at http://127.0.0.1:[0-9]+; enable it"),
    ],
)
def test_what_is_no_answer_is_one_line_with_its_remedy(api: Api, status: int, answer: Any, words: str) -> None:
    """Given a refusal, a fault and something else that answers, I expect one line, without the password."""
    api.status, api.answers["queues"] = status, answer

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


def test_several_hosts_are_masked_one_by_one() -> None:
    """Given several hosts, I expect all of them shown, none with its password; and accepted as a setting."""
    port = free_port()
    url = f"amqp://a:hush@one:{port};amqps://b:hush@two/v"

    assert hosts_of(url) == [f"amqp://a:hush@one:{port}", "amqps://b:hush@two/v"]
    assert mask_url(url) == f"amqp://a:***@one:{port};amqps://b:***@two/v"
    assert load_settings(broker_url=url).broker.get_secret_value() == url
