"""An actor that goes on long after its time limit, as in native code that hangs, is noticed: only a restart ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import dramatiq
import fakeredis
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import SkipMessage, TimeLimit

from services.runtime.heartbeat import HUNG_AFTER_S
from services.runtime.prometheus import PrometheusMetrics
from services.runtime.settings import Settings
from tasks.composition import compose
from tasks.middleware.overruns import Overruns
from tasks.middleware.resources import Resources
from tests.support import wait_until
from tests.unit.test_resources import Opened

LIMIT_S = 5.0


class Bench:
    """A worker of one thread, whose actor waits in C for as long as it is told."""

    def __init__(self, *further: dramatiq.Middleware) -> None:
        self.now = 1_000.0
        self.overruns = Overruns(clock=lambda: self.now)
        self.broker = StubBroker(middleware=[TimeLimit(), self.overruns, *further])
        self.begun, self.released = threading.Event(), threading.Semaphore(0)

        @dramatiq.actor(broker=self.broker, time_limit=LIMIT_S * 1000)
        def hang() -> None:
            self.begun.set()
            self.released.acquire()

        self.hang = hang
        self.worker = dramatiq.Worker(self.broker, worker_timeout=100, worker_threads=1)
        self.worker.start()

    def begin(self) -> None:
        self.hang.send()
        wait_until(self.begun.is_set, description="the actor")

    def end(self) -> None:
        self.released.release()
        self.broker.join("default", timeout=10_000)

    def close(self) -> None:
        self.released.release()
        self.worker.stop()
        self.broker.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_an_actor_that_does_not_end_is_noticed(bench: Bench) -> None:
    """Given an actor that runs, I expect it to have its time limit and what a wait for a server may take besides."""
    bench.begin()

    bench.now += LIMIT_S + HUNG_AFTER_S - 0.1
    assert bench.overruns.none_hangs()
    bench.now += 0.1
    assert not bench.overruns.none_hangs()

    bench.end()
    assert bench.overruns.none_hangs()


def test_a_message_that_is_skipped_is_not_taken_for_one_that_hangs() -> None:
    """Given a message that another middleware has skipped, I expect nothing to be waited for."""

    class Skipping(dramatiq.Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            raise SkipMessage

    bench = Bench(Skipping())
    bench.hang.send()
    bench.broker.join("default", timeout=10_000)

    bench.now += 10 * HUNG_AFTER_S
    assert bench.overruns.none_hangs()
    bench.close()


def test_a_worker_with_an_actor_that_hangs_is_neither_ready_nor_alive(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a worker whose one thread hangs, I expect no further heartbeat, and to be restarted by an orchestrator."""
    monkeypatch.setattr("tasks.middleware.resources.connect", lambda *_: fakeredis.FakeRedis())
    monkeypatch.setattr("tasks.middleware.resources.open_when_ready", lambda *_, **__: Opened())
    metrics = PrometheusMetrics()
    resources = Resources(Settings(ltm_index_nice=0), "a-worker", metrics, overruns=bench.overruns)
    resources.before_worker_boot(bench.broker, bench.worker)
    resources.after_worker_boot(bench.broker, bench.worker)
    bench.begin()
    wait_until(metrics.probes.ready, description="a heartbeat")
    assert metrics.probes.live()

    bench.now += LIMIT_S + HUNG_AFTER_S
    assert not metrics.probes.live()
    wait_until(lambda: not metrics.probes.ready(), description="the end of the heartbeats")

    bench.end()
    wait_until(metrics.probes.ready, description="a heartbeat")
    assert metrics.probes.live()
    resources.after_worker_shutdown(bench.broker, bench.worker)


def test_a_worker_watches_its_actors() -> None:
    """Given a worker as it is composed, I expect what it watches to be around the actor alone, so last of all hooks."""
    broker = compose(Settings(), "a-worker")

    around_actors = [type(each).__name__ for each in broker.middleware if isinstance(each, TimeLimit | Overruns)]
    [watched] = [each for each in broker.middleware if isinstance(each, Overruns)]
    [resources] = [each for each in broker.middleware if isinstance(each, Resources)]
    assert around_actors == ["TimeLimit", "Overruns"]
    assert resources._overruns is watched
