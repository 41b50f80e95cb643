"""One process of adapters on fake servers: which setting and which server each of its parts gets, start and stop."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fakeredis
import pytest
import redis
from keepsake_client.protocol import COUNTERS, MEMBERSHIP_KEY, REJECTED_STREAM, STREAM_GROUP, alive_key
from structlog.testing import capture_logs

from adapters.__main__ import Adapters, Timing, run
from adapters.leader import LEASE_KEY
from adapters.loop import Loop
from adapters.stream import UpdateStream
from services.runtime.queues import QueueKeys
from services.runtime.settings import Settings
from tests.support import wait_until

#: Of the pipeline, and of the workers' queues.
PIPELINE, BROKER = "redis://pipeline:6379/0", "redis://broker:6379/0"
REQUESTS, RESPONSES, CHANNEL, STREAM = "asks", "answers", "updates", "updates:log"
INDEX, INTERACTIVE = QueueKeys("index"), QueueKeys("interactive")
QUICK = Timing(
    poll_timeout_s=0.01,
    failed_after_s=1.0,
    claim_interval_s=0.01,
    maintenance_interval_s=0.01,
    measure_interval_s=0.01,
)


class Servers:
    """The pipeline's Redis and the broker's, by URL."""

    def __init__(self) -> None:
        self.by_url = {PIPELINE: fakeredis.FakeServer(), BROKER: fakeredis.FakeServer()}
        self.pipeline: Any = self.client(PIPELINE)
        self.broker: Any = self.client(BROKER)

    def client(self, url: str, **_: Any) -> fakeredis.FakeRedis:
        return fakeredis.FakeRedis(server=self.by_url[url])


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    servers = Servers()
    monkeypatch.setattr(redis.Redis, "from_url", servers.client)
    return servers


def settings(**options: Any) -> Settings:
    return Settings(
        redis_url=PIPELINE,
        broker_url=BROKER,
        ltm_requests_queue=REQUESTS,
        ltm_responses_channel=RESPONSES,
        memory_updates_channel=CHANNEL,
        ltm_stream_key=STREAM,
        **options,
    )


Start = Callable[..., Adapters]


@pytest.fixture
def start(servers: Servers) -> Iterator[Start]:
    """Starts the adapters and waits until they listen; they are stopped at the end."""
    started: list[Adapters] = []

    def start(timing: Timing = QUICK, **options: Any) -> Adapters:
        adapters = Adapters(settings(**options), timing)
        for loop in adapters.loops:
            loop.start()
        started.append(adapters)
        wait_until(lambda: servers.pipeline.pubsub_numsub(CHANNEL)[0][1], description="the subscription")
        wait_until(lambda: servers.pipeline.exists(LEASE_KEY), description="the lease")
        return adapters

    yield start
    for adapters in started:
        adapters.stop()
        assert [loop.failures for loop in adapters.loops] == [0] * 4


def event(content: str) -> str:
    return json.dumps({"user_id": "u1", "content": content, "source": "user", "timestamp": 1})


def asked(query: str, kind: str = "search") -> str:
    return json.dumps({"request_id": "r1", "type": kind, "user_id": "u1", "data": {"query": query}})


def publish(servers: Servers, count: int) -> None:
    for number in range(count):
        servers.pipeline.xadd(STREAM, {"event": event(f"m{number}")})


def test_a_request_goes_from_its_list_to_its_queue(servers: Servers, start: Start) -> None:
    """Given a request on the list of that setting, I expect it on the broker's server, and nothing left here."""
    start()

    servers.pipeline.lpush(REQUESTS, asked("tea?"))

    wait_until(lambda: servers.broker.llen(INTERACTIVE.ids) == 1, description="the request")
    wait_until(lambda: not servers.pipeline.keys(f"{REQUESTS}*"), description="the acknowledgement")


