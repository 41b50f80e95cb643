"""Health of a stack: its servers, processes, providers and libraries, each with its version, read from Redis alone."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import redis
import redis.asyncio
from keepsake_client.protocol import alive_key, instances_key, process_key
from pydantic import BaseModel

from services.runtime.extraction_figures import ExtractionFigures, read_figures
from services.runtime.instances import Instances, instances_of
from services.runtime.logging import redact
from services.runtime.process_record import PROCESSES, Dependency, ProcessRecord, record_of
from services.runtime.redis import connect_async
from services.runtime.settings import Settings, hosts_of, mask_url

#: Of each server.
TIMEOUT_S: Final = 2.0
_RABBITMQ: Final = "RabbitMQ"
_DEFAULT_PORTS: Final = {"amqp": 5672, "amqps": 5671}

State = Literal["ok", "down", "left out", "unknown"]


class Health(BaseModel):
    """The health of one server, process, provider or library.

    Args:
        name: of a process, that of `ltm status`.
        state: of what only a process can reach, `ok` while such a process works, and `unknown` while none does;
            `left out` of a process that `ltm up --without` left out.
        version: of a process, that of Keepsake.
        detail: an address without its password, a model, or why it is down; the hosts of several processes of one name.
        since: of a process, since when it runs; of the pipeline's Redis too; in seconds since 1970.
        used_by: the processes that say so of themselves.
    """

    name: str
    state: State
    version: str | None = None
    detail: str | None = None
    since: float | None = None
    used_by: list[str] = []


async def read_health(settings: Settings, client: redis.asyncio.Redis) -> list[Health]:
    """The health of the servers, then of the processes, then of what these use; processes that never ran are left out.

    Args:
        client: connects to the pipeline's Redis.
    """
    first = await _redis("Redis", client, settings.redis_url.get_secret_value())
    if first.state != "ok":
        return [first]
    try:
        records, alive, instances = await _records(client)
        figures = await read_figures(client)
    except redis.RedisError as error:
        return [first, Health(name="processes", state="unknown", detail=redact(error))]
    found = [first]
    broker = settings.broker.get_secret_value()
    if broker.startswith(("redis", "unix")) and broker != settings.redis_url.get_secret_value():
        async with connect_async(broker, TIMEOUT_S) as other:
            found.append(await _redis("Redis of the queues", other, broker))
    found += [_process(name, record, instances[name], works=name in alive) for name, record in records.items()]
    for dependency, users in _used(records):
        found.append(await _dependency(dependency, users, [name for name in users if name in alive], figures))
    return found


async def _redis(name: str, client: Any, url: str) -> Health:
    """A Redis, or Valkey, with its version where it may be asked for."""
    health = Health(name=name, state="ok", detail=mask_url(url))
    try:
        info = await client.info("server")
    except redis.exceptions.NoPermissionError:
        return health  # it answers
    except (redis.RedisError, OSError) as error:
        return health.model_copy(update={"state": "down", "detail": redact(error)})
    is_valkey = "valkey_version" in info
    return health.model_copy(
        update={
            "name": name.replace("Redis", "Valkey") if is_valkey else name,
            "version": str(info["valkey_version" if is_valkey else "redis_version"]),
            "since": time.time() - info["uptime_in_seconds"],
        }
    )


async def _records(client: Any) -> tuple[dict[str, ProcessRecord], set[str], dict[str, Instances]]:
    """The records of the processes that have one, which of them have a heartbeat, and the instances of all."""
    async with client.pipeline(transaction=False) as pipeline:
        for name in PROCESSES:
            pipeline.get(process_key(name))
            pipeline.exists(alive_key(name))
            pipeline.zrange(instances_key(name), 0, -1, withscores=True)
        pipeline.time()
        *replies, now = await pipeline.execute(raise_on_error=False)
    records, alive, members = replies[::3], replies[1::3], replies[2::3]
    if refused := next((reply for reply in (*records, *alive) if isinstance(reply, Exception)), None):
        raise refused
    found = {name: record_of(raw) for name, raw in zip(PROCESSES, records, strict=True) if raw is not None}
    known = {name: record for name, record in found.items() if record is not None}
    instances = {name: instances_of(each, now) for name, each in zip(PROCESSES, members, strict=True)}
    return (
        known,
        {name for name, beats in zip(PROCESSES, alive, strict=True) if beats or instances[name].live},
        instances,
    )


def _process(name: str, record: ProcessRecord, instances: Instances, *, works: bool) -> Health:
    if record.left_out and not works:
        return Health(name=name, state="left out")
    first = record.address if works else "no heartbeat"
    return Health(
        name=name,
        state="ok" if works else "down",
        version=record.version,
        detail="; ".join(filter(None, (first, str(instances)))) or None,
        since=record.started_at if works else None,
    )


def _used(records: dict[str, ProcessRecord]) -> list[tuple[Dependency, list[str]]]:
    """What the processes use, each with the processes that use it in this version."""
    users: dict[tuple[str, str | None, str | None], list[str]] = {}
    for name, record in records.items():
        for used in record.uses:
            users.setdefault((used.name, used.version, used.detail), []).append(name)
    return [
        (Dependency(name=name, version=version, detail=detail), names)
        for (name, version, detail), names in sorted(users.items(), key=lambda item: item[0][0].casefold())
    ]


async def _dependency(
    used: Dependency, users: list[str], working: list[str], figures: ExtractionFigures | None
) -> Health:
    health = Health(
        name=used.name, state="ok" if working else "unknown", version=used.version, detail=used.detail, used_by=users
    )
    if used.name == _RABBITMQ:  # a process that waits for it has a heartbeat all the same
        return health.model_copy(update={"state": "ok" if await _connects(used.detail or "") else "down"})
    if used.name == "LLM" and figures is not None and figures.state in ("waiting", "stopped"):
        since = None if figures.since is None else figures.since.timestamp()
        return health.model_copy(
            update={"state": "down", "detail": f"{used.detail}: {figures.reason or figures.state}", "since": since}
        )
    return health


async def _connects(url: str) -> bool:
    """Whether a server accepts connections at one of the addresses of a URL."""
    for server in hosts_of(url):
        parts = urlsplit(server)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
                _, writer = await asyncio.open_connection(parts.hostname, port)
                writer.close()
                await writer.wait_closed()
            return True
        except (OSError, ValueError):
            continue
    return False
