"""RabbitMQ's management API over HTTP: the depths of the workers' queues, and the state of the cluster's nodes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Literal, TypeVar
from urllib.parse import quote, unquote, urlsplit

import httpx
from pydantic import BaseModel, TypeAdapter

from services.runtime.errors import StackError
from services.runtime.queues import ALL_QUEUES, dead_letter_queue, delay_queue
from services.runtime.settings import Settings, hosts_of

NodeState = Literal["answers", "refuses writes", "down"]
T = TypeVar("T")

_PORTS: Final = {"amqp": ("http", 15672), "amqps": ("https", 15671)}
#: Those of Keepsake alone: others may share the virtual host, thousands of them.
_NAMES: Final = rf"^({'|'.join(ALL_QUEUES)})(\.DQ|\.XQ)?$"
_QUERY: Final = {
    "columns": "name,type,messages_ready,messages_unacknowledged,consumers,members,online",
    **{"name": _NAMES, "use_regex": "true", "page": "1", "page_size": "100"},
}


class _Queue(BaseModel):
    """A queue as the API shows it; without figures while there are none, as of one that was declared just now."""

    name: str
    type: str = "classic"
    messages_ready: int | None = None
    messages_unacknowledged: int | None = None
    consumers: int = 0
    members: list[str] = []
    online: list[str] = []

    @property
    def messages(self) -> int:
        return (self.messages_ready or 0) + (self.messages_unacknowledged or 0)

    @property
    def has_majority(self) -> bool:
        return self.type != "quorum" or len(self.online) > len(self.members) // 2

    @property
    def problem(self) -> str | None:
        """Why its depth is not known; None where it is."""
        if not self.has_majority:
            return "no majority of its nodes is up"
        return "RabbitMQ has no figures yet" if self.messages_ready is None else None


class _Queues(BaseModel):
    items: list[_Queue]


class _Node(BaseModel):
    name: str
    running: bool = False
    mem_alarm: bool | None = None
    disk_free_alarm: bool | None = None


_QUEUES, _NODES = TypeAdapter(_Queues), TypeAdapter(list[_Node])
_NO_QUEUE: Final = _Queue(name="", messages_ready=0, messages_unacknowledged=0)


@dataclass(frozen=True)
class RabbitmqReport:
    """What RabbitMQ says of the workers' queues. Its figures are up to five seconds old, ten of a new queue.

    Args:
        depths: how many messages are waiting, working, delayed and dead, and how many consumers there are, by queue;
            zeros of a queue that no process has declared yet.
        unknown: why the depths of a queue are not known, by queue.
        nodes: the state of each node: `answers`, `down`, or `refuses writes`, and why.
        without_majority: queues that take and give nothing, with how many of their nodes are up.
        not_replicated: queues of an earlier version, or of one's own making, that are on one node alone.
    """

    depths: dict[str, dict[str, int]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, tuple[NodeState, str | None]] = field(default_factory=dict)
    without_majority: dict[str, str] = field(default_factory=dict)
    not_replicated: list[str] = field(default_factory=list)


class ManagementApi:
    """Reads the management API of the RabbitMQ of these settings; the first host that answers is asked.

    Args:
        timeout_s: of each host that is asked.
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
        return asyncio.run(self._report())

    async def queues(self) -> RabbitmqReport:
        """What it says of the queues; nothing of the nodes.

        Raises:
            StackError: as of `report`.
        """
        found = await self._get(_QUEUES, f"queues/{quote(self._vhost, safe='')}", _QUERY)
        return _report_of(found.items)

    async def _report(self) -> RabbitmqReport:
        report = await self.queues()
        nodes = await self._get(_NODES, "nodes", {"columns": "name,running,mem_alarm,disk_free_alarm"})
        return replace(report, nodes={node.name: _state_of(node) for node in nodes})

    async def _get(self, shape: TypeAdapter[T], path: str, query: dict[str, str]) -> T:
        problem = ""
        for base in list(self._bases):
            parts = urlsplit(base)
            shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
            auth = (unquote(parts.username or "guest"), unquote(parts.password or "guest"))
            try:
                async with asyncio.timeout(self._timeout_s), self._client(parts.scheme) as client:
                    url = f"{shown}{parts.path.rstrip('/')}/api/{path}"
                    response = await client.get(url, params=query, auth=auth)
                if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
                    raise StackError(
                        f"RabbitMQ's management API at {shown} refuses the user {auth[0]!r}: correct its password, give"
                        " it the tag monitoring (rabbitmqctl set_user_tags) and permissions on the virtual host, or"
                        " name another in RABBITMQ_MANAGEMENT_URL"
                    )
                return shape.validate_json(response.raise_for_status().content)
            except httpx.HTTPStatusError as error:
                problem = f"answers {error.response.status_code} at {shown}"
                if error.response.status_code == httpx.codes.NOT_FOUND:
                    problem += f", as for a virtual host that does not exist ({self._vhost!r})"
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
                problem = f"does not answer at {shown}: {type(error).__name__}"
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    problem = f"at {shown} has a certificate that is not trusted (SSL_CERT_FILE names your CA)"
            except ValueError:
                problem = f"is not at {shown}"
            self._bases.remove(base)  # the next time, it is asked last
            self._bases.append(base)
        raise StackError(
            f"RabbitMQ's management API {problem}; enable it (rabbitmq-plugins enable rabbitmq_management), or set"
            " RABBITMQ_MANAGEMENT_URL"
        )

    def _client(self, scheme: str) -> httpx.AsyncClient:
        # The proxies of the environment are for the world outside: AMQP takes none either.
        return httpx.AsyncClient(
            trust_env=False, timeout=self._timeout_s, verify=self._trusted if scheme == "https" else False
        )

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        """The certificates that pika trusts, too: those of the system, or of SSL_CERT_FILE."""
        return ssl.create_default_context()


def _management_url(broker_url: str) -> str:
    parts = urlsplit(broker_url)
    scheme, port = _PORTS[parts.scheme]
    user, at, _ = parts.netloc.rpartition("@")
    name = parts.hostname or "localhost"  # as pika has it
    host = f"[{name}]" if ":" in name else name
    return f"{scheme}://{user}{at}{host}:{port}"


def _report_of(found: Iterable[_Queue]) -> RabbitmqReport:
    report = RabbitmqReport()
    queues = {queue.name: queue for queue in found}
    for name in ALL_QUEUES:
        parts = [queues.get(part, _NO_QUEUE) for part in (name, delay_queue(name), dead_letter_queue(name))]
        queue, delayed, dead = parts
        for part in parts:
            if not part.has_majority:
                up = f"{len(part.online)} of its {len(part.members)} nodes are up"
                report.without_majority[part.name] = up
            if part.type != "quorum" and part.name:
                report.not_replicated.append(part.name)
        if problem := next((f"{part.name}: {part.problem}" for part in parts if part.problem), None):
            report.unknown[name] = problem
            continue
        report.depths[name] = {
            "waiting": queue.messages_ready or 0,
            "working": queue.messages_unacknowledged or 0,
            "delayed": delayed.messages,
            "dead": dead.messages,
            "consumers": queue.consumers,
        }
    return report


def _state_of(node: _Node) -> tuple[NodeState, str | None]:
    alarms = [kind for kind, rings in (("memory", node.mem_alarm), ("disk", node.disk_free_alarm)) if rings]
    if not node.running:
        return "down", None
    return ("refuses writes", f"alarm: too little {' and '.join(alarms)}") if alarms else ("answers", None)
