"""Capacity model: what a stack needs for so many users and messages, computed from measured costs.

Pure arithmetic on the constants of `services/stack/costs.py`; docs/capacity.md explains the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal

from pydantic import BaseModel, Field

from services.stack import costs
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

DAY_S: Final = 86_400

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
#: Redis keeps so many records at most, so many messages of a conversation, and so many of the stream for so long, read
#: or not: the defaults of the settings.
TRACES: Final = 10_000
TURNS: Final = 2_000
CONVERSATION: Final = 200
STREAM: Final = 100_000
STREAM_DAYS: Final = 7
#: In so many tables are the memories, by default, of which one is vacuumed or its index rebuilt at a time.
PARTITIONS: Final = 16
#: Of a user with more memories, a search reads fewer than this.
READ_AT_MOST: Final = 100_000
#: Where one PostgreSQL, or one process, is not enough.
ONE_STACK_EACH: Final = "one stack for a part of the users"
#: How much larger an index is whose pages are half to three quarters full.
HALF_FULL: Final = 1.5


class Demand(BaseModel):
    """What is asked of a stack.

    Args:
        users: those that are active within a day.
        messages_a_day: of all of them, the AI's replies included; each is a memory.
        searches_per_message: one for every message of a user is 0.5, where the AI answers each.
        peak_factor: how many times the day's average the busiest minutes have.
        days: how long memories are kept.
        dimensions: of the embedder's vectors.
        outage_hours: for how long messages can wait in Redis, at any time of day, while nothing is indexed.
        http_share: of the searches, those that come by the gateway.
        host_cores: of the largest host there is for PostgreSQL.
        host_disk_gb: of the same.
        without: processes that are not run, such as `chat-ai` where yours answers.
    """

    users: int = Field(ge=1, le=10_000_000_000)
    messages_a_day: int = Field(ge=1, le=1_000_000_000_000)
    searches_per_message: float = Field(default=0.5, ge=0, le=100)
    peak_factor: float = Field(default=4.0, ge=1, le=1_000)
    days: int = Field(default=365, ge=1, le=36_500)
    dimensions: int = Field(default=costs.DEFAULT_DIMENSIONS, ge=1, le=16_000)
    outage_hours: float = Field(default=4.0, ge=0, le=720)
    http_share: float = Field(default=0.0, ge=0, le=1)
    host_cores: int = Field(default=32, ge=1, le=4_096)
    host_disk_gb: float = Field(default=4_000.0, ge=1, le=1_000_000)
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
        grows: how many times this demand reaches it, of users who say as much each.
        remedy: what to do where it is reached.
    """

    name: str
    used: float
    grows: float
    remedy: str


