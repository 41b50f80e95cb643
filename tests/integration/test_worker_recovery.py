"""Workers that are killed, stopped, poisoned, and whose servers go down: nothing is lost, nothing is done twice.

Real processes on a real Valkey and PostgreSQL; each test has a Valkey and a database of its own.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
import pytest
from keepsake_client.protocol import LTMRequest, MemoryUpdateMessage, alive_key

from services.long_term_memory.postgres.rows import insert_memories
from services.long_term_memory.storing import embedded, of_update
from services.runtime.dead_letters import RedisDeadLetters
from services.runtime.queues import queue_depths
from services.stack.process_tree import ProcessId
from services.stack.processes import INDEXER, service_specs
from services.stack.supervisor import Supervisor
from tasks.queues import request_message
from tests.integration.worker_process import Servers, WorkerProcess, servers
from tests.support import wait_until

INDEX, INTERACTIVE = "index", "interactive"
ALL_WITHIN_S = 180


@pytest.fixture
def site(database: str) -> Iterator[Servers]:
    with servers(database_url=database) as running:
        yield running


@pytest.fixture
def own_site() -> Iterator[Servers]:
    """With a PostgreSQL that the test may stop."""
    with servers() as running:
        yield running


def texts(count: int) -> list[str]:
    """So many different contents, in order."""
    return [f"I like tea number {number:04}" for number in range(count)]


def two_workers(site: Servers) -> list[WorkerProcess]:
    """Two indexers that work."""
    started = [site.worker(name, INDEX) for name in ("first", "second")]
    return [worker.ready() for worker in started]


def all_indexed(site: Servers, count: int) -> None:
    wait_until(lambda: len(site.indexed()) >= count, ALL_WITHIN_S, f"all {count} messages")


def nothing_left(site: Servers) -> bool:
    depths = queue_depths(site.client)[INDEX]
    return not any(depths.values()) and not site.held()


def test_the_messages_of_a_killed_worker_are_requeued(site: Servers) -> None:
    """Given kill -9 of one of two workers in the middle of 400 messages, I expect each of them indexed once after.

    What the killed one held is back on the queue, though it is not restarted.
    """
    first, _ = two_workers(site)
    contents = texts(400)
    site.index(*contents)
    wait_until(lambda: len(site.indexed()) > 20 and len(site.held()) == 2, ALL_WITHIN_S, "both in the middle")

    before = set(site.held())
    first.kill()
    wait_until(lambda: before - set(site.held()), description="the killed worker's messages to be back")

    all_indexed(site, len(contents))
    wait_until(lambda: nothing_left(site), description="an empty queue")
    assert site.indexed() == contents


def test_a_stopped_worker_leaves_nothing_behind(site: Servers) -> None:
    """Given SIGTERM in the middle of 400 messages, I expect a graceful shutdown, what it held requeued."""
    worker = site.worker("first", INDEX).ready()
    contents = texts(400)
    site.index(*contents)
    wait_until(lambda: len(site.indexed()) > 20, ALL_WITHIN_S, "the middle")

    assert worker.terminate(within_s=60) == 0

    done = len(site.indexed())
    assert site.held() == {}
    assert queue_depths(site.client)[INDEX]["waiting"] == len(contents) - done
    site.worker("second", INDEX)
    all_indexed(site, len(contents))
    assert site.indexed() == contents


def test_a_user_whose_forgetting_worker_is_killed_is_forgotten_by_the_next(site: Servers) -> None:
    """Given kill -9 of a writer between two batches of a user's memories, I expect another one to delete the rest, the
    request to be answered, and what waits for an indexer to be deleted too."""
    first, second = (site.worker(name, "writes").ready() for name in ("first", "second"))
    other = [psutil.Process(second.master.pid), *psutil.Process(second.master.pid).children(recursive=True)]
    for process in other:
        process.suspend()  # so that the first one takes the request
    messages = [
        MemoryUpdateMessage(user_id="u1", content=f"tea {n}", source="user", timestamp=1.7e9 + n) for n in range(2_500)
    ]
    rows = [embedded(of_update(each, each.timestamp), np.full(384, 0.05, np.float32)).row for each in messages]
    with psycopg.connect(site.database_url) as connection:
        insert_memories(connection, rows, history=True)
    asked = LTMRequest(request_id="r1", type="user_forget", user_id="u1", data={"deadline_ms": 60_000})
    with (
        psycopg.connect(site.database_url) as blocker,
        site.client.pubsub(ignore_subscribe_messages=True) as asker,  # type: ignore[no-untyped-call]
    ):
        # A row of the second batch, so that the first one is deleted and the second one waits.
        blocker.execute("SELECT FROM memories WHERE content = 'tea 1500' FOR UPDATE")
        asker.subscribe("ltm_responses")
        site.broker.enqueue(request_message(asked, time.time()))
        wait_until(lambda: len(site.indexed()) == 1_500, ALL_WITHIN_S, "the first batch")
        first.kill()
        site.index("tea 1", "tea 2501")  # they wait in the queue, which is looked into as well
        blocker.rollback()
        assert len(site.indexed()) == 1_500
        for process in other:
            process.resume()
        answer = wait_until(lambda: asker.get_message(timeout=0.1), ALL_WITHIN_S, "the answer")
    assert json.loads(answer["data"])["success"]
    assert site.indexed() == []
    with psycopg.connect(site.database_url) as connection:
        tables = ("memory_history", "users", "tombstones")
        left = [connection.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables]
    assert left == [(0,), (0,), (2_504,)]  # of the two that waited, two ids each
    assert queue_depths(site.client)["writes"]["dead"] == 0


def test_the_searches_of_a_frozen_worker_are_answered_once(site: Servers) -> None:
    """Given a worker that freezes amid 40 searches until another serves what it held, I expect one answer to each.

    When it resumes it serves them once more, and its responses are deduplicated.
    """
    frozen = site.worker("first", INTERACTIVE).ready()
    with site.client.pubsub(ignore_subscribe_messages=True) as asker:  # type: ignore[no-untyped-call]
        asker.subscribe("ltm_responses")
        asker.get_message(timeout=60)  # the confirmation
        for number in range(40):
            data = {"query": f"Which tea is number {number}?", "deadline_ms": 800}  # its response is not repeated
            asked = LTMRequest(request_id=f"r{number}", type="search", user_id="u1", data=data)
            site.broker.enqueue(request_message(asked, time.time()))
        family = [psutil.Process(frozen.master.pid), *psutil.Process(frozen.master.pid).children(recursive=True)]
        wait_until(lambda: site.held(INTERACTIVE), description="the first to fetch searches")
        for process in family:
            process.suspend()
        assert site.client.hlen("dramatiq:interactive.msgs"), "it was done before it froze"

        site.worker("second", INTERACTIVE)
        wait_until(lambda: not site.client.hlen("dramatiq:interactive.msgs"), ALL_WITHIN_S, "the second to serve all")
        for process in family:
            process.resume()
        wait_until(
            lambda: "response_deduplicated" in frozen.log(), description="the first to find its response published"
        )
        frozen.terminate(within_s=60)

        answers = Counter[str]()
        while message := asker.get_message():
            answers[json.loads(message["data"])["request_id"]] += 1
    assert answers == {f"r{number}": 1 for number in range(40)}


def test_a_message_that_kills_its_worker_is_a_dead_letter(site: Servers) -> None:
    """Given a message that no worker survives, among good ones, I expect a dead letter after 3, the rest indexed."""
    worker = site.worker("first", INDEX, module="tests.integration.dying_worker")
    contents = texts(20)
    site.index(*contents[:10], "poison", *contents[10:])
    letters = RedisDeadLetters(site.client)
    deaths = 0

    def dead_lettered() -> bool:
        nonlocal worker, deaths
        if worker.master.poll() is not None:
            deaths += 1
            worker = site.worker("first", INDEX, module="tests.integration.dying_worker")
        return bool(list(letters.all()))

    wait_until(dead_lettered, 180, "the dead letter")
    (letter,) = letters.all()
    assert (letter.error, letter.payload["update"]["content"], deaths) == (
        "internal: TooManyDeliveries",
        "poison",
        3,
    )
    all_indexed(site, len(contents))
    assert site.indexed() == contents


def tracebacks(*workers: WorkerProcess) -> list[str]:
    return [worker.name for worker in workers if "Traceback" in worker.log()]


def outages(worker: WorkerProcess, dependency: str) -> list[str]:
    """The events in a worker's log about a dependency going down and up."""
    lines = [json.loads(line) for line in worker.log().splitlines() if line.startswith("{")]
    return [line["event"] for line in lines if line.get("dependency") == dependency]