def test_a_request_that_is_too_long_is_answered(servers: Servers, start: Start) -> None:
    """Given LTM_MAX_CONTENT_CHARS=20 and a longer query, I expect the answer on the channel of that setting."""
    start(ltm_max_content_chars=20)
    with servers.pipeline.pubsub(ignore_subscribe_messages=True) as answers:
        answers.subscribe(RESPONSES)
        answers.get_message()

        servers.pipeline.lpush(REQUESTS, asked("x" * 21))

        answer = wait_until(answers.get_message, description="the answer")
    assert json.loads(answer["data"])["error"].startswith("too_large: ")


def test_an_event_goes_from_its_channel_through_the_stream_to_its_queue(servers: Servers, start: Start) -> None:
    """Given an event on the channel, I expect it in the stream, and on the broker's server."""
    start()

    servers.pipeline.publish(CHANNEL, event("I like tea"))

    wait_until(lambda: servers.broker.llen(INDEX.ids) == 1, description="the event")
    assert servers.pipeline.xlen(STREAM) == 1


def test_rejects_say_where_they_came_from(servers: Servers, start: Start) -> None:
    """Given LTM_MAX_CONTENT_CHARS=20 and longer contents everywhere, I expect a reject of each, by its name.

    A request that is too long is answered; one without an id is rejected.
    """
    start(ltm_max_content_chars=20)

    servers.pipeline.lpush(REQUESTS, "hello")
    servers.pipeline.publish(CHANNEL, event("x" * 21))
    servers.pipeline.xadd(STREAM, {"event": event("x" * 21)})
    wait_until(lambda: servers.pipeline.xlen(REJECTED_STREAM) == 3, description="three rejects")

    at = {fields[b"at"].decode() for _, fields in servers.pipeline.xrange(REJECTED_STREAM)}
    assert at == {REQUESTS, CHANNEL, STREAM}


def test_the_window_and_the_prefetch_bound_what_is_read(servers: Servers, start: Start) -> None:
    """Given LTM_INDEX_WINDOW=2, LTM_PREFETCH=3 and ten entries, I expect two on the queue and three pending."""
    start(ltm_index_window=2, ltm_prefetch=3)

    publish(servers, 10)

    wait_until(lambda: _pending(servers) == 3 and servers.broker.llen(INDEX.ids) == 2, description="the bounds")
    time.sleep(0.1)
    assert (_pending(servers), servers.broker.llen(INDEX.ids)) == (3, 2)


def _pending(servers: Servers) -> int:
    [group] = [each for each in servers.pipeline.xinfo_groups(STREAM) if each["name"] == STREAM_GROUP.encode()]
    return int(group["pending"])


