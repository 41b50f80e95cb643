"""RabbitMQ's management API over HTTP: the depths of the workers' queues, and the state of the cluster's nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeVar
from urllib.parse import quote, unquote, urlsplit

import httpx
from pydantic import BaseModel, TypeAdapter

from services.runtime.errors import StackError
from services.runtime.queues import ALL_QUEUES, dead_letter_queue, delay_queue
from services.runtime.settings import Settings, hosts_of

NodeState = Literal["answers", "refuses writes", "down"]
T = TypeVar("T")

_PORTS = {"amqp": ("http", 15672), "amqps": ("https", 15671)}
_COLUMNS = "name,type,messages_ready,messages_unacknowledged,consumers,members,online"


class _Queue(BaseModel):
    name: str
    type: str = "classic"
    messages_ready: int = 0
    messages_unacknowledged: int = 0
    consumers: int = 0
    members: list[str] = []
    online: list[str] = []

    @property
    def messages(self) -> int:
        return self.messages_ready + self.messages_unacknowledged


class _Node(BaseModel):
    name: str
    running: bool = False
    mem_alarm: bool | None = None
    disk_free_alarm: bool | None = None


_QUEUES, _NODES = TypeAdapter(list[_Queue]), TypeAdapter(list[_Node])


@dataclass(frozen=True)
class RabbitmqReport:
    """What RabbitMQ says of the workers' queues. Its figures are up to five seconds old.

    Args:
        depths: how many messages are waiting, working, delayed and dead, and how many consumers there are, by queue.
        nodes: the state of each node: `answers`, `down`, or `refuses writes`, and why.
        without_majority: queues that take and give nothing, with how many of their nodes are up.
        not_replicated: queues of an earlier version, or of one's own making, that are on one node alone.
    """

    depths: dict[str, dict[str, int]] = field(default_factory=dict)
    nodes: dict[str, tuple[NodeState, str | None]] = field(default_factory=dict)
    without_majority: dict[str, str] = field(default_factory=dict)
    not_replicated: list[str] = field(default_factory=list)


class ManagementApi:
    """Reads the management API of the RabbitMQ of these settings; the first host that answers is asked.

    Args:
        timeout_s: of each request.
    """

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        self._hosts = hosts_of(settings.broker.get_secret_value())
        own = settings.rabbitmq_management_url
        self._bases = [own.get_secret_value()] if own else list(map(_management_url, self._hosts))
        # As pika reads it: what follows the host, or RabbitMQ's default.
        self._vhost = unquote(urlsplit(self._hosts[0]).path[1:]) or "/"
        self._timeout_s = timeout_s

    def report(self) -> RabbitmqReport:
        """What it says now.

        Raises:
            StackError: it does not answer, or refuses the user; the text says what to do.
        """
        queues = self._get(_QUEUES, f"queues/{quote(self._vhost, safe='')}", columns=_COLUMNS)
        nodes = self._get(_NODES, "nodes", columns="name,running,mem_alarm,disk_free_alarm")
        return _report_of({queue.name: queue for queue in queues}, nodes)

    def _get(self, shape: TypeAdapter[T], path: str, **query: str) -> T:
        problem = ""
        for base in self._bases:
            parts = urlsplit(base)
            shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
            auth = (unquote(parts.username or "guest"), unquote(parts.password or "guest"))
            try:
                response = httpx.get(
                    f"{shown}{parts.path.rstrip('/')}/api/{path}", params=query, auth=auth, timeout=self._timeout_s
                )
                if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
                    raise StackError(
                        f"RabbitMQ's management API at {shown} refuses the user {auth[0]!r}: give it the tag monitoring"
                        " (rabbitmqctl set_user_tags), or name another in RABBITMQ_MANAGEMENT_URL"
                    )
                return shape.validate_json(response.raise_for_status().content)
            except httpx.HTTPStatusError as error:
                problem = f"answers {error.response.status_code} at {shown}"
            except httpx.HTTPError as error:
                problem = f"does not answer at {shown}: {type(error).__name__}"
            except ValueError:
                problem = f"is not at {shown}"
        raise StackError(
            f"RabbitMQ's management API {problem}; enable it (rabbitmq-plugins enable rabbitmq_management), or set"
            " RABBITMQ_MANAGEMENT_URL"
        )


def _management_url(broker_url: str) -> str:
    parts = urlsplit(broker_url)
    scheme, port = _PORTS[parts.scheme]
    user, at, _ = parts.netloc.rpartition("@")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{scheme}://{user}{at}{host}:{port}"


def _report_of(queues: dict[str, _Queue], nodes: list[_Node]) -> RabbitmqReport:
    report = RabbitmqReport()
    for name in ALL_QUEUES:
        if (queue := queues.get(name)) is None:
            continue
        delayed, dead = queues.get(delay_queue(name)), queues.get(dead_letter_queue(name))
        report.depths[name] = {
            "waiting": queue.messages_ready,
            "working": queue.messages_unacknowledged,
            "delayed": delayed.messages if delayed else 0,
            "dead": dead.messages if dead else 0,
            "consumers": queue.consumers,
        }
        for part in (queue, delayed, dead):
            if part is None:
                continue
            if part.type != "quorum":
                report.not_replicated.append(part.name)
            elif len(part.online) <= len(part.members) // 2:
                report.without_majority[part.name] = f"{len(part.online)} of its {len(part.members)} nodes are up"
    for node in nodes:
        alarms = [kind for kind, rings in (("memory", node.mem_alarm), ("disk", node.disk_free_alarm)) if rings]
        if not node.running:
            report.nodes[node.name] = ("down", None)
        elif alarms:
            report.nodes[node.name] = ("refuses writes", f"alarm: too little {' and '.join(alarms)}")
        else:
            report.nodes[node.name] = ("answers", None)
    return report