def test_an_outage_of_postgresql_loses_nothing(own_site: Servers) -> None:
    """Given a PostgreSQL that is down while messages come, I expect all indexed after, and two lines in the log.

    An add that was requested meanwhile is answered with success; nothing is a dead letter, no traceback is logged.
    """
    worker = own_site.worker("first", "writes", INDEX).ready()
    contents = texts(60)
    own_site.index(*contents[:20])
    all_indexed(own_site, 20)

    with own_site.client.pubsub(ignore_subscribe_messages=True) as answers:  # type: ignore[no-untyped-call]
        answers.subscribe("ltm_responses")
        wait_until(lambda: own_site.client.pubsub_numsub("ltm_responses")[0][1], description="the subscription")
        own_site.postgres.stop()
        own_site.index(*contents[20:40])
        added = LTMRequest(request_id="r1", type="add", user_id="u2", data={"content": "zzz"})
        own_site.broker.enqueue(request_message(added, time.time()))
        wait_until(lambda: outages(worker, "postgres"), description="the outage to be logged")
        wait_until(lambda: worker.log().count("retry_scheduled") > 4, description="several retries")
        own_site.index(*contents[40:])
        own_site.postgres.start()

        response: Any = wait_until(answers.get_message, description="the answer")
        assert json.loads(response["data"])["success"] is True

    all_indexed(own_site, len(contents) + 1)
    wait_until(lambda: nothing_left(own_site), description="an empty queue")
    assert own_site.indexed() == [*contents, "zzz"]
    assert outages(worker, "postgres") == ["dependency_down", "dependency_up"]
    assert tracebacks(worker) == []


