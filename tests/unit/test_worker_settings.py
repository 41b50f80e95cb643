"""How many processes and threads each kind of work gets, the CPU priority of indexing, and the time limits."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import dramatiq
import dramatiq.worker
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import TimeLimit

from services.long_term_memory.memory_service import SearchResult
from services.runtime.queues import ALL_QUEUES, EXTRACT_QUEUE, INDEX_QUEUE, INTERACTIVE_QUEUE, WRITES_QUEUE
from services.runtime.settings import Settings
from tasks import actors, composition
from tasks.__main__ import parsed, size
from tasks.log_filter import DramatiqLogFilter
from tasks.middleware.resources import Resources, WorkerCannotStart
from tasks.middleware.retries import Retries
from tasks.queues import BY_TYPE

ROOT = Path(__file__).parents[2]


def numbers(settings: Settings, queue: str, *options: str) -> tuple[int, int]:
    """The processes and threads of a worker."""
    return size(settings, parsed([*options, "--queues", queue]))


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 2), (16, 4)])
def test_searches_have_a_process_for_each_core(cores: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no settings, I expect as many processes of one thread as cores, and no more than four."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)

    assert numbers(Settings(), INTERACTIVE_QUEUE) == (processes, 1)


def test_searches_have_one_process_where_the_cores_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a system that does not tell a process's cores, I expect one process: there, forking may do harm."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)

    assert numbers(Settings(), INTERACTIVE_QUEUE) == (1, 1)


def test_other_work_has_a_process_of_several_threads() -> None:
    """Given no settings, I expect a process of each kind."""
    assert [numbers(Settings(), queue) for queue in (WRITES_QUEUE, INDEX_QUEUE, EXTRACT_QUEUE)] == [
        (1, 2),
        (1, 8),
        (1, 2),
    ]


def test_each_kind_is_set_by_itself() -> None:
    """Given settings, I expect each kind of work to have its own."""
    settings = Settings(
        ltm_interactive_processes=2,
        ltm_interactive_threads=3,
        ltm_writes_threads=4,
        ltm_index_processes=5,
        ltm_index_threads=6,
        ltm_extract_threads=7,
    )

    found = [numbers(settings, queue) for queue in ALL_QUEUES]
    assert found == [(2, 3), (1, 4), (5, 6), (1, 7)]


def test_what_is_given_counts_more_than_the_settings() -> None:
    """Given options, I expect their numbers."""
    assert numbers(Settings(), INDEX_QUEUE, "--processes", "7", "--threads", "8") == (7, 8)


class Nice:
    """What `os.nice` was called with."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, by: int) -> int:
        self.calls.append(by)
        return by


@pytest.fixture
def nice(monkeypatch: pytest.MonkeyPatch) -> Nice:
    nice = Nice()
    monkeypatch.setattr(os, "nice", nice)
    monkeypatch.setattr("tasks.middleware.resources.AUTOGROUP", Path(os.devnull))

    def stop_here(*_: Any, **__: Any) -> None:
        raise OSError

    monkeypatch.setattr("tasks.middleware.resources.open_when_ready", stop_here)
    return nice


def boot(settings: Settings, *queues: str) -> None:
    """Boot a worker of these queues until it would open its services."""
    broker = StubBroker(middleware=[Resources(settings, "a-worker")])
    with pytest.raises(WorkerCannotStart):
        dramatiq.Worker(broker, queues=set(queues), worker_timeout=10).start()


@pytest.mark.parametrize("queues", [(INDEX_QUEUE,), (EXTRACT_QUEUE,), (INDEX_QUEUE, EXTRACT_QUEUE)])
def test_what_no_asker_waits_for_lowers_its_priority(nice: Nice, queues: tuple[str, ...]) -> None:
    """Given a worker that indexes or extracts and nothing else, I expect its priority lowered before it has threads."""
    boot(Settings(ltm_index_nice=7, ltm_llm_provider="openai"), *queues)

    assert nice.calls == [7]


@pytest.mark.parametrize(
    ("leader", "written"),
    [(os.getpid(), "7"), (os.getppid(), "7"), (1 << 22, "0")],
    ids=["this process", "its master", "a terminal"],
)
def test_the_priority_of_its_own_session_is_lowered(
    nice: Nice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, leader: int, written: str
) -> None:
    """Given a session of this process or its master, I expect its priority lowered; a terminal's, unchanged."""
    autogroup = tmp_path / "autogroup"
    autogroup.write_text("0")
    monkeypatch.setattr("tasks.middleware.resources.AUTOGROUP", autogroup)
    monkeypatch.setattr(os, "getsid", lambda _: leader)

    boot(Settings(ltm_index_nice=7), INDEX_QUEUE)

    assert autogroup.read_text() == written


def test_a_kernel_without_autogroups_is_no_error(nice: Nice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no such file, I expect the process's own niceness, and no error."""
    monkeypatch.setattr("tasks.middleware.resources.AUTOGROUP", Path("/nonexistent/autogroup"))
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())

    boot(Settings(ltm_index_nice=7), INDEX_QUEUE)

    assert nice.calls == [7]


@pytest.mark.parametrize("queues", [(INTERACTIVE_QUEUE,), (WRITES_QUEUE,), (WRITES_QUEUE, INDEX_QUEUE), ()])
def test_no_other_worker_lowers_its_priority(nice: Nice, queues: tuple[str, ...]) -> None:
    """Given a worker of a queue whose askers wait, I expect its priority unchanged."""
    boot(Settings(), *queues)

    assert nice.calls == []


def test_the_priority_stays_where_the_setting_is_0(nice: Nice) -> None:
    """Given 0, I expect no call."""
    boot(Settings(ltm_index_nice=0), INDEX_QUEUE)

    assert nice.calls == []


