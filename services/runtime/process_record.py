"""Process records: what each process states about itself in Redis, beside its heartbeat, for `ltm status`.

A record outlives the heartbeat by a day. So a process that was never started, or was left out on purpose, can be told
from one that is down; and a command that does not know the workers' broker can tell that it does not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from importlib.metadata import version
from typing import Final
from urllib.parse import urlsplit

import redis
from keepsake_client.protocol import process_key
from keepsake_client.sentinel_url import is_sentinel_url
from pydantic import BaseModel, ValidationError

from services.runtime.settings import Settings, hosts_of, mask_url

#: The processes of a stack; tests/unit/test_stack_metrics.py compares them with those of `ltm up`.
PROCESSES: Final = (
    *("long-term-memory-worker", "long-term-memory-writer", "long-term-memory-indexer", "long-term-memory-extractor"),
    *("long-term-memory-adapters", "memory", "chat-ai", "gateway"),
)
#: By which a record says that its process knows the replica, and notes its writes for those that read there.
REPLICA_DEPENDENCY: Final = "PostgreSQL replica"
#: How long after its last heartbeat a process is still expected to run.
EXPECTED_FOR_S = 24 * 3_600


class Dependency(BaseModel):
    """A server, provider or library that a process uses, as the process found it at its start.

    Args:
        detail: its address without a password, its model or the like.
    """

    name: str
    version: str | None = None
    detail: str | None = None


class ProcessRecord(BaseModel):
    """The record of one process.

    Args:
        left_out: `ltm up --without` left it out, and it has not been started since.
        broker: of a process that uses the workers' queues, where these are: a URL without user and password, or ""
            for the pipeline's own Redis.
        engine: of a process that has the default embedder, its engine.
        address: of the gateway, where it listens.
        console: of the gateway, the address of its console for a browser on its machine.
        version: of Keepsake.
        started_at: in seconds since 1970.
        uses: what it depends on.
    """

    left_out: bool = False
    broker: str | None = None
    engine: str | None = None
    address: str | None = None
    console: str | None = None
    version: str | None = None
    started_at: float | None = None
    uses: list[Dependency] = []

    def started(self) -> ProcessRecord:
        """The record of a process that starts now, in this release."""
        return self.model_copy(update={"version": version("keepsake-ltm"), "started_at": time.time()})


def broker_address(settings: Settings) -> str:
    """The broker as a record states it: "" where it is the pipeline's Redis."""
    broker, pipeline = (_without_user(url.get_secret_value()) for url in (settings.broker, settings.redis_url))
    return "" if broker == pipeline else broker


def read_records(client: redis.Redis, names: Iterable[str]) -> dict[str, ProcessRecord]:
    """The records of those processes that have one.

    Raises:
        redis.RedisError: Redis does not answer, or permits it not.
    """
    found = {}
    for name in names:
        raw = client.get(process_key(name))
        if isinstance(raw, bytes) and (record := record_of(raw)):
            found[name] = record
    return found


def record_of(raw: bytes) -> ProcessRecord | None:
    """The record in `raw`; None of a later version, which is as good as none."""
    try:
        return ProcessRecord.model_validate_json(raw)
    except ValidationError:
        return None


def other_broker(client: redis.Redis, settings: Settings, names: Iterable[str]) -> str | None:
    """Where the workers' queues are, where these settings say otherwise; None where they agree, as far as is known.

    Raises:
        redis.ConnectionError, redis.TimeoutError: Redis does not answer.
    """
    try:
        records = read_records(client, names).values()
    except redis.ResponseError:
        return None  # not permitted
    return elsewhere(records, settings)


def elsewhere(records: Iterable[ProcessRecord], settings: Settings) -> str | None:
    """Where the processes of these records say that the workers' queues are, where these settings say otherwise."""
    own, pipeline = broker_address(settings), _without_user(settings.redis_url.get_secret_value())
    for stated in sorted({record.broker for record in records if record.broker is not None}):
        # A host may have one name for the processes, in their containers, and another one here.
        same = _place(own) == _place(stated or pipeline) if own else not stated
        if not same:
            return stated or "the pipeline's Redis"
    return None


def _place(url: str) -> tuple[str, str]:
    """The kind of broker, or Sentinel's service, and the number of the database or the name of the virtual host."""
    if is_sentinel_url(url):
        path = url.partition("://")[2].partition("/")[2].partition("?")[0]
        service, _, database = path.partition("/")
        return service, database or "0"
    parts = urlsplit(hosts_of(url)[0])
    return parts.scheme.removesuffix("s"), parts.path.strip("/") or "0"


def _without_user(url: str) -> str:
    return re.sub(r"(?<=://)[^@/]*@", "", mask_url(url))