def test_a_valkey_that_restarts_with_its_data_loses_nothing(site: Servers) -> None:
    """Given a Valkey that is down for a while in the middle of messages, I expect each indexed once after.

    The log has a line when it went down and one when it was up again, and no traceback.
    """
    workers = two_workers(site)
    contents = texts(400)
    site.index(*contents)
    wait_until(lambda: len(site.indexed()) > 20, ALL_WITHIN_S, "the middle")

    site.valkey.stop()
    wait_until(lambda: all(outages(worker, "broker") for worker in workers), description="the outage to be logged")
    site.valkey.start()

    all_indexed(site, len(contents))
    wait_until(lambda: nothing_left(site), description="an empty queue")
    assert site.indexed() == contents
    assert [outages(worker, "broker") for worker in workers] == [["dependency_down", "dependency_up"]] * 2
    assert tracebacks(*workers) == []


def test_a_worker_that_dies_is_restarted(site: Servers, tmp_path: Path) -> None:
    """Given a worker that is killed, I expect another running."""
    (spec,) = [spec for spec in service_specs() if spec.name == INDEXER]
    environment = {**os.environ, **site.environment, "OMP_NUM_THREADS": "1"}
    seen: list[dict[str, ProcessId]] = []
    supervisor = Supervisor([spec], environment, Path(__file__).parents[2], tmp_path, seen.append)

    def tended() -> bool:
        supervisor.poll()
        return bool(site.client.exists(alive_key(INDEXER)))

    site.client.delete(alive_key(INDEXER))  # a killed worker's, which has not expired, would pass for the first
    try:
        wait_until(tended, description="the first")
        (identity,) = supervisor.running.values()
        psutil.Process(identity.pid).kill()

        def another() -> bool:
            supervisor.poll()
            return [each.pid for each in supervisor.running.values()] not in ([identity.pid], [])

        wait_until(another, description="another")
    finally:
        supervisor.stop()
