"""A management API of RabbitMQ that answers what a test tells it to."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from services.runtime.rabbitmq import ManagementApi, RabbitmqReport
from services.runtime.settings import load_settings

NODES = ["rabbit@a", "rabbit@b", "rabbit@c"]
RUNNING = [{"name": name, "running": True, "mem_alarm": False, "disk_free_alarm": False} for name in NODES]


def queue(name: str, online: int = 3, **figures: Any) -> dict[str, Any]:
    """A quorum queue on three nodes, as the API shows it."""
    figures = {"messages_ready": 0, "messages_unacknowledged": 0, **figures}
    return {"name": name, "type": "quorum", "members": NODES, "online": NODES[:online], **figures}


class Api:
    """The API on a port of this host.

    Args:
        queues: what it answers of the queues: a list of them, or anything else as it is.
        asked: the path and the user of each request.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://ltm:h%40sh@127.0.0.1:{port}/"
        self.queues: Any = []
        self.nodes: Any = RUNNING
        self.status = 200
        self.asked: list[tuple[str, str]] = []

    def report(self, broker_url: str = "amqp://ltm:h%40sh@unused/keep%2Fsake") -> RabbitmqReport:
        return ManagementApi(load_settings(broker_url=broker_url, rabbitmq_management_url=self.url), 5.0).report()

    def answer(self, path: str) -> bytes:
        """The body that it answers."""
        if path.startswith("/api/nodes"):
            return json.dumps(self.nodes).encode()
        if isinstance(self.queues, bytes):
            return self.queues
        return json.dumps({"items": self.queues} if isinstance(self.queues, list) else self.queues).encode()


@contextmanager
def management_api() -> Iterator[Api]:
    """An API that runs within the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            user = base64.b64decode(self.headers["Authorization"].partition(" ")[2]).decode()
            api.asked.append((self.path.partition("?")[0], user))
            self.send_response(api.status)
            self.end_headers()
            self.wfile.write(api.answer(self.path))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api = Api(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