class Plan(BaseModel):
    """What a stack needs.

    Args:
        needs: the processes and servers, in the order of `ltm status`.
        cached_gb: of the disk, what searches read, which is best kept in memory.
        stream_max_len: to be set as LTM_STREAM_MAX_LEN; not less than its default.
        limits: the first to be reached comes first.
        first: the name of that one.
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
    further = 2 * (dimensions - costs.DEFAULT_DIMENSIONS)
    return costs.MEMORY_TABLE + further, costs.MEMORY_INDEXES + further * (1 + 1 / 7) * HALF_FULL


def plan(demand: Demand) -> Plan:
    """What a stack needs for this demand."""
    messages = demand.messages_a_day / DAY_S * demand.peak_factor
    searches = messages * demand.searches_per_message
    memories = demand.messages_a_day * demand.days
    per_user = math.ceil(memories / demand.users)
    cores = _cores(demand, searches, messages, per_user)
    stream = max(STREAM, _messages_of_an_outage(demand))
    redis_mb = _redis_mb(demand, stream)
    table, indexes = (part * memories / 1e9 for part in table_and_indexes(demand.dimensions))
    needs = [_need(name, used, redis_mb) for name, used in cores.items()]
    # Rows that are dead until the next vacuum, and the indexes of a partition once more while one is rebuilt.
    disk = (table + indexes) * 1.2 + indexes / PARTITIONS
    limits = sorted(_limits(demand, cores, disk), key=lambda limit: limit.grows)
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
        backup_gb=memories * costs.MEMORY_IN_A_BACKUP / 1e9,
        wal_gb_a_day=demand.messages_a_day * costs.WAL_OF_A_MESSAGE / 1e9,
        redis_mb=redis_mb,
        stream_max_len=stream,
        network_mbit=_network_bytes(searches, messages, per_user) * 8 / 1e6,
        connections=_connections(cores),
        limits=limits,
        first=limits[0].name,
        grows=limits[0].grows,
    )


def _cores(demand: Demand, searches: float, messages: float, per_user: int) -> dict[str, float]:
    """The cores that each kind of process uses at the peak."""
    turns = messages / 2
    milliseconds: dict[str, float] = {REDIS: 0.0, POSTGRES: 0.0, WORKER: 0.0, WRITER: 0.0, INDEXER: 0.0, ADAPTERS: 0.0}
    other = demand.dimensions != costs.DEFAULT_DIMENSIONS  # another embedder, whose cost is elsewhere
    read = min(per_user, READ_AT_MOST)
    for name, (few, many) in costs.SEARCH_MS.items():
        a_memory = max(0.0, many - few) / (costs.MANY - costs.FEW)
        cost = few + a_memory * (read - costs.FEW) - (costs.SEARCH_EMBEDDING_MS if other and name == WORKER else 0.0)
        milliseconds[name] += searches * max(cost, 0.0)
    for name, cost in costs.MESSAGE_MS.items():
        milliseconds[name] += messages * (cost - (costs.MESSAGE_EMBEDDING_MS if other and name == INDEXER else 0.0))
    for name, cost in costs.TURN_MS.items():
        if name not in demand.without:
            milliseconds[name] = milliseconds.get(name, 0.0) + turns * cost
    if GATEWAY not in demand.without:
        milliseconds[GATEWAY] = searches * demand.http_share * costs.HTTP_MS[GATEWAY]
    return {name: value / 1000 for name, value in milliseconds.items()}


def _need(name: str, cores: float, redis_mb: float) -> Need:
    replicas = _replicas(name, cores)
    memory_mb = {REDIS: redis_mb, POSTGRES: None}.get(name, replicas * costs.PROCESS_MB.get(name, 0))
    return Need(name=name, cores=cores, replicas=replicas, memory_mb=memory_mb)


def _replicas(name: str, cores: float) -> int:
    if name in (REDIS, POSTGRES, *SINGLE):
        return 1
    return max(1, math.ceil(cores / (SEARCHING_SHARE if name in (WORKER, GATEWAY) else OTHER_SHARE)))


def _connections(cores: Mapping[str, float], times: float = 1.0) -> int:
    """The connections to PostgreSQL of the processes for so many times this demand."""
    return sum(CONNECTIONS.get(name, 0) * _replicas(name, used * times) for name, used in cores.items())


def _messages_of_an_outage(demand: Demand) -> int:
    """The messages that wait after an outage: those of its peak, or of whole days where these are fewer."""
    days = min(demand.outage_hours / 24 * demand.peak_factor, math.ceil(demand.outage_hours / 24))
    return math.ceil(demand.messages_a_day * days)


def _redis_mb(demand: Demand, stream: int) -> float:
    kept = min(CONVERSATION, demand.messages_a_day / demand.users) * demand.users * costs.CONVERSATION_MESSAGE
    records = TRACES * costs.TRACE_RECORD + TURNS * costs.TURN_RECORD
    stream = min(stream, demand.messages_a_day * STREAM_DAYS)
    return (records + stream * costs.WAITING_MESSAGE + (0 if MEMORY in demand.without else kept)) / 1e6


def _network_bytes(searches: float, messages: float, per_user: int) -> float:
    """Bytes a second at the peak, to and from Redis and PostgreSQL."""
    of_a_search = (
        costs.NETWORK_OF_A_SEARCH + min(per_user, READ_AT_MOST) * costs.READ_OF_A_MEMORY + costs.SHOWN_MEMORIES
    )
    return searches * of_a_search + messages * (costs.NETWORK_OF_A_MESSAGE + costs.STORED_MESSAGE)


def _limits(demand: Demand, cores: Mapping[str, float], disk_gb: float) -> Iterable[Limit]:
    yield _proportional(
        "Redis's one core",
        cores[REDIS] / (REDIS_CORES * OTHER_SHARE),
        "put the workers' queues elsewhere with BROKER_URL",
    )
    yield _proportional(
        "PostgreSQL's cores",
        cores[POSTGRES] / (demand.host_cores * SEARCHING_SHARE),
        f"a host with more cores, or {ONE_STACK_EACH}",
    )
    yield _proportional(
        "PostgreSQL's disk",
        disk_gb / demand.host_disk_gb,
        f"keep memories for a shorter time with LTM_RETENTION_DAYS, or {ONE_STACK_EACH}",
    )
    yield Limit(
        name="PostgreSQL's connections",
        used=_connections(cores) / MAX_CONNECTIONS,
        grows=_largest(lambda times: _connections(cores, times) <= MAX_CONNECTIONS),
        remedy="raise max_connections, or fewer processes with more threads",
    )
    for name in SINGLE:
        if name in cores:
            yield _proportional(
                f"the one process of {name}",
                cores[name] / OTHER_SHARE,
                f"run a service of your own in its place, or {ONE_STACK_EACH}",
            )


def _proportional(name: str, used: float, remedy: str) -> Limit:
    """A limit of which twice the demand uses twice as much."""
    return Limit(name=name, used=used, grows=1 / used, remedy=remedy)


def _largest(holds: Callable[[float], bool]) -> float:
    """The largest number for which this holds, which holds for smaller ones and not for all."""
    low, high = 0.0, 1.0
    while holds(high):
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
