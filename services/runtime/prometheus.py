"""The metrics of a process for Prometheus: their names, labels and buckets.

Imported only where metrics are served: prometheus_client takes 40 ms to import, and decides as it is imported whether
its values are shared between processes. No label holds what a user, an asker or a publisher has sent: a value outside
its fixed set is `other`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, get_args

from keepsake_client.errors import KeepsakeError
from keepsake_client.requests import RequestType
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from services.runtime import errors  # noqa: F401 - its classes are among the codes
from services.runtime.metrics import Metrics
from services.runtime.probes import Probes, with_probes

__all__ = ["PrometheusMetrics", "make_wsgi_app", "mark_process_dead", "served_registry", "with_probes"]

#: An asker waits 300 to 800 ms, the chat service 600; a search takes 5 ms with a cached query, 25 with one to embed.
LATENCY_BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.2, 2.5, 5, 10, 30),
)
#: From a message's arrival until a search finds it: some 100 ms idle, hours after an outage.
LAG_BUCKETS: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3_600, 21_600, 86_400)
#: Of a reply, most of which is its model's time.
REPLY_BUCKETS: Final = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2, 3, 5, 8, 15, 30, 60)

#: Stages between the moments of a trace record: name, from, to.
_REQUEST_STAGES: Final = (
    ("list", "pushed", "taken"),
    ("adapter", "taken", "queued"),
    ("queue", "queued", "started"),
    ("actor", "started", "answered"),
)
_MESSAGE_STAGES: Final = (
    ("dispatch", "logged", "dispatched"),
    ("queue", "dispatched", "started"),
    ("index", "started", "indexed"),
)
_REPLY_STAGES: Final = (("context", "asked", "searched"), ("model", "searched", "replied"))
#: Stages of a search or context that its actor measures itself, by their names in the record.
_ACTOR_STAGES: Final = {"embed_ms": "embed", "database_ms": "database", "rank_ms": "rank", "context_ms": "context"}
_EXTRACTION_STATES: Final = ("working", "waiting", "stopped", "over budget", "paused")
_TYPES: Final = frozenset(get_args(RequestType))
_DOORS: Final = frozenset({"v1", "mcp", "openai", "mem0", "metrics"})
OTHER: Final = "other"
#: No moment or duration is larger; nan and infinity are neither.
MAX_NUMBER: Final = 1e15


class PrometheusMetrics(Metrics):
    """The metrics of one process, in a registry of its own."""

    enabled = True

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.probes = Probes()
        self._outcomes = frozenset({"ok", *_error_codes(KeepsakeError)})
        self._pool_before: dict[str, int] = {}
        self._define_requests()
        self._define_replies()
        self._define_messages()
        self._define_extraction()
        self._define_connections()

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _histogram(
        self, name: str, documentation: str, *labels: str, buckets: tuple[float, ...] = LATENCY_BUCKETS
    ) -> Histogram:
        return Histogram(name, documentation, labels, buckets=buckets, registry=self.registry)

    def _define_requests(self) -> None:
        self._requests = self._counter("keepsake_requests", "Requests that were answered.", "type", "outcome")
        self._request_s = self._histogram(
            "keepsake_request_seconds",
            "From the moment an adapter took a request until its response was published.",
            "type",
        )
        self._request_stage_s = self._histogram(
            "keepsake_request_stage_seconds",
            "Stages of a request: list, adapter, queue, actor; within the last: embed, database, rank, context.",
            "type",
            "stage",
        )
        self._late = self._counter("keepsake_requests_late", "Requests answered after their deadline_ms.", "type")
        self._partial = self._counter("keepsake_requests_partial", "Requests answered in part.", "type")
        self._repeated = self._counter("keepsake_responses_repeated", "Responses that were published again.")

    def _define_replies(self) -> None:
        self._replies = self._counter(
            "keepsake_replies", "Replies of chat-ai by the outcome of its context.", "outcome"
        )
        self._reply_stage_s = self._histogram(
            "keepsake_reply_stage_seconds", "Stages of a reply: context, model.", "stage", buckets=REPLY_BUCKETS
        )
        self._http = self._counter("keepsake_http_requests", "HTTP requests to the gateway.", "door", "status")
        self._http_s = self._histogram(
            "keepsake_http_request_seconds", "Until the response to an HTTP request began.", "door"
        )

    def _define_messages(self) -> None:
        self._messages = self._counter(
            "keepsake_messages", "Messages that were indexed (ok) or failed for good.", "outcome"
        )
        self._lag_s = self._histogram(
            "keepsake_message_lag_seconds",
            "From the arrival of a message until a search finds it.",
            buckets=LAG_BUCKETS,
        )
        self._message_stage_s = self._histogram(
            "keepsake_message_stage_seconds",
            "Stages of a message: dispatch, queue, index.",
            "stage",
            buckets=LAG_BUCKETS,
        )
        self._retries = self._counter("keepsake_message_retries", "Further tries to index a message.")

    def _define_extraction(self) -> None:
        live: dict[str, Any] = {"registry": self.registry, "multiprocess_mode": "livemax"}
        self._calls = self._counter("keepsake_extraction_calls", "Calls of the extractor's LLM.", "outcome")
        self._tokens = self._counter("keepsake_extraction_tokens", "Tokens of these calls.")
        self._pending = Gauge("keepsake_extraction_pending_messages", "Messages that wait to be read.", **live)
        self._owners = Gauge("keepsake_extraction_pending_owners", "Users and characters with such messages.", **live)
        self._oldest_s = Gauge("keepsake_extraction_oldest_seconds", "For how long the oldest of them waits.", **live)
        self._set_aside = Gauge("keepsake_extraction_set_aside_messages", "Messages set aside.", **live)
        self._state = Gauge("keepsake_extraction_state", "1 for the state that it is in.", ["state"], **live)

    def _define_connections(self) -> None:
        live: dict[str, Any] = {"registry": self.registry, "multiprocess_mode": "livesum"}
        self._outages = self._counter("keepsake_outages", "Times that a server stopped answering.", "dependency")
        self._connections = Gauge("keepsake_postgres_connections", "Connections of the pool.", ["state"], **live)
        self._replica_usable = Gauge(
            "keepsake_replica_usable", "Processes that can read the replica, of those that would.", **live
        )
        self._replica_lag = Gauge(
            "keepsake_replica_lag_bytes",
            "Bytes of the write-ahead log that the replica has not replayed.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self._waiting = Gauge("keepsake_postgres_waiting", "Threads that wait for a connection.", **live)
        self._busy_s = self._counter("keepsake_postgres_busy_seconds", "Time that connections were in use.")
        self._wait_s = self._counter("keepsake_postgres_wait_seconds", "Time that threads waited for one.")
        self._lost = self._counter("keepsake_postgres_connections_lost", "Connections that were lost.")

    def observe(self, kind: str, facts: Mapping[str, Any]) -> None:
        outcome = str(facts.get("outcome"))
        outcome = outcome if outcome in self._outcomes else OTHER
        times = {stage: moment for stage, moment in (facts.get("times") or {}).items() if _is_number(moment)}
        if kind == "request":
            self._observe_request(outcome, times, facts)
        elif kind == "message":
            self._observe_message(outcome, times, facts.get("tries"))
        else:
            self._replies.labels(outcome).inc()
            for stage, seconds in _stages(_REPLY_STAGES, times):
                self._reply_stage_s.labels(stage).observe(seconds)

    def _observe_request(self, outcome: str, times: Mapping[str, float], facts: Mapping[str, Any]) -> None:
        request_type = str(facts.get("type"))
        request_type = request_type if request_type in _TYPES else OTHER
        self._requests.labels(request_type, outcome).inc()
        if "taken" in times and "answered" in times:
            self._request_s.labels(request_type).observe(_seconds(times, "taken", "answered"))
        for stage, seconds in _stages(_REQUEST_STAGES, times):
            self._request_stage_s.labels(request_type, stage).observe(seconds)
        for name, milliseconds in (facts.get("ms") or {}).items():
            if name in _ACTOR_STAGES and _is_number(milliseconds):
                self._request_stage_s.labels(request_type, _ACTOR_STAGES[name]).observe(milliseconds / 1000)
        if facts.get("partial"):
            self._partial.labels(request_type).inc()
        deadline_ms: Any = facts.get("deadline_ms")
        asked = "pushed" if "pushed" in times else "taken"
        if _is_number(deadline_ms) and asked in times and "answered" in times:
            self._late.labels(request_type).inc(_seconds(times, asked, "answered") * 1000 > deadline_ms)

    def _observe_message(self, outcome: str, times: Mapping[str, float], tries: Any) -> None:
        self._messages.labels(outcome).inc()
        for stage, seconds in _stages(_MESSAGE_STAGES, times):
            self._message_stage_s.labels(stage).observe(seconds)
        if "indexed" in times and "logged" in times:
            self._lag_s.observe(_seconds(times, "logged", "indexed"))
        if _is_number(tries):
            self._retries.inc(max(0, tries))

    def repeated(self) -> None:
        self._repeated.inc()

    def extracted(self, outcome: str, tokens: int) -> None:
        self._calls.labels(outcome).inc()
        self._tokens.inc(tokens)

    def outage(self, dependency: str) -> None:
        self._outages.labels(dependency).inc()

    def pool(self, stats: Mapping[str, int]) -> None:
        idle = stats.get("pool_available", 0)
        self._connections.labels("idle").set(idle)
        self._connections.labels("in_use").set(stats.get("pool_size", 0) - idle)
        self._waiting.set(stats.get("requests_waiting", 0))
        for counter, name, unit in (
            (self._busy_s, "usage_ms", 1000),
            (self._wait_s, "requests_wait_ms", 1000),
            (self._lost, "connections_lost", 1),
        ):
            total = stats.get(name, 0)
            counter.inc(max(0, total - self._pool_before.get(name, 0)) / unit)
            self._pool_before[name] = total

    def replica(self, lag_bytes: int | None) -> None:
        self._replica_usable.set(lag_bytes is not None)
        if lag_bytes is not None:
            self._replica_lag.set(lag_bytes)

    def extraction(self, state: str, *, messages: int, owners: int, oldest_s: float, set_aside: int) -> None:
        self._pending.set(messages)
        self._owners.set(owners)
        self._oldest_s.set(oldest_s)
        self._set_aside.set(set_aside)
        for name in _EXTRACTION_STATES:
            self._state.labels(name.replace(" ", "_")).set(name == state)

    def follow(self, outcomes: Mapping[str, int]) -> None:
        self.registry.register(_Computed(partial(_service_messages, outcomes)))

    def watch(self, turning: Iterable[Callable[[], bool]]) -> None:
        self.probes.watch(turning)

    def beat(self) -> None:
        self.probes.beat()

    def http(self, door: str, status: int, seconds: float) -> None:
        door = door if door in _DOORS else OTHER
        self._http.labels(door, status).inc()
        self._http_s.labels(door).observe(seconds)


def served_registry(process: str, metrics: Metrics, directory: Path | None) -> CollectorRegistry:
    """What a process serves: its metrics, its name, and what it takes of memory, CPU time and files.

    Args:
        directory: where the processes of a worker share the values of their metrics, which are then served as one.
    """
    # A second value for each counter and histogram, which no graph or alert uses.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)  # of several processes, the first
    registry.register(_Computed(partial(_process_info, process)))
    if directory is not None:
        MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    elif isinstance(metrics, PrometheusMetrics):
        registry.register(metrics.registry)
    return registry


class _Computed(Collector):
    """A metric that is computed at each scrape."""

    def __init__(self, compute: Callable[[], Metric]) -> None:
        self._compute = compute

    def collect(self) -> Iterator[Metric]:
        yield self._compute()


def _process_info(process: str) -> Metric:
    help_text = "1, with the name and release of the process."
    family = GaugeMetricFamily("keepsake_process_info", help_text, labels=["process", "release"])
    family.add_metric([process, version("keepsake-ltm")], 1)
    return family


def _service_messages(outcomes: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily("keepsake_service_messages", "Messages of the service.", labels=["outcome"])
    for outcome, number in list(outcomes.items()):
        family.add_metric([outcome], number)
    return family


def _stages(stages: tuple[tuple[str, str, str], ...], times: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    for name, begin, end in stages:
        if begin in times and end in times:
            yield name, _seconds(times, begin, end)


def _seconds(times: Mapping[str, float], begin: str, end: str) -> float:
    # The moments may be of two hosts, whose clocks differ.
    return max(0.0, times[end] - times[begin])


def _is_number(value: Any) -> bool:
    """Whether it is a usable number: fields of a message that no adapter has validated may be anything."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MAX_NUMBER < value < MAX_NUMBER


def _error_codes(error: type[KeepsakeError]) -> Iterator[str]:
    yield error.code
    for kind in error.__subclasses__():
        yield from _error_codes(kind)
