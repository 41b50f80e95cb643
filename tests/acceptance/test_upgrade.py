"""Upgrades: earlier releases, from the git history, are replaced by this one, process by process or in place."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis
from keepsake_client import Client

from bench.harness.releases import RELEASES, THIS_RELEASE, Fleet, Release, ReleaseMissing, earlier_release
from bench.resilience.upgrade import run
from services.runtime.queues import QUEUES, QueueKeys
from services.stack.processes import CHAT, GATEWAY, INDEXER, MEMORY, WORKER, WRITER
from tests.acceptance.conftest import ENDED_WITHIN_S, READY_WITHIN_S, Up, without
from tests.ltm_command import clean_environment, run_ltm
from tests.support import wait_until

#: Longer than a search waits for its turn on a machine that is ten times slower.
DEADLINE_MS = 30_000
#: Of the benchmark's load: some operations of each kind in every step.
SHARE = 0.25
#: Besides the figures in capitals, those that are 0 where every process ends and starts as it should.
ZEROS = {
    "pushed and not stored",
    "pushed once, stored twice",
    "dead letters",
    "refused with an error",
    "expired",
    "other errors",
    "answered twice",
}


@contextmanager
def release(name: str) -> Iterator[Release]:
    """An earlier release; the test is skipped where the git history does not have it."""
    with ExitStack() as removed_at_end:
        try:
            found = removed_at_end.enter_context(earlier_release(RELEASES[name], name))
        except ReleaseMissing as missing:
            pytest.skip(str(missing))
        yield found


@pytest.fixture(params=list(RELEASES))
def earlier(request: pytest.FixtureRequest) -> Iterator[Release]:
    with release(request.param) as found:
        yield found


@contextmanager
def ltm_up_of(earlier: Release, data: Path, *left_out: str) -> Iterator[str]:
    """`ltm up` of an earlier release on a data directory, in the block; its Redis."""
    ready = data.with_name(f"{data.name}.json")
    command = earlier.ltm("up", "--data-dir", str(data), "--ready-file", str(ready), *without(CHAT, *left_out))
    environment = earlier.environment(clean_environment())
    with data.with_name(f"{data.name}.log").open("w+") as output:
        process = subprocess.Popen(command, cwd=earlier.root, env=environment, stdout=output, stderr=output)
        try:
            wait_until(lambda: ready.exists() or process.poll() is not None, READY_WITHIN_S, "the ready file")
            assert process.poll() is None, Path(output.name).read_text()
            yield json.loads(ready.read_text())["redis_url"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(ENDED_WITHIN_S)


def said_to(redis_url: str, content: str) -> None:
    """Push a message to the memory service."""
    with redis.Redis.from_url(redis_url) as client:
        client.lpush("user_input_queue", json.dumps({"user_id": "anna", "content": content}))


def remembered(redis_url: str) -> set[str]:
    """What a search of the user's finds."""
    with Client(redis_url) as client:
        return {memory.content for memory in client.search("anna", "violin", limit=20, min_score=0, deadline_ms=60_000)}


def test_nothing_is_lost_and_every_search_is_answered_during_an_upgrade(earlier: Release) -> None:
    # Given an earlier release under load, and its processes replaced one by one as docs/deployment.md says
    figures = run(earlier, "documented", seed=1, seconds=1, deadline_ms=DEADLINE_MS, share=SHARE)

    # I expect all messages, adds, profile updates and searches accounted for: stored once, and answered once
    promised = {name: value for name, value in figures.items() if name.isupper() or name.strip() in ZEROS}
    assert promised == dict.fromkeys(promised, 0)
    assert figures["  indexed"] == figures["messages pushed"] > 0
    assert figures["  answered"] == figures["requests pushed"] > figures["searches pushed"] > 0


# The migration from 295cecd is the same, and is tested above.
@pytest.mark.parametrize("earlier", ["0.2.0"], indirect=True)
def test_a_data_directory_is_upgraded_in_place_and_a_backup_leads_back(earlier: Release, place: Path, up: Up) -> None:
    # Given `ltm up` of an earlier release, with a memory, a message and a profile, and a backup that this release makes
    data, back, file = place / "data", place / "back", str(place / "backup")
    with ltm_up_of(earlier, data) as redis_url, Client(redis_url) as client:
        client.add("anna", "My violin is from Cremona.")
        client.profile_update("anna", {"age": 30})
        said_to(redis_url, "I play the violin.")
        before = {"My violin is from Cremona.", "I play the violin."}
        wait_until(lambda: remembered(redis_url) == before, description="what was said")
        done = run_ltm("backup", file, "--data-dir", str(data))
        assert (done.returncode, done.stderr) == (0, "")

    # When this release starts on the same data directory, I expect it to remember, and to remember more
    stack = up("--data-dir", str(data), *without(CHAT, GATEWAY, MEMORY))
    assert remembered(stack.redis_url) == before
    with Client(stack.redis_url) as client:
        client.add("anna", "The violin was sold.")
        assert client.profile_get("anna").user_profile == {"age": 30}
    assert remembered(stack.redis_url) == before | {"The violin was sold."}
    assert stack.end(signal.SIGTERM) == 0

    # And when the backup is restored for the earlier release, I expect that to go on where it was
    done = run_ltm("restore", file, "--keep-schema", "--data-dir", str(back))
    assert (done.returncode, done.stderr) == (0, "")
    with ltm_up_of(earlier, back, MEMORY, INDEXER) as redis_url, Client(redis_url) as client:
        assert remembered(redis_url) == before
        assert client.profile_get("anna").user_profile == {"age": 30}
        client.add("anna", "The violin was sold.")
        assert remembered(redis_url) == before | {"The violin was sold."}


def test_on_an_upgraded_database_an_earlier_release_searches_and_its_writes_wait(place: Path, up: Up) -> None:
    # Given a stack of this release, whose writes and searches are left to processes of the one before
    stack = up("--ephemeral", *without(CHAT, GATEWAY, INDEXER, WRITER, WORKER))
    with release("0.2.0") as earlier, Fleet(stack.redis_url, stack.database_url, place) as fleet:
        fleet.start(THIS_RELEASE, WRITER)
        with Client(stack.redis_url) as client:
            client.add("anna", "My violin is from Cremona.")
        fleet.stop(THIS_RELEASE, WRITER)
        fleet.start(earlier, WORKER, INDEXER, WRITER)

        # I expect its searches to be answered, and its writes to fail in words
        assert remembered(stack.redis_url) == {"My violin is from Cremona."}
        said_to(stack.redis_url, "I play the violin.")
        with redis.Redis.from_url(stack.redis_url) as pipeline:
            data = {"content": "The violin was sold."}
            add = {"request_id": "r1", "type": "add", "user_id": "anna", "data": data}
            pipeline.lpush("ltm_requests", json.dumps(add))
        logs = [one.log for one in fleet.running if one.name in (INDEXER, WRITER)]
        wait_until(lambda: all("stop this process" in log.read_text() for log in logs), description="the refusals")

        # And both to be done by processes of this release, once they are there
        fleet.stop(earlier, INDEXER, WRITER)
        fleet.start(THIS_RELEASE, INDEXER, WRITER)
        everything = {"My violin is from Cremona.", "I play the violin.", "The violin was sold."}
        wait_until(lambda: remembered(stack.redis_url) == everything, description="what was written")
        with redis.Redis.from_url(stack.redis_url) as pipeline:
            assert [pipeline.hlen(QueueKeys(queue).dead_messages) for queue in QUEUES] == [0] * len(QUEUES)