def test_the_stream_has_the_bounds_of_its_settings(
    servers: Servers, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given LTM_STREAM_HOURS=3 and LTM_STREAM_MAX_LEN=100, I expect a trim by those hours, and the oldest gone."""
    trimmed: list[float] = []
    monkeypatch.setattr(UpdateStream, "trim", lambda _, hours: trimmed.append(hours))
    start(ltm_stream_hours=3, ltm_stream_max_len=100)

    for number in range(400):
        servers.pipeline.publish(CHANNEL, event(f"m{number}"))

    def last_is_there() -> bool:
        return any(b"m399" in fields[b"event"] for _, fields in servers.pipeline.xrevrange(STREAM, count=1))

    wait_until(last_is_there, description="the last")
    wait_until(lambda: trimmed, description="the trim")
    assert servers.pipeline.xlen(STREAM) < 300
    assert trimmed == [3]


def test_a_backlog_over_the_setting_is_counted(servers: Servers, start: Start) -> None:
    """Given LTM_MAX_BACKLOG=5 and more entries after the first measurement, I expect the next one to count it."""
    adapters = start(ltm_max_backlog=5, ltm_index_window=1)
    wait_until(lambda: adapters.maintenance_loop._connected, description="the end of its first iteration")

    publish(servers, 7)

    wait_until(lambda: servers.pipeline.hget(COUNTERS, "backlog_over") == b"1", description="the alarm")


def test_the_requests_of_an_adapter_that_fails_later_are_claimed(servers: Servers, start: Start) -> None:
    """Given an adapter two seconds without a heartbeat, after the first look, I expect its request served.

    The time to fail is that of `Timing`, a second.
    """
    adapters = start()
    wait_until(lambda: adapters.working[0]._connected, description="the end of its first iteration")

    servers.pipeline.lpush(f"{REQUESTS}:taken:failed", asked("tea?"))
    servers.pipeline.zadd(MEMBERSHIP_KEY, {"failed": float(servers.pipeline.time()[0]) - 2})

    wait_until(lambda: servers.broker.llen(INTERACTIVE.ids) == 1, description="the request")


def test_the_entries_of_a_failed_adapter_are_dispatched(servers: Servers, start: Start) -> None:
    """Given entries that a failed adapter had read, I expect the leader to claim and the dispatcher to read them."""
    servers.pipeline.xgroup_create(STREAM, STREAM_GROUP, id="0", mkstream=True)
    publish(servers, 2)
    servers.pipeline.xreadgroup(STREAM_GROUP, "failed", {STREAM: ">"})

    start()

    wait_until(lambda: servers.broker.llen(INDEX.ids) == 2, description="the entries")


def test_an_adapter_is_a_member_before_it_takes_requests(servers: Servers) -> None:
    """Given the loop of requests alone, I expect a heartbeat: nothing looks for the requests of an unknown adapter."""
    adapters = Adapters(settings(), QUICK)

    adapters.working[0]._iterate()

    assert servers.pipeline.zcard(MEMBERSHIP_KEY) == 1


def test_idle_loops_wait_as_long_as_their_timing_says(servers: Servers) -> None:
    """Given time-outs of a hundredth of a second, I expect no iteration to wait for the second of the defaults."""
    for loop in Adapters(settings(), QUICK).loops:
        begun_at = time.monotonic()
        for _ in range(15):
            loop._iterate()
        assert time.monotonic() - begun_at < 10, loop.name


def test_blocking_commands_wait_as_long_as_their_timing_says(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a time-out of two seconds, I expect the looks at the list (in s) and at the stream (in ms) to have it.

    The fake server does not block.
    """
    requests, _, dispatcher, _ = Adapters(settings(), Timing(poll_timeout_s=2.0)).loops
    waits: list[float] = []

    def blmove(_: Any, __: str, ___: str, timeout: float, *____: str) -> None:
        waits.append(timeout)

    def xreadgroup(*_: Any, block: int, **__: Any) -> list[Any]:
        waits.append(block)
        return []

    monkeypatch.setattr(fakeredis.FakeRedis, "blmove", blmove)
    monkeypatch.setattr(fakeredis.FakeRedis, "xreadgroup", xreadgroup)
    requests._iterate()
    dispatcher._iterate()

    assert waits == [2.0, 2_000]


def test_each_part_has_the_intervals_of_its_timing(servers: Servers) -> None:
    """Given five different times, I expect each where it belongs."""
    adapters = Adapters(settings(), Timing(1.5, 2.5, 3.5, 4.5, 5.5))

    parts = (adapters.requests[0], adapters._membership, adapters._maintenance)
    requests, membership, maintenance = (vars(part) for part in parts)

    assert (requests["_poll_timeout_s"], membership["_failed_after_s"], requests["_claim_interval_s"]) == (
        1.5,
        2.5,
        3.5,
    )
    assert (maintenance["_interval_s"], maintenance["_measure_interval_s"]) == (4.5, 5.5)


def test_the_default_timing_is_that_of_production(servers: Servers) -> None:
    """Given no timing, I expect the intervals that the documents name."""
    assert Timing() == Timing(1.0, 10.0, 2.0, 1.0, 5.0)


def test_each_loop_is_named(servers: Servers) -> None:
    """Given the loops, I expect the names by which the log and a thread dump show them."""
    assert [loop.name for loop in Adapters(settings()).loops] == [
        "ltm_requests",
        "memory_updates",
        "dispatcher",
        "maintenance",
    ]


@pytest.mark.parametrize("stuck", range(3))
def test_an_adapter_with_a_stuck_loop_sends_no_heartbeat(servers: Servers, stuck: int) -> None:
    """Given a working loop that no longer turns, I expect the maintenance to send no heartbeat."""
    adapters = Adapters(settings(), QUICK)
    adapters.working[stuck].liveness._stuck_after_s = 0.0

    adapters.maintenance_loop._iterate()

    assert not servers.pipeline.exists(MEMBERSHIP_KEY)


# Start and stop


def test_a_stopped_adapter_leaves_nothing_behind(servers: Servers, start: Start) -> None:
    """Given a claimed request, the lease and a membership, I expect the request on its list and the others gone."""
    adapters = start()
    [name] = servers.pipeline.zrange(MEMBERSHIP_KEY, 0, -1)
    servers.pipeline.lpush(f"{REQUESTS}:taken:{name.decode()}", "claimed")

    adapters.stop()

    assert [loop.is_alive() for loop in adapters.loops] == [False] * 4
    assert servers.pipeline.lrange(REQUESTS, 0, -1) == [b"claimed"]
    assert not servers.pipeline.exists(LEASE_KEY, MEMBERSHIP_KEY)


def test_the_heartbeat_goes_on_while_the_other_loops_end(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given loops that take a while to end, I expect the maintenance to run until they have: they hold messages.

    A loop that is stuck is waited for no longer than five seconds.
    """
    adapters = start()
    joined: list[tuple[str, float | None, bool]] = []
    join = Loop.join

    def note(loop: Loop, timeout: float | None = None) -> None:
        joined.append((loop.name, timeout, adapters.maintenance_loop.is_alive()))
        join(loop, timeout)

    monkeypatch.setattr(Loop, "join", note)
    adapters.stop()

    working = [(name, 5, True) for name in ("ltm_requests", "memory_updates", "dispatcher")]
    assert joined[:3] == working
    assert joined[3][:2] == ("maintenance", 5)


def test_a_stop_while_redis_is_down_is_logged(servers: Servers) -> None:
    """Given a Redis that is down at the end, I expect one line that says so, and no error."""
    adapters = Adapters(settings(), QUICK)
    for loop in adapters.loops:
        loop.start()
        loop.stop()
    servers.by_url[PIPELINE].connected = False

    with capture_logs() as lines:
        adapters.stop()

    released = [line for line in lines if line["event"] == "release_failed"]
    assert [(line["reason"], line["log_level"]) for line in released] == [("ConnectionError", "warning")]


@pytest.fixture
def unhandled() -> Iterator[None]:
    """Signals that `run` does not handle fail the test in place of ending it."""

    def fail(number: int, _: Any) -> None:
        raise AssertionError(f"signal {number} is not handled")

    before = {number: signal.signal(number, fail) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_until_it_is_asked_to_stop(servers: Servers, unhandled: None, number: signal.Signals) -> None:
    """Given a signal, I expect heartbeats until then under the process's name, and all of it stopped after it."""
    seen: list[bool] = []

    def stop_when_alive() -> None:
        wait_until(
            lambda: servers.pipeline.exists(alive_key("some-adapters"), LEASE_KEY) == 2, description="the heartbeat"
        )
        seen.append(True)
        os.kill(os.getpid(), number)

    stopping = threading.Thread(target=stop_when_alive)
    stopping.start()
    with capture_logs() as lines:
        run(settings(), "some-adapters")
    stopping.join()

    assert seen == [True]
    assert [line["event"] for line in lines if line["event"].startswith("adapters_")] == [
        "adapters_ready",
        "adapters_stopped",
    ]
    assert not servers.pipeline.exists(alive_key("some-adapters"), LEASE_KEY, MEMBERSHIP_KEY)


def test_the_process_is_alive_while_each_of_its_loops_is(
    servers: Servers, unhandled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a heartbeat of the process, I expect a check of each loop, the maintenance among them."""
    checks: list[int] = []

    class Heartbeat(threading.Thread):
        def __init__(self, _: Any, __: str, given: list[Callable[[], bool]], **___: Any) -> None:
            super().__init__()
            checks.append(sum(check() for check in given))
            os.kill(os.getpid(), signal.SIGTERM)

        def stop(self) -> None:
            checks.append(0)

    monkeypatch.setattr("adapters.__main__.HeartbeatThread", Heartbeat)

    run(settings(), "some-adapters")

    assert checks == [4, 0]
