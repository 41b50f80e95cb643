"""Capacity model: what a stack needs for so many users and messages, computed from measured costs.

Pure arithmetic on constants, each with the command that measured it; docs/capacity.md explains the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Literal

from pydantic import BaseModel, Field

from services.stack.processes import (
    ADAPTERS,
    CHAT,
    GATEWAY,
    INDEXER,
    MEMORY,
    POSTGRES,
    REDIS,
    WORKER,
    WRITER,
)

#: The processor of the figures below; another one is slower or faster as a whole.
MEASURED_ON: Final = "an AMD EPYC (family 26) with AVX-512 VNNI, two cores of a virtual machine"
#: The dimensions of the default embedder's vectors. Another embedder's own cost is not in the figures.
DEFAULT_DIMENSIONS: Final = 384
DAY_S: Final = 86_400

# CPU milliseconds, by `python -m bench.latency.costs`: of a search of a user with FEW memories, and with MANY.
FEW: Final = 100
MANY: Final = 2_000
SEARCH_MS: Final = {WORKER: (11.1, 12.1), ADAPTERS: (1.0, 1.0), REDIS: (1.1, 1.1), POSTGRES: (0.9, 2.7)}
#: The part of a search in the worker that is the default embedder's: `bench.latency.roundtrip`, docs/benchmarks.md.
SEARCH_EMBEDDING_MS: Final = 4.5
MESSAGE_MS: Final = {INDEXER: 6.7, ADAPTERS: 0.6, REDIS: 0.4, POSTGRES: 1.0}
#: The part of a message in the indexer that is the default embedder's: `bench.latency.indexing`, docs/benchmarks.md.
MESSAGE_EMBEDDING_MS: Final = 3.4
#: Of a message that a user sends through the memory service and chat-ai answers, its model not included.
TURN_MS: Final = {MEMORY: 1.6, CHAT: 2.7, REDIS: 0.1}
#: Of a search by HTTP, beyond one on the wire.
HTTP_MS: Final = {GATEWAY: 3.1}

# Bytes, by the same command.
WAITING_MESSAGE: Final = 620
CONVERSATION_MESSAGE: Final = 330
TRACE_RECORD: Final = 360
TURN_RECORD: Final = 7_800
READ_OF_A_MEMORY: Final = 97
WAL_OF_A_MESSAGE: Final = 4_300
#: To and from Redis.
NETWORK_OF_A_SEARCH: Final = 25_000
NETWORK_OF_A_MESSAGE: Final = 4_900
#: What the ten best memories of a search take on their way from PostgreSQL, and a message on its way to it.
SHOWN_MEMORIES: Final = 10 * 1_024
STORED_MESSAGE: Final = 2_048

#: Of a memory without its vectors, table and indexes, and for each dimension: `python -m bench.latency.growth`.
#: A vector of two bytes a dimension is in the table, in the index that searches read, and for one memory in seven in
#: that of samples; the indexes' pages are half full where memories come one by one.
MEMORY_TABLE: Final = 1_366
MEMORY_INDEXES: Final = 2_263
#: Of a memory in a backup: docs/deployment.md.
MEMORY_IN_A_BACKUP: Final = 950

# Megabytes of a process alone on its host (RSS), by `python -m bench.latency.costs`.
PROCESS_MB: Final = {WORKER: 210, WRITER: 123, INDEXER: 209, ADAPTERS: 66, MEMORY: 57, CHAT: 82, GATEWAY: 134}

#: How much of its cores a process uses at the peak: a search must not wait, a message may.
SEARCHING_SHARE: Final = 0.6
OTHER_SHARE: Final = 0.8
#: A process uses one core: Python's lock. The memory and chat services are one process each.
SINGLE: Final = (MEMORY, CHAT)
#: Redis's commands run on one core.
REDIS_CORES: Final = 1
#: PostgreSQL's own default.
MAX_CONNECTIONS: Final = 100
#: Threads of a process with a connection each, and one more, by the defaults of the settings.
CONNECTIONS: Final = {WORKER: 2, WRITER: 3, INDEXER: 9}
#: Redis keeps so many records at most, and so many messages of a conversation: the defaults of the settings.
TRACES: Final = 10_000
TURNS: Final = 2_000
CONVERSATION: Final = 200


class Demand(BaseModel):
    """What is asked of a stack.

    Args:
        users: those that are active within a day.
        messages_a_day: of all of them, the AI's replies included; each is a memory.
        searches_per_message: one for every message of a user is 0.5, where the AI answers each.
        peak_factor: how many times the day's average the busiest minutes have.
        days: how long memories are kept.
        dimensions: of the embedder's vectors.
        outage_hours: for how long messages wait in Redis while nothing is indexed, without a loss.
        http_share: of the searches, those that come by the gateway.
        host_cores: of the largest host there is for PostgreSQL.
        host_disk_gb: of the same.
        without: processes that are not run, such as `chat-ai` where yours answers.
    """

    users: int = Field(ge=1)
    messages_a_day: int = Field(ge=1)
    searches_per_message: float = Field(default=0.5, ge=0)
    peak_factor: float = Field(default=4.0, ge=1)
    days: int = Field(default=365, ge=1)
    dimensions: int = Field(default=DEFAULT_DIMENSIONS, ge=1, le=16_000)
    outage_hours: float = Field(default=4.0, ge=0)
    http_share: float = Field(default=0.0, ge=0, le=1)
    host_cores: int = Field(default=32, ge=1)
    host_disk_gb: float = Field(default=4_000.0, gt=0)
    without: tuple[Literal["memory", "chat-ai", "gateway"], ...] = ()


class Need(BaseModel):
    """What one kind of process needs at the peak.

    Args:
        cores: that it uses.
        replicas: processes of one core each, none more than its share of it used; of the servers, 1.
        memory_mb: of all of them; None of PostgreSQL, which uses what there is, see `cached_gb` of the plan.
    """

    name: str
    cores: float
    replicas: int
    memory_mb: float | None


class Limit(BaseModel):
    """What cannot be had more of by running more processes.

    Args:
        used: the share of it that the peak uses; over 1 is too much.
        remedy: what to do where it is reached.
    """

    name: str
    used: float
    remedy: str


class Plan(BaseModel):
    """What a stack needs.

    Args:
        needs: the processes and servers, in the order of `ltm status`.
        cached_gb: of the disk, what searches read, which is best kept in memory.
        first: the limit that is reached first.
        grows: how many times this demand reaches it.
    """

    demand: Demand
    searches_a_second: float
    messages_a_second: float
    memories: int
    memories_per_user: int
    cores: float
    needs: list[Need]
    disk_gb: float
    cached_gb: float
    backup_gb: float
    wal_gb_a_day: float
    redis_mb: float
    stream_max_len: int
    network_mbit: float
    connections: int
    limits: list[Limit]
    first: str
    grows: float


def memory_bytes(dimensions: int) -> float:
    """The bytes of a memory on disk, table and indexes."""
    return sum(table_and_indexes(dimensions))


def table_and_indexes(dimensions: int) -> tuple[float, float]:
    """The bytes of a memory in the table, and in its indexes."""
    further = 2 * (dimensions - DEFAULT_DIMENSIONS)
    return MEMORY_TABLE + further, MEMORY_INDEXES + further * (1 + 1 / 7) * HALF_FULL


#: How much larger an index is whose pages are half to three quarters full.
HALF_FULL: Final = 1.5


def plan(demand: Demand) -> Plan:
    """What a stack needs for this demand."""
    messages = demand.messages_a_day / DAY_S * demand.peak_factor
    searches = messages * demand.searches_per_message
    memories = demand.messages_a_day * demand.days
    per_user = math.ceil(memories / demand.users)
    cores = _cores(demand, searches, messages, per_user)
    stream = math.ceil(demand.messages_a_day * demand.outage_hours / 24)
    redis_mb = _redis_mb(demand, stream)
    table, indexes = (part * memories / 1e9 for part in table_and_indexes(demand.dimensions))
    needs = [_need(name, used, redis_mb) for name, used in cores.items()]
    connections = sum(CONNECTIONS.get(need.name, 0) * need.replicas for need in needs)
    # Rows that are dead until the next vacuum, and the largest index once more while it is rebuilt.
    disk = (table + indexes) * 1.2 + indexes
    limits = sorted(_limits(demand, cores, disk, connections), key=lambda limit: -limit.used)
    return Plan(
        demand=demand,
        searches_a_second=searches,
        messages_a_second=messages,
        memories=memories,
        memories_per_user=per_user,
        cores=sum(cores.values()),
        needs=needs,
        disk_gb=disk,
        cached_gb=indexes,
        backup_gb=memories * MEMORY_IN_A_BACKUP / 1e9,
        wal_gb_a_day=demand.messages_a_day * WAL_OF_A_MESSAGE / 1e9,
        redis_mb=redis_mb,
        stream_max_len=stream,
        network_mbit=_network_bytes(searches, messages, per_user) * 8 / 1e6,
        connections=connections,
        limits=limits,
        first=limits[0].name,
        grows=1 / limits[0].used,
    )


def _cores(demand: Demand, searches: float, messages: float, per_user: int) -> dict[str, float]:
    """The cores that each kind of process uses at the peak."""
    turns = messages / 2
    milliseconds: dict[str, float] = {REDIS: 0.0, POSTGRES: 0.0, WORKER: 0.0, WRITER: 0.0, INDEXER: 0.0, ADAPTERS: 0.0}
    other = demand.dimensions != DEFAULT_DIMENSIONS  # another embedder, whose cost is elsewhere
    for name, (few, many) in SEARCH_MS.items():
        a_memory = max(0.0, many - few) / (MANY - FEW)
        cost = few + a_memory * (per_user - FEW) - (SEARCH_EMBEDDING_MS if other and name == WORKER else 0.0)
        milliseconds[name] += searches * max(cost, 0.0)
    for name, cost in MESSAGE_MS.items():
        milliseconds[name] += messages * (cost - (MESSAGE_EMBEDDING_MS if other and name == INDEXER else 0.0))
    for name, cost in TURN_MS.items():
        if name not in demand.without:
            milliseconds[name] = milliseconds.get(name, 0.0) + turns * cost
    if GATEWAY not in demand.without:
        milliseconds[GATEWAY] = searches * demand.http_share * HTTP_MS[GATEWAY]
    return {name: value / 1000 for name, value in milliseconds.items()}


def _need(name: str, cores: float, redis_mb: float) -> Need:
    if name == REDIS:
        return Need(name=name, cores=cores, replicas=1, memory_mb=redis_mb)
    if name == POSTGRES:
        return Need(name=name, cores=cores, replicas=1, memory_mb=None)
    share = SEARCHING_SHARE if name in (WORKER, GATEWAY) else OTHER_SHARE
    replicas = 1 if name in SINGLE else max(1, math.ceil(cores / share))
    return Need(name=name, cores=cores, replicas=replicas, memory_mb=replicas * PROCESS_MB[name])


def _redis_mb(demand: Demand, stream: int) -> float:
    kept = min(CONVERSATION, demand.messages_a_day / demand.users) * demand.users * CONVERSATION_MESSAGE
    records = TRACES * TRACE_RECORD + TURNS * TURN_RECORD
    return (records + stream * WAITING_MESSAGE + (0 if MEMORY in demand.without else kept)) / 1e6


def _network_bytes(searches: float, messages: float, per_user: int) -> float:
    """Bytes a second at the peak, to and from Redis and PostgreSQL."""
    of_a_search = NETWORK_OF_A_SEARCH + per_user * READ_OF_A_MEMORY + SHOWN_MEMORIES
    return searches * of_a_search + messages * (NETWORK_OF_A_MESSAGE + STORED_MESSAGE)


def _limits(demand: Demand, cores: dict[str, float], disk_gb: float, connections: int) -> Iterable[Limit]:
    yield Limit(
        name="Redis's one core",
        used=cores[REDIS] / (REDIS_CORES * OTHER_SHARE),
        remedy="put the workers' queues elsewhere with BROKER_URL",
    )
    yield Limit(
        name="PostgreSQL's cores",
        used=cores[POSTGRES] / (demand.host_cores * SEARCHING_SHARE),
        remedy="search on replicas, or distribute the tables by user",
    )
    yield Limit(
        name="PostgreSQL's disk",
        used=disk_gb / demand.host_disk_gb,
        remedy="keep memories for a shorter time with LTM_RETENTION_DAYS, or distribute the tables by user",
    )
    yield Limit(
        name="PostgreSQL's connections",
        used=connections / MAX_CONNECTIONS,
        remedy="raise max_connections, or fewer processes with more threads",
    )
    for name in (MEMORY, CHAT):
        if name in cores:
            yield Limit(
                name=f"the one process of {name}",
                used=cores[name] / OTHER_SHARE,
                remedy="run a service of your own in its place, or one stack for a part of the users",
            )
