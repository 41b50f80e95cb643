"""Metrics of a worker of two processes, on real servers: served as one, by no label of a user's, and after a kill."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from keepsake_client.protocol import LTMRequest, MemoryUpdateMessage

from services.runtime.errors import EXIT_CANNOT_START
from services.runtime.exposition import MEMORY, PREFIX
from services.stack.process_tree import runs
from tasks.queues import index_message, request_message
from tests.integration.worker_process import Servers, servers
from tests.support import free_port, wait_until

ALL_WITHIN_S = 180
SEARCHES, MESSAGES = 40, 6
#: User ids that would be seen, or break the page, in a label.
USERS = ["anna-lee@example.org", 'eve"} 1\nevil_metric{user="', "\\", "佐藤"]


@pytest.fixture(scope="module")
def site() -> Iterator[Servers]:
    with servers() as running:
        running.environment["LTM_METRICS_PORT"] = str(free_port())
        yield running


def page(site: Servers) -> str:
    return httpx.get(f"http://127.0.0.1:{site.environment['LTM_METRICS_PORT']}/metrics").text


def total(text: str, name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(float(number) for number in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))


def directories() -> set[Path]:
    """Where workers of two processes share their values."""
    return set(MEMORY.glob(f"{PREFIX}*"))


@pytest.mark.skipif(not MEMORY.exists(), reason="the directory is elsewhere on this system")
def test_two_processes_are_served_as_one_until_they_are_killed(site: Servers) -> None:
    """Given searches and messages of hostile users on two processes, I expect their sums on one page, and no user.

    Given kill -9 of the first of them, I expect the next worker to serve on the same port, and nothing left behind.
    """
    worker = site.worker("worker", "interactive", "index", processes=2).ready()
    wait_until(lambda: worker.log().count("worker_ready") == 2, ALL_WITHIN_S, "both processes")

    for number in range(MESSAGES):
        update = MemoryUpdateMessage(
            user_id=USERS[number % 4], content=f"tea {number}", source="user", timestamp=1.0, message_id=f"m{number}"
        )
        site.broker.enqueue(index_message(update, time.time()))
    for number in range(SEARCHES):
        request = LTMRequest(
            request_id=f"r{number}", type="search", user_id=USERS[number % 4], data={"query": "tea", "limit": 1}
        )
        site.broker.enqueue(request_message(request, time.time()))
    wait_until(lambda: total(page(site), "keepsake_messages_total") == MESSAGES, ALL_WITHIN_S, "all messages")
    wait_until(lambda: total(page(site), "keepsake_requests_total") == SEARCHES, ALL_WITHIN_S, "all searches")
    wait_until(lambda: total(page(site), "keepsake_postgres_connections") >= 2, description="both pools")

    text = page(site)
    assert total(text, "keepsake_request_seconds_count") == SEARCHES
    assert total(text, "keepsake_message_lag_seconds_count") == MESSAGES
    for user in USERS[:2]:
        assert user not in text
        assert user.partition("@")[0] not in text
    assert not re.search("evil|佐藤|tea", text)

    [left] = [path for path in directories() if f"{PREFIX}{worker.master.pid}-" in str(path)]
    (forked,) = psutil.Process(worker.master.pid).children()
    worker.master.kill()
    worker.master.wait()
    wait_until(lambda: not runs(forked), description="the forked process to end")
    successor = site.worker("worker", "interactive", processes=2).ready()

    assert total(page(site), "keepsake_requests_total") == 0
    assert not left.exists()
    successor.terminate(within_s=60)
    assert [path for path in directories() if f"{PREFIX}{successor.master.pid}-" in str(path)] == []


def test_a_port_that_is_taken_ends_the_worker_with_one_line(site: Servers) -> None:
    """Given a port in use, I expect both processes ended, by the exit code for it, before anything was opened."""
    with socket.create_server(("127.0.0.1", int(site.environment["LTM_METRICS_PORT"]))):
        worker = site.worker("refused", "interactive", processes=2)
        assert worker.master.wait(60) == EXIT_CANNOT_START
    assert worker.log().count("start_refused") == 1
