"""Status of a stack: which servers and processes answer, what waits where, and what cannot be seen, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import tzinfo
from functools import partial
from typing import Any, TypeVar

import redis
from keepsake_client.protocol import COUNTERS, alive_key, instances_key
from keepsake_client.refusals import refuses_writes
from redis.exceptions import NoPermissionError

from services.long_term_memory.extraction import report as extraction
from services.long_term_memory.postgres.pool import reachable
from services.long_term_memory.postgres.replica_status import replica_status
from services.runtime.errors import StackError
from services.runtime.instances import instances_of
from services.runtime.logging import redact
from services.runtime.process_record import REPLICA_DEPENDENCY, ProcessRecord, other_broker, read_records
from services.runtime.queues import EXTRACT_QUEUE, queue_depths
from services.runtime.rabbitmq import ManagementApi
from services.runtime.redis import connect
from services.runtime.settings import mask_url
from services.stack.locate import FoundStack
from services.stack.probe import probe
from services.stack.processes import ADAPTERS, EXTRACTOR, OPTIONAL, POSTGRES, REDIS, REPLICA, SERVICES, WORKER, WRITING
from services.stack.readiness import stream_backlog
from services.stack.status_report import NOT_OK, Extraction, Part, StatusReport

#: Of each server and of the search: with a server that is frozen, the report takes a few of them.
TIMEOUT_S = 2.0
#: A script that may write and writes nothing. Redis 7 and Valkey refuse it while they refuse writes; 6.2 does not.
_WRITE_CHECK = "#!lua\nreturn 1"

T = TypeVar("T")


class StatusReader:
    """Reads the status of a stack. A Redis that does not answer is waited for once.

    Args:
        timeout_s: of each server and of the search.
    """

    def __init__(self, stack: FoundStack, timeout_s: float = TIMEOUT_S) -> None:
        self._stack = stack
        self._timeout_s = timeout_s
        self._client = connect(stack.redis_url, timeout_s)
        self._redis_down: str | None = None
        self._no_heartbeat = "no heartbeat"
        self._unseen: list[str] = []

    @property
    def timezone(self) -> tzinfo:
        """The time zone that dates are shown in."""
        return self._stack.settings.timezone

    def part(self, name: str) -> Part:
        """The state of one server, or of one process by its heartbeat alone."""
        if name == POSTGRES:
            return self._postgres()
        part = self._redis()
        return part if name == REDIS else self._heartbeat(name)

    def report(self) -> StatusReport:
        """The whole status."""
        settings = self._stack.settings
        report = StatusReport(stream=settings.ltm_stream_key)
        report.parts = [self._writable(self._redis()), self._postgres(), *self._replica(), *self._services()]
        report.search = self._search({part.name: part for part in report.parts})
        for name in (settings.user_input_queue, *settings.request_queues):
            waiting: Any = self._seen(f"LLEN {name}", partial(self._client.llen, name))
            if waiting is not None:
                report.lists[name] = waiting
        stream = settings.ltm_stream_key
        report.not_dispatched = self._seen(f"XINFO GROUPS {stream}", lambda: stream_backlog(self._client, stream))
        counters: Any = self._seen(f"HGETALL {COUNTERS}", partial(self._client.hgetall, COUNTERS)) or {}
        report.counters = {name.decode(): int(count) for name, count in sorted(counters.items())}
        self._add_queues(report)
        self._add_unnoted(report)
        if self._extracts(report):
            report.extraction = self._extraction(report)
        else:
            report.queues.pop(EXTRACT_QUEUE, None)
        report.unseen = self._unseen
        parts = [*report.parts, report.search]
        stopped = report.extraction is not None and report.extraction.state == "stopped"
        report.ok = not (report.unseen or stopped or any(part.state in NOT_OK for part in parts))
        return report

    def _redis(self) -> Part:
        part = Part(name=REDIS, state="answers", address=mask_url(self._stack.redis_url))
        try:
            self._client.ping()
        except redis.AuthenticationError as error:
            self._redis_down = part.detail = redact(error)
            part.state = "unknown"
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            self._redis_down = part.detail = redact(error)
            part.state = "down"
        except redis.ResponseError:
            pass  # it answers: what this user may not do, the other lines say
        return part

    def _writable(self, part: Part) -> Part:
        """Redis, checked for a refusal of all writes: it refuses the heartbeats, too."""
        if self._redis_down:
            return part
        try:
            self._client.register_script(_WRITE_CHECK)()
        except redis.ResponseError as error:
            if refuses_writes(error):
                part.state, part.detail = "refuses writes", redact(error)
                self._no_heartbeat = "no heartbeat, which Redis refuses"
        except (redis.RedisError, OSError) as error:
            self._redis_down = part.detail = redact(error)
            part.state = "down"
        return part

    def _postgres(self) -> Part:
        url = self._stack.settings.database_url.get_secret_value()
        if not self._stack.database_known:
            return Part(name=POSTGRES, state="not checked", detail="DATABASE_URL is not set")
        answers = reachable(url, self._timeout_s)
        return Part(name=POSTGRES, state="answers" if answers else "down", address=mask_url(url))

    def _replica(self) -> list[Part]:
        """The replica that searches read, where there is one."""
        settings = self._stack.settings
        if settings.database_read_url is None:
            return []
        url = settings.database_read_url.get_secret_value()
        usable, detail = replica_status(settings.database_url.get_secret_value(), url, self._timeout_s)
        return [Part(name=REPLICA, state="answers" if usable else "down", address=mask_url(url), detail=detail)]

    def _services(self) -> list[Part]:
        parts = [
            Part(name=name, state="left out") if name in self._stack.without else self._heartbeat(name)
            for name in (*SERVICES, EXTRACTOR)
        ]
        try:
            records = read_records(self._client, [part.name for part in parts if part.state in ("answers", "down")])
        except redis.RedisError:
            return parts if self._stack.settings.extracts else parts[:-1]  # not permitted: no heartbeat is down
        if not self._stack.settings.extracts and EXTRACTOR not in records:
            parts.pop()  # as far as is known here, none is to run
        for part in parts:
            record = records.get(part.name, ProcessRecord())
            if part.state == "answers":
                part.address = record.address
                part.detail = record.engine and f"embedder engine {record.engine}"
                if record.console:
                    part.detail = f"console {record.console}"
            elif part.state != "down":
                continue
            elif record.left_out:
                part.state, part.detail = "left out", None
            elif part.name in OPTIONAL and part.name not in records:
                part.state, part.detail = "not running", "it has not run on this Redis within a day"
        return parts

    def _heartbeat(self, name: str) -> Part:
        if self._redis_down:
            return Part(name=name, state="unknown", detail="Redis does not answer")
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.get(alive_key(name))
                pipeline.zrange(instances_key(name), 0, -1, withscores=True)
                pipeline.time()
                alive, members, now = pipeline.execute(raise_on_error=False)
        except (redis.RedisError, OSError) as error:
            self._redis_down = redact(error)
            return Part(name=name, state="unknown", detail=self._redis_down)
        if isinstance(alive, NoPermissionError):
            return Part(name=name, state="unknown", detail=f"no permission for GET {alive_key(name)}")
        if isinstance(alive, Exception):
            return Part(name=name, state="unknown", detail=redact(alive))
        instances = instances_of(members, now)
        # One that was stopped has removed the key of all; the next of them sets it again within a second.
        if alive or instances.live:
            return Part(name=name, state="answers", instances=instances)
        detail = self._no_heartbeat + (f": {instances}" if instances.silent else "")
        return Part(name=name, state="down", detail=detail, instances=instances)

    def _search(self, parts: dict[str, Part]) -> Part:
        name = "a search over the wire"
        missing = [part.name for part in (parts[WORKER], parts[ADAPTERS]) if part.state in ("down", "left out")]
        if self._redis_down or missing:
            needs = "Redis" if self._redis_down else " and ".join(missing)
            return Part(name=name, state="not checked", detail=f"it needs {needs}")
        problem = probe(self._stack.settings, self._timeout_s)
        if problem and "NoPermissionError" in problem:
            requests = self._stack.settings.ltm_requests_queue
            return Part(name=name, state="unknown", detail=f"no permission for LPUSH {requests}, or for its responses")
        return Part(name=name, state="down", detail=problem) if problem else Part(name=name, state="answers")

    def _extracts(self, report: StatusReport) -> bool:
        return self._stack.settings.extracts or any(part.name == EXTRACTOR for part in report.parts)

    def _extraction(self, report: StatusReport) -> Extraction | None:
        """The report on extraction; where it cannot be seen, None, and why."""
        if any(part.name == POSTGRES and part.state != "answers" for part in report.parts):
            return None  # which the line of PostgreSQL says
        found = extraction.report_of(self._stack.settings.database_url.get_secret_value(), self._timeout_s)
        if isinstance(found, str):
            self._unseen.append(f"extraction: {found}")
            return None
        return Extraction(**asdict(found))

    def _add_unnoted(self, report: StatusReport) -> None:
        """Name the workers whose writes are not noted, where others read the replica."""
        alive = {part.name for part in report.parts if part.state == "answers"}
        try:
            records = read_records(self._client, alive.intersection((WORKER, *WRITING)))
        except (redis.RedisError, OSError):
            return  # not permitted, or what the other lines say
        noting = {
            name for name, record in records.items() if any(used.name == REPLICA_DEPENDENCY for used in record.uses)
        }
        if noting and (others := [name for name in WRITING if name in records.keys() - noting]):
            report.notes.append(
                f"without DATABASE_READ_URL: {', '.join(others)}; a user may not find at once what is written there:"
                " set it, and start again"
            )

    def _add_queues(self, report: StatusReport) -> None:
        if self._redis_down:
            return
        settings = self._stack.settings
        url = settings.broker.get_secret_value()
        try:
            elsewhere = other_broker(self._client, settings, SERVICES)
        except (redis.RedisError, OSError) as error:
            self._unseen.append(f"the workers' queues: {redact(error)}")
            return
        if elsewhere is not None:
            report.notes.append(
                f"the workers' queues are on {elsewhere}, which is not looked into:"
                f" BROKER_URL is {'another one' if settings.broker_url else 'not set'} here"
            )
        elif url.startswith("amqp"):
            self._add_rabbitmq(report)
        else:
            broker = connect(url, self._timeout_s)
            report.queues = self._seen("the workers' queues, LLEN and HLEN", lambda: queue_depths(broker)) or {}

    def _add_rabbitmq(self, report: StatusReport) -> None:
        try:
            found = ManagementApi(self._stack.settings, self._timeout_s).report()
        except StackError as error:
            report.notes.append(f"the queues on {mask_url(self._stack.settings.broker.get_secret_value())}: {error}")
            return
        report.queues = found.depths
        report.notes += [f"the queue {name}: its depth is not known: {why}" for name, why in found.unknown.items()]
        for name, (state, detail) in found.nodes.items():
            report.parts.append(Part(name=f"RabbitMQ {name}", state=state, detail=detail))
        for name, detail in found.without_majority.items():
            report.parts.append(Part(name=f"queue {name}", state="down", detail=f"no majority: {detail}"))
        if found.not_replicated:
            report.notes.append(
                f"no quorum queues, but of an earlier version: {', '.join(found.not_replicated)};"
                " each is replaced when the workers start while it is empty"
            )

    def _seen(self, command: str, read: Callable[[], T]) -> T | None:
        """What a command reads, or None, with the reason in the report."""
        if self._redis_down:
            return None
        try:
            return read()
        except NoPermissionError:
            self._unseen.append(f"no permission for {command}")
        except (redis.RedisError, OSError) as error:
            if isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError):
                self._redis_down = redact(error)
            self._unseen.append(f"{command}: {redact(error)}")
        return None
