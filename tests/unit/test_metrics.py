"""The metrics of a process: what is observed of its work, and by which labels and buckets."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import dramatiq
import fakeredis
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from keepsake_client.protocol import TRACES_STREAM, LTMRequest, MemoryUpdateMessage, TraceRecord
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from adapters.loop import Loop
from adapters.ltm_responses import ResponsePublisher
from services.runtime.availability import Availability
from services.runtime.errors import Expired
from services.runtime.metrics import NO_METRICS, Metrics
from services.runtime.prometheus import LATENCY_BUCKETS, PrometheusMetrics
from services.runtime.traces import NO_TRACES, Traces
from tasks.middleware.deliveries import DeliveryLimit
from tasks.queues import index_message, request_message
from tests.support import wait_until

#: What a user, an asker or a publisher may send; none of it may be seen in a label.
HOSTILE = 'anna"} 1\nevil_total{user="'


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics()


def value(metrics: PrometheusMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def labels_of(text: str) -> set[str]:
    """Every value of a label in a page of metrics, but for those of buckets."""
    families = list(text_string_to_metric_families(text))
    return {
        shown
        for family in families
        for sample in family.samples
        for name, shown in sample.labels.items()
        if name != "le"
    }


def times(**moments: float) -> dict[str, float]:
    return moments


SEARCH: dict[str, Any] = {
    "type": "search",
    "outcome": "ok",
    "times": times(pushed=10.0, taken=10.01, queued=10.02, started=10.05, answered=10.25),
    "ms": {"embed_ms": 20.0, "database_ms": 100.0, "rank_ms": 30.0},
}


def test_a_request_is_observed_by_type_outcome_and_stage(metrics: PrometheusMetrics) -> None:
    """Given a search that was answered, I expect it counted, and the time of each of its stages, in seconds."""
    metrics.observe("request", SEARCH)

    assert value(metrics, "keepsake_requests_total", type="search", outcome="ok") == 1
    assert value(metrics, "keepsake_request_seconds_sum", type="search") == pytest.approx(0.24)
    stages = ("list", "adapter", "queue", "actor", "embed", "database", "rank")
    took = [value(metrics, "keepsake_request_stage_seconds_sum", type="search", stage=stage) for stage in stages]
    assert took == pytest.approx([0.01, 0.01, 0.03, 0.2, 0.02, 0.1, 0.03])


@pytest.mark.parametrize("deadline_ms", [None, 100, 249, 251, 800])
@pytest.mark.parametrize("pushed", [{"pushed": 10.0}, {}])
def test_late_is_what_a_trace_calls_late(
    metrics: PrometheusMetrics, deadline_ms: int | None, pushed: dict[str, float]
) -> None:
    """Given an answer and its deadline, I expect it counted as late where `ltm trace` shows it as late."""
    moments = {**pushed, "taken": 10.0, "answered": 10.25}
    record = TraceRecord(kind="request", times=moments, deadline_ms=deadline_ms)

    metrics.observe("request", {**SEARCH, "times": moments, "deadline_ms": deadline_ms})

    late = value(metrics, "keepsake_requests_late_total", type="search") or 0
    assert late == (record.late_ms is not None)


def test_expired_and_partial_answers_are_told_apart(metrics: PrometheusMetrics) -> None:
    """Given one expired and one partial answer, I expect one of each."""
    metrics.observe("request", {**SEARCH, "outcome": "expired"})
    metrics.observe("request", {**SEARCH, "partial": True})

    assert value(metrics, "keepsake_requests_total", type="search", outcome="expired") == 1
    assert value(metrics, "keepsake_requests_partial_total", type="search") == 1


def test_the_buckets_resolve_what_askers_wait_for() -> None:
    """Given times from 5 to 800 ms, I expect buckets at most twice as wide, and bounds where askers stop waiting."""
    within = [bound for bound in LATENCY_BUCKETS if 0.005 <= bound <= 0.8]

    assert (within[0], within[-1]) == (0.005, 0.8)
    assert max(later / earlier for earlier, later in itertools.pairwise(within)) <= 2
    assert {0.3, 0.6, 0.8} <= set(within)


def test_a_message_is_observed_from_its_arrival_until_it_is_found(metrics: PrometheusMetrics) -> None:
    """Given a message that was indexed at its third try, I expect its lag, its stages, and two further tries."""
    moments = times(said=1.0, logged=100.0, dispatched=100.5, started=101.0, indexed=103.0)

    metrics.observe("message", {"outcome": "ok", "times": moments, "tries": 2})

    assert value(metrics, "keepsake_messages_total", outcome="ok") == 1
    assert value(metrics, "keepsake_message_lag_seconds_sum") == 3.0
    took = [
        value(metrics, "keepsake_message_stage_seconds_sum", stage=stage) for stage in ("dispatch", "queue", "index")
    ]
    assert took == [0.5, 0.5, 2.0]
    assert value(metrics, "keepsake_message_retries_total") == 2


def test_a_message_that_failed_has_no_lag(metrics: PrometheusMetrics) -> None:
    """Given a message that failed for good, I expect it counted by the code of its error, and no lag."""
    metrics.observe("message", {"outcome": "unavailable", "times": times(logged=100.0, failed=103.0)})

    assert value(metrics, "keepsake_messages_total", outcome="unavailable") == 1
    assert value(metrics, "keepsake_message_lag_seconds_count") == 0


def test_a_reply_is_observed_by_the_outcome_of_its_context(metrics: PrometheusMetrics) -> None:
    """Given a reply without a memory in time, I expect it under `timeout`, and how long context and model took."""
    metrics.observe("reply", {"outcome": "timeout", "times": times(asked=10.0, searched=10.6, replied=12.6)})

    assert value(metrics, "keepsake_replies_total", outcome="timeout") == 1
    took = [value(metrics, "keepsake_reply_stage_seconds_sum", stage=stage) for stage in ("context", "model")]
    assert took == pytest.approx([0.6, 2.0])


def test_clocks_that_differ_make_no_negative_time(metrics: PrometheusMetrics) -> None:
    """Given an asker whose clock is ahead, I expect a stage of no time, as a histogram can only grow."""
    metrics.observe("request", {**SEARCH, "times": times(pushed=99.0, taken=10.0)})

    assert value(metrics, "keepsake_request_stage_seconds_sum", type="search", stage="list") == 0


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.just(10**400),
    st.text(max_size=5),
    st.just(HOSTILE),
    st.lists(st.text(max_size=3), max_size=2),
)


@given(
    kind=st.sampled_from(["request", "message", "reply"]),
    facts=st.fixed_dictionaries(
        {
            "type": ANYTHING,
            "outcome": ANYTHING,
            "tries": ANYTHING,
            "deadline_ms": ANYTHING,
            "partial": ANYTHING,
            "times": st.none()
            | st.dictionaries(st.sampled_from(["pushed", "taken", "answered", "logged", "indexed"]), ANYTHING),
            "ms": st.none() | st.dictionaries(st.sampled_from(["embed_ms", HOSTILE]), ANYTHING),
        }
    ),
)
def test_what_no_adapter_has_validated_is_observed(kind: str, facts: dict[str, Any]) -> None:
    """Given a message that was put on a queue by hand, I expect nothing raised, and no label that it has made."""
    metrics = PrometheusMetrics()

    metrics.observe(kind, facts)

    known = {"other", "list", "adapter", "queue", "actor", "embed", "dispatch", "index", "context", "model"}
    assert labels_of(generate_latest(metrics.registry).decode()) <= known


def test_the_pool_is_observed_by_what_was_added_since(metrics: PrometheusMetrics) -> None:
    """Given two looks at a pool, and one after it was opened anew, I expect the sum of what each of them added."""
    for usage_ms, lost in ((1_000, 1), (4_000, 3), (500, 3)):
        metrics.pool({"pool_size": 5, "pool_available": 2, "usage_ms": usage_ms, "connections_lost": lost})

    assert value(metrics, "keepsake_postgres_busy_seconds_total") == 4.0
    assert value(metrics, "keepsake_postgres_connections_lost_total") == 3
    assert value(metrics, "keepsake_postgres_connections", state="in_use") == 3


def test_a_replica_that_cannot_be_read_keeps_its_last_lag(metrics: PrometheusMetrics) -> None:
    """Given a replica that was behind and then could not be read, I expect it not usable, and how far it was behind."""
    metrics.replica(4_096)
    assert value(metrics, "keepsake_replica_usable") == 1

    metrics.replica(None)

    assert value(metrics, "keepsake_replica_usable") == 0
    assert value(metrics, "keepsake_replica_lag_bytes") == 4_096


def test_extraction_is_in_one_state(metrics: PrometheusMetrics) -> None:
    """Given extraction that stopped after it had worked, I expect 1 for that state alone, and what waits."""
    for state in ("working", "over budget"):
        metrics.extraction(state, messages=7, owners=2, oldest_s=60.0, set_aside=1)

    names = ("working", "over_budget", "stopped", "waiting", "paused")
    assert [value(metrics, "keepsake_extraction_state", state=name) for name in names] == [0, 1, 0, 0, 0]
    assert value(metrics, "keepsake_extraction_pending_messages") == 7


def test_the_messages_of_a_service_are_shown_as_it_counts_them(metrics: PrometheusMetrics) -> None:
    """Given the counts of a service, I expect each scrape to show them as they are then."""
    counts: Counter[str] = Counter()
    metrics.follow(counts)
    counts["replied"] += 3

    assert value(metrics, "keepsake_service_messages_total", outcome="replied") == 3


def test_an_outage_is_counted_once(metrics: PrometheusMetrics) -> None:
    """Given calls that fail one after another, twice, I expect two outages."""
    availability = Availability("redis", metrics=metrics)

    for _ in range(2):
        availability.down("away")
        availability.down("away")
        availability.up()

    assert value(metrics, "keepsake_outages_total", dependency="redis") == 2


def test_an_outage_of_an_adapters_loop_is_counted(metrics: PrometheusMetrics) -> None:
    """Given a loop whose Redis is away, I expect one outage, however often it tries."""
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise redis.ConnectionError("away")

    loop = Loop("a-loop", fail, metrics=metrics)
    loop.start()
    wait_until(lambda: len(tries) >= 2, description="two tries")
    loop.stop()
    loop.join(60)

    assert value(metrics, "keepsake_outages_total", dependency="redis") == 1


class Spy(Metrics):
    """Metrics that note what they are shown."""

    enabled = True

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.repeats = threading.Event()

    def observe(self, kind: str, facts: Any) -> None:
        self.seen.append((kind, dict(facts)))

    def repeated(self) -> None:
        self.repeats.set()


@pytest.fixture
def client() -> Iterator[fakeredis.FakeRedis]:
    with fakeredis.FakeRedis() as client:
        yield client


def request_proxy(client: Any, publisher: ResponsePublisher, **outcome: Any) -> None:
    """Publish the outcome of a search."""
    request = LTMRequest(request_id="r1", type="search", user_id="anna", data={"query": "tea"})
    message = dramatiq.MessageProxy(request_message(request, 10.0))
    broker: Any = None
    publisher.before_process_message(broker, message)
    message.failed = "exception" in outcome
    publisher.after_process_message(broker, message, **outcome)


def index(limit: DeliveryLimit) -> None:
    """Settle the message of an event that was indexed."""
    update = MemoryUpdateMessage(user_id="anna", content="tea", source="user", timestamp=5)
    message = dramatiq.MessageProxy(index_message(update, 9.0))
    broker: Any = None
    limit.before_process_message(broker, message)
    limit.after_process_message(broker, message)


@pytest.mark.parametrize(("max_len", "written"), [(0, 0), (100, 1)])
def test_a_response_is_observed_whether_traces_are_written_or_not(
    client: fakeredis.FakeRedis, max_len: int, written: int
) -> None:
    """Given LTM_TRACE_MAX_LEN of 0, or not, I expect the same observation, and a trace where one is wanted alone."""
    spy = Spy()
    publisher = ResponsePublisher(client, "ltm_responses", Traces(max_len, metrics=spy))

    request_proxy(client, publisher, exception=Expired())

    [(kind, facts)] = spy.seen
    assert (kind, facts["type"], facts["outcome"], facts["times"]["taken"]) == ("request", "search", "expired", 10.0)
    assert client.xlen(TRACES_STREAM) == written


@pytest.mark.parametrize(("max_len", "written"), [(0, 0), (100, 1)])
def test_a_message_is_observed_whether_traces_are_written_or_not(
    client: fakeredis.FakeRedis, max_len: int, written: int
) -> None:
    """Given LTM_TRACE_MAX_LEN of 0, or not, I expect an indexed message observed, and a trace where one is wanted."""
    spy = Spy()

    index(DeliveryLimit(client, Traces(max_len, metrics=spy)))

    [(kind, facts)] = spy.seen
    assert (kind, facts["outcome"], facts["times"]["logged"]) == ("message", "ok", 9.0)
    assert client.xlen(TRACES_STREAM) == written


def test_a_response_that_is_published_again_is_observed(client: fakeredis.FakeRedis) -> None:
    """Given a request without a deadline, I expect the repeat of its response observed."""
    spy = Spy()
    publisher = ResponsePublisher(client, "ltm_responses", Traces(metrics=spy), [0.0])

    request_proxy(client, publisher, result={"memories": []})
    publisher.close()

    assert spy.repeats.is_set()


def test_nothing_is_recorded_without_traces_and_metrics(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given neither traces nor metrics nor spans, I expect nothing gathered of a request or a message."""
    made: list[str] = []

    def record(*_: Any, **__: Any) -> str:
        made.append("a record")
        return ""

    monkeypatch.setattr(Traces, "record", record)
    spans: Any = SimpleNamespace(enabled=False, record=record)

    request_proxy(client, ResponsePublisher(client, "ltm_responses", spans=spans), result={"memories": []})
    index(DeliveryLimit(client, spans=spans))

    assert (made, NO_TRACES.wanted, NO_METRICS.enabled) == ([], False, False)