def test_a_system_without_niceness_is_no_error(monkeypatch: pytest.MonkeyPatch, nice: Nice) -> None:
    """Given a system without `os.nice`, I expect the worker to start."""
    monkeypatch.delattr(os, "nice")

    boot(Settings(), INDEX_QUEUE)


def test_the_middleware_stand_in_their_order() -> None:
    """Given a worker as the Dramatiq CLI imports it, I expect the one list of middleware, in its order.

    In a process of its own: the import configures the log of the process.
    """
    show = "import dramatiq, tasks.worker; print(*(type(each).__name__ for each in dramatiq.get_broker().middleware))"
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.split() == [
        "Resources",
        "ResponsePublisher",
        "DeliveryLimit",
        "TimeLimit",
        "Overruns",
        "Retries",
    ]


class Root(NamedTuple):
    """A worker that has been set up, and what it started with."""

    broker: Any
    processes: list[str]
    handler: logging.Handler


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Root]:
    """A worker set up in this process, with settings of a test and without configuring its log."""
    processes: list[str] = []
    handler = logging.NullHandler()
    settings = Settings(
        redis_url="redis://pipeline:6380/2", broker_url="redis://broker:6381/3", ltm_responses_channel="answers"
    )

    def bootstrap(process: str) -> Settings:
        processes.append(process)
        return settings

    monkeypatch.setattr(composition, "bootstrap", bootstrap)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("psycopg.pool"), "level", logging.NOTSET)
    for name in ("CONSUMER_RESTART_DELAY_SECS", "POST_PROCESS_MESSAGE_RETRY_DELAY_SECS"):
        monkeypatch.setattr(dramatiq.worker, name, 3)
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)
    composition.settings_of.cache_clear()
    yield Root(composition.set_up(), processes, handler)
    composition.settings_of.cache_clear()


def server(client: Any) -> tuple[Any, ...]:
    options = client.connection_pool.connection_kwargs
    return options["host"], options["port"], options["db"]


def test_a_worker_is_composed_of_its_settings(root: Root) -> None:
    """Given the servers and the channel of the settings, I expect each in the part that uses it.

    The actors use the services that the same worker opens at boot.
    """
    broker: Any = root.broker
    assert dramatiq.get_broker() is root.broker
    resources, responses, deliveries, limit, *_ = broker.middleware

    assert server(broker.client) == ("broker", 6381, 3)
    assert server(responses._client) == server(deliveries._client) == ("pipeline", 6380, 2)
    assert responses._client.connection_pool.connection_kwargs["socket_timeout"] == 2
    assert responses._channel == "answers"
    assert limit.time_limit == 120_000
    assert (resources.settings.ltm_responses_channel, resources._process) == ("answers", "long-term-memory-worker")
    assert len(broker.get_declared_actors()) == len(BY_TYPE) + 1  # of indexing
    with pytest.raises(RuntimeError, match="the worker has not booted"):
        broker.get_actor("profile.get").fn({"user_id": "u1", "data": {}}, 1.0, 1.0)


def test_a_worker_reconnects_soon_and_logs_no_content(root: Root) -> None:
    """Given the module as it was imported, I expect half a second between attempts, and the filter on the log."""
    assert dramatiq.worker.CONSUMER_RESTART_DELAY_SECS == 0.5
    assert dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS == 0.5
    assert [type(each) for each in root.handler.filters] == [DramatiqLogFilter]


def test_a_worker_is_named_by_the_environment(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given LTM_PROCESS_NAME, I expect the settings, the log and the heartbeat under that name; else a default."""
    monkeypatch.setenv("LTM_PROCESS_NAME", "some-worker")

    broker: Any = composition.set_up()

    assert root.processes == ["long-term-memory-worker", "some-worker"]
    assert broker.middleware[0]._process == "some-worker"


@pytest.mark.parametrize(
    ("actor", "seconds"),
    [
        ("memory.search", 5),
        ("profile.get", 5),
        ("memory.add", 30),
        ("profile.update", 30),
        ("memory.index", 120),
        ("memory.extract", 120),
    ],
)
def test_each_actor_has_a_time_limit(actor: str, seconds: int) -> None:
    """Given the actors as a worker declares them, I expect each with the time limit of its queue."""
    broker = StubBroker(middleware=[TimeLimit(), Retries()])
    resources = SimpleNamespace(settings=Settings(ltm_llm_provider="openai"))  # the actors are never run
    actors.declare(broker, cast(Resources, resources))

    assert broker.get_actor(actor).options["time_limit"] == seconds * 1_000
    broker.close()


@pytest.mark.parametrize(("data", "budget_s"), [({"deadline_ms": 300}, 0.3), ({}, 0.8)])
def test_a_search_has_a_deadline_before_its_askers_time_out(data: dict[str, Any], budget_s: float) -> None:
    """Given how long an asker waits, I expect a deadline that leaves time for the response."""
    deadlines: list[float] = []

    def search(*_: Any, deadline: float, **__: Any) -> SearchResult:
        deadlines.append(deadline)
        return SearchResult([], partial=False, timings={})

    resources = SimpleNamespace(memories=SimpleNamespace(search=search), settings=Settings())
    broker = StubBroker(middleware=[Retries(), TimeLimit()])
    actors.declare(broker, cast(Resources, resources))
    asked = {"request_id": "r", "type": "search", "user_id": "u1", "data": {"query": "tea?", **data}}

    broker.get_actor("memory.search").fn(asked, received_at=1_000.0, enqueued_at=1_000.2)

    assert deadlines == [pytest.approx(1_000.0 + 0.9 * budget_s)]
