"""The metrics of the whole stack, read at each scrape: what waits, what was counted, which processes run.

From Redis, and where the workers' queues are on RabbitMQ, from its management API.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import redis
import redis.asyncio
import structlog
from keepsake_client.protocol import COUNTERS, REJECTED_STREAM, STREAM_GROUP, alive_key, instances_key, process_key
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import ValidationError

from services.runtime.errors import StackError
from services.runtime.instances import instances_of
from services.runtime.logging import redact
from services.runtime.process_record import PROCESSES, ProcessRecord, elsewhere, record_of
from services.runtime.queues import depth_commands, depths_of
from services.runtime.rabbitmq import ManagementApi
from services.runtime.redis import connect_async
from services.runtime.settings import Settings

#: A scrape ends after so long, whatever Redis and RabbitMQ do; Prometheus waits 10 s.
SCRAPE_TIMEOUT_S: Final = 2.0
#: Of each host of RabbitMQ: where one swallows packets, the next one is asked within a scrape.
RABBITMQ_TIMEOUT_S: Final = SCRAPE_TIMEOUT_S / 2
#: Of `keepsake_queue_messages`.
_STATES: Final = ("waiting", "working", "delayed", "dead")
#: Counters that are shown as 0 before they are first counted: an alert on their increase would miss the first.
ALARMING: Final = (
    *("rejected", "log_trimmed_unread", "backlog_over", "updates_lost", "ai_responses_lost", "chat_messages_missed"),
    *("responses_not_published", "subscriptions_replaced", "extraction_failed", "messages_set_aside"),
    "worker_outdated",
)
#: Of names in the hash of counters, which other programs may write, too.
_COUNTER: Final = re.compile(r"[a-z][a-z_]{0,39}")
MAX_COUNTERS: Final = 100

log = structlog.get_logger()


@dataclass(eq=False)  # a registry holds it by identity
class StackFigures:
    """What was read of a stack; what could not be read is left out, and named in `unseen`, with the reason.

    Args:
        backlog: events of the stream that wait to be dispatched, the oldest of them for `oldest_s` seconds.
        lists: items by list.
        queues: messages by queue and state.
        processes: of those that are expected to run, whether they do.
        elsewhere: where the processes say that the workers' queues are, where the settings say otherwise.
        instances: how many of each name have a heartbeat, on all hosts.
    """

    up: bool = False
    backlog: int | None = None
    oldest_s: float | None = None
    lists: dict[str, int] = field(default_factory=dict)
    queues: dict[str, dict[str, int]] = field(default_factory=dict)
    rejected: int | None = None
    counters: dict[str, int] = field(default_factory=dict)
    processes: dict[str, bool] = field(default_factory=dict)
    elsewhere: str | None = None
    instances: dict[str, int] = field(default_factory=dict)
    unseen: dict[str, str] = field(default_factory=dict)

    def sees(self, part: str, *replies: Any) -> bool:
        """Whether none of these replies is an error, such as of a missing permission; notes the part otherwise."""
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        if errors:
            self.unseen[part] = redact(errors[0])
        return not errors

    def collect(self) -> Iterator[Metric]:
        """The figures as metrics, as a collector of prometheus_client gives them."""
        yield GaugeMetricFamily("keepsake_up", "Whether the pipeline's Redis answers.", value=self.up)
        yield _gauge("keepsake_backlog_messages", "Messages that wait to be dispatched.", self.backlog)
        yield _gauge("keepsake_backlog_oldest_seconds", "For how long the oldest of them waits.", self.oldest_s)
        yield _gauge("keepsake_rejected_entries", "Entries of ltm:rejected.", self.rejected)
        yield _by_label("keepsake_list_length", "Items that wait in a list of the wire.", "list", self.lists)
        yield _by_label("keepsake_process_up", "Whether a process has a heartbeat.", "process", self.processes)
        yield _by_label("keepsake_instances", "Processes of one name with a heartbeat.", "process", self.instances)
        yield _by_label("keepsake_unseen", "1 for what could not be read.", "part", dict.fromkeys(self.unseen, 1))
        queues = GaugeMetricFamily(
            "keepsake_queue_messages", "Messages of the workers' queues.", labels=["queue", "state"]
        )
        for queue, states in self.queues.items():
            for state, number in states.items():
                queues.add_metric([queue, state], number)
        yield queues
        counters = CounterMetricFamily("keepsake_counter", "Counts of ltm:counters.", labels=["counter"])
        for name, number in self.counters.items():
            counters.add_metric([name], number)
        yield counters


class StackReader:
    """Reads the figures of a stack, within a time limit and in few round trips.

    Args:
        client: connects to the pipeline's Redis.
    """

    def __init__(self, settings: Settings, client: redis.asyncio.Redis) -> None:
        self._client: Any = client  # redis-py's types of replies are those of every protocol at once
        self._settings = settings
        self._stream = settings.ltm_stream_key
        self._unseen: set[str] = set()
        names = ("requests", "manage_requests")
        self._lists = {
            "user_input": settings.user_input_queue,
            **dict(zip(names, settings.request_queues, strict=False)),
        }
        url = settings.broker.get_secret_value()
        self._own_broker = url != settings.redis_url.get_secret_value()
        self._rabbitmq = ManagementApi(settings, RABBITMQ_TIMEOUT_S) if url.startswith("amqp") else None
        self._broker: Any = client
        if self._own_broker and self._rabbitmq is None:
            self._broker = connect_async(url, SCRAPE_TIMEOUT_S)

    async def read(self, timeout_s: float = SCRAPE_TIMEOUT_S) -> StackFigures:
        """The figures; of a Redis that does not answer in time, that it does not."""
        figures = StackFigures()
        await asyncio.gather(self._read_redis(figures, timeout_s), self._read_own_broker(figures, timeout_s))
        if figures.elsewhere:
            figures.queues = {}
            figures.unseen["queues"] = (
                f"the workers' queues are on {figures.elsewhere}: set BROKER_URL of the gateway as for the processes"
            )
        for part in figures.unseen.keys() - self._unseen:  # once, however often it is scraped
            log.warning("scrape_incomplete", part=part, reason=figures.unseen[part])
        for part in self._unseen - figures.unseen.keys():
            log.info("scrape_complete", part=part)
        self._unseen = set(figures.unseen)
        return figures

    async def _read_redis(self, figures: StackFigures, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._client.ping()
                figures.up = True
                await self._read_pipeline(figures)
                if not self._own_broker:
                    await self._read_queues(figures)
        except (redis.RedisError, OSError) as error:  # TimeoutError is an OSError
            figures.sees("redis", error)

    async def _read_own_broker(self, figures: StackFigures, timeout_s: float) -> None:
        """Read the queues of a broker that is not the pipeline's Redis: either may be away without the other."""
        if not self._own_broker:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._read_queues(figures)
        except (redis.RedisError, OSError, StackError) as error:
            figures.sees("queues", error)

    async def _read_pipeline(self, figures: StackFigures) -> None:
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.xinfo_groups(self._stream)
            pipeline.xlen(REJECTED_STREAM)
            pipeline.hgetall(COUNTERS)
            for name in self._lists.values():
                pipeline.llen(name)
            for process in PROCESSES:
                pipeline.exists(alive_key(process))
                pipeline.get(process_key(process))
                pipeline.zrange(instances_key(process), 0, -1, withscores=True)
            pipeline.time()
            groups, rejected, counters, *rest, now = await pipeline.execute(raise_on_error=False)
        lengths, each = rest[: len(self._lists)], rest[len(self._lists) :]
        alive, records, members = each[::3], each[1::3], each[2::3]
        if figures.sees("counters", counters):
            figures.counters = _counters(counters)
        if figures.sees("rejected", rejected):
            figures.rejected = rejected
        if figures.sees("lists", *lengths):
            figures.lists = dict(zip(self._lists, lengths, strict=True))
        if figures.sees("processes", *alive, *records):
            # Of one that was stopped before a move of the queues, the record says for a day where they were.
            known = [record_of(record) for beats, record in zip(alive, records, strict=True) if beats and record]
            figures.elsewhere = elsewhere([record for record in known if record is not None], self._settings)
            # One of an earlier release has a heartbeat, and no place among the instances.
            live = [
                max(beats, sum(instances_of(found, now).live.values()))
                for beats, found in zip(alive, members, strict=True)
            ]
            states = [each for each in zip(PROCESSES, live, records, strict=True) if _expected(each[-1])]
            figures.processes = {process: number > 0 for process, number, _ in states}
            if figures.sees("instances", now, *members):
                figures.instances = {process: number for process, number, _ in states}
        await self._read_stream(figures, groups)

    async def _read_stream(self, figures: StackFigures, groups: Any) -> None:
        if isinstance(groups, redis.ResponseError) and "no such key" in str(groups):
            figures.backlog, figures.oldest_s = 0, 0.0  # there is no stream yet
            return
        if not figures.sees("backlog", groups):
            return
        # Before the first adapter there is no group: all of the stream waits.
        before: dict[str, Any] = {"name": STREAM_GROUP.encode(), "last-delivered-id": b"0-0", "pending": 0, "lag": None}
        [group] = [group for group in groups if group["name"] == before["name"]] or [before]
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.xlen(self._stream)
            pipeline.xrange(self._stream, min=b"(" + group["last-delivered-id"], max="+", count=1)
            pipeline.time()
            if group["pending"]:
                pipeline.xpending(self._stream, STREAM_GROUP)
            length, unread, now, *pending = await pipeline.execute(raise_on_error=False)
        if not figures.sees("backlog", length, unread, now, *pending):
            return
        figures.backlog = length if group is before else int(group["pending"]) + int(group.get("lag") or 0)
        ids = [entry_id for entry_id, _ in unread] + [found["min"] for found in pending if found["min"]]
        seconds = now[0] + now[1] / 1e6
        oldest = min((int(entry_id.partition(b"-")[0]) / 1000 for entry_id in ids), default=seconds)
        figures.oldest_s = max(0.0, seconds - oldest)

    async def _read_queues(self, figures: StackFigures) -> None:
        if self._rabbitmq is not None:
            report = await self._rabbitmq.queues()
            figures.queues = {
                queue: {state: depths[state] for state in _STATES} for queue, depths in report.depths.items()
            }
            if report.unknown:
                figures.unseen["queues"] = "; ".join(report.unknown.values())
            return
        async with self._broker.pipeline(transaction=False) as pipeline:
            depth_commands(pipeline)
            replies = await pipeline.execute(raise_on_error=False)
        if figures.sees("queues", *replies):
            figures.queues = depths_of(replies)


def _counters(found: dict[bytes, bytes]) -> dict[str, int]:
    names = sorted(name.decode("ascii", "replace") for name, number in found.items() if number.isdigit())
    others = [name for name in names if _COUNTER.fullmatch(name) and name not in ALARMING]
    return {name: int(found.get(name.encode(), 0)) for name in (*ALARMING, *others[:MAX_COUNTERS])}


def _expected(record: bytes | None) -> bool:
    """Whether a process has run within a day, and was not left out since."""
    if record is None:
        return False
    try:
        return not ProcessRecord.model_validate_json(record).left_out
    except ValidationError:
        return True  # of a later version


def _gauge(name: str, documentation: str, value: float | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=value)


def _by_label(name: str, documentation: str, label: str, values: dict[str, Any]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
