"""What composition roots share: connections, backoff, the start of a process, and the end of its tasks."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest
import redis
from fakeredis import TcpFakeServer
from keepsake_client.cancellation import cancel_all
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from services.runtime import process
from services.runtime import redis as runtime_redis
from services.runtime.backoff import pause, wait_s
from services.runtime.errors import EXIT_CANNOT_START
from services.runtime.heartbeat import STUCK_AFTER_S
from services.runtime.process import LoopConnection, bootstrap, listen
from services.runtime.redis import connect, connect_async, connect_persistent
from services.runtime.settings import load_settings
from tests.support import SkippingLoop, eventually, free_port


def test_waits_double_up_to_a_maximum() -> None:
    """Given failures in a row, I expect waits of 0.1 s, doubling to 5 s."""
    assert [wait_s(failures) for failures in range(1, 9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@pytest.mark.parametrize(("failures", "expected"), [(0, 0.1), (5_000, 5.0)])
def test_waits_are_bounded(failures: int, expected: float) -> None:
    """Given no failure, or an outage of hours, I expect a wait within the bounds, and no overflow."""
    assert wait_s(failures) == expected


@pytest.mark.parametrize("connected", [connect, connect_async])
def test_a_client_does_not_retry(connected: Any) -> None:
    """Given a client of either kind, I expect no retries, and its time-out for the attempt and for the answer."""
    options = connected("redis://user:hush@host:1/2", 1.5).connection_pool.connection_kwargs

    assert options["retry"].get_retries() == 0
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (1.5, 1.5)
    assert (options["host"], options["db"], options["password"]) == ("host", 2, "hush")


@pytest.mark.parametrize("connected", [connect, connect_async, connect_persistent])
def test_idle_connections_are_kept_alive(connected: Any) -> None:
    """Given a client of any kind, I expect keepalives of TCP after five seconds; a Unix socket needs none."""
    options = connected("redis://host").connection_pool.connection_kwargs

    assert options["socket_keepalive"]
    assert options["socket_keepalive_options"][socket.TCP_KEEPIDLE] == 5
    assert "socket_keepalive" not in connected("unix:///tmp/redis.sock").connection_pool.connection_kwargs


def test_a_client_raises_while_redis_is_away() -> None:
    """Given that no Redis listens, I expect an error at the first command, and none before."""
    client = connect(f"redis://127.0.0.1:{free_port()}/0")

    with pytest.raises(redis.ConnectionError):
        client.ping()


class Clock:
    """A clock that the waits between attempts advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.at: Callable[[float], None] = lambda now: None
        monkeypatch.setattr("redis.retry.sleep", self.sleep)
        monkeypatch.setattr(runtime_redis, "time", SimpleNamespace(monotonic=lambda: self.now))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.at(self.now)


def test_a_persistent_client_waits_for_a_connection_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a command whose connection cannot be made for nine seconds, as in a failover, I expect it executed."""
    port, clock = free_port(), Clock(monkeypatch)
    with ExitStack() as at_exit:

        def serve(now: float) -> None:
            if now > 9:
                clock.at = lambda _: None
                server = at_exit.enter_context(TcpFakeServer(("127.0.0.1", port)))
                serving = threading.Thread(target=server.serve_forever, args=(0.01,))
                serving.start()
                at_exit.callback(serving.join)
                at_exit.callback(server.shutdown)

        clock.at = serve
        client = at_exit.enter_context(connect_persistent(f"redis://127.0.0.1:{port}/0"))

        assert client.set("a", "1")


def test_a_persistent_client_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given that no Redis listens, I expect an error, and no attempt that begins later than the longest pause after ten
    seconds."""
    clock = Clock(monkeypatch)
    client = connect_persistent(f"redis://127.0.0.1:{free_port()}/0")

    with pytest.raises(redis.ConnectionError):
        client.ping()

    assert 10 <= clock.now <= 11


def test_retries_within_a_retry_do_not_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a command whose connection broke, and a Redis that is away, I expect an error after the same time."""
    clock = Clock(monkeypatch)
    pool = connect_persistent(f"redis://127.0.0.1:{free_port()}/0").connection_pool
    connection: Any = pool.make_connection()

    with pytest.raises(redis.ConnectionError):
        connection.retry.call_with_retry(lambda: connection.send_command("PING"), lambda _: connection.disconnect())

    assert 10 <= clock.now <= 11


def test_a_process_warns_of_renamed_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a setting under its old name, I expect one warning with both names, and its value."""
    monkeypatch.setattr(process, "configure_logging", lambda *_: None)
    monkeypatch.setenv("LTM_READ_AHEAD", "7")

    with capture_logs() as lines:
        assert bootstrap("memory").ltm_prefetch == 7

    assert lines == [
        {"event": "setting_renamed", "log_level": "warning", "old": "LTM_READ_AHEAD", "new": "LTM_PREFETCH"}
    ]


def test_a_process_warns_of_unknown_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given variables that are nearly settings, I expect a warning for each, without its value."""
    monkeypatch.setattr(process, "configure_logging", lambda *_: None)
    for name in (
        "LTM_LOG_LEVL",
        "CHAT_MODLE",
        "LTM_PROCESS_NAME",
        "MEMORY_PRESSURE_WATCH",
        "MEMORY_OF_MY_OWN",
        "OTHER_LTM_LOG_LEVL",
        "MEMORY_SERVICE_HOST",  # of Kubernetes
        "CHAT_AI_PORT_80_TCP_ADDR",
    ):
        monkeypatch.setenv(name, "hush")

    with capture_logs() as lines:
        bootstrap("memory")

    assert sorted((line["variable"], line["nearest"]) for line in lines) == [
        ("CHAT_MODLE", "CHAT_MODEL"),
        ("LTM_LOG_LEVL", "LTM_LOG_LEVEL"),
        ("MEMORY_OF_MY_OWN", None),
    ]
    assert {line["event"] for line in lines} == {"setting_unknown"}
    assert "hush" not in str(lines)


def test_a_wrong_setting_ends_the_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Given a wrong setting, I expect one line, and the exit code by which no supervisor starts the process again."""
    monkeypatch.setenv("LTM_PREFETCH", "many")

    with pytest.raises(SystemExit) as ended:
        bootstrap("memory")

    assert ended.value.code == EXIT_CANNOT_START
    error = capsys.readouterr().err
    assert error.startswith("ltm: LTM_PREFETCH is 'many'; allowed: ")
    assert error.count("\n") == 1


def test_the_log_of_a_process_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a process that starts, I expect its logging configured with its settings and its name."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(process, "configure_logging", lambda *arguments: calls.append(arguments))

    settings = bootstrap("chat-ai")

    assert calls == [(settings, "chat-ai")]
    assert settings == load_settings()


def test_a_connection_logs_an_outage_once_and_backs_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given failures in a row, I expect one line, growing waits, and the first wait again after a success."""
    waits: list[float] = []

    async def no_pause(seconds: float, _: asyncio.Event) -> None:
        waits.append(seconds)

    monkeypatch.setattr(process, "pause", no_pause)

    async def story() -> None:
        connection = LoopConnection("ai_responses", asyncio.Event())
        connection.up()
        for _ in range(3):
            await connection.down(RedisConnectionError("gone"))
        connection.up()
        await connection.down(RedisConnectionError("gone again"))

    with capture_logs() as lines:
        asyncio.run(story())

    assert waits == [0.1, 0.2, 0.4, 0.1]
    assert [(line["event"], line["dependency"], line["at"]) for line in lines] == [
        (event, "redis", "ai_responses") for event in ("dependency_down", "dependency_up", "dependency_down")
    ]
    assert lines[0]["reason"] == "ConnectionError: gone"


def test_a_loop_works_while_it_is_connected_and_turns() -> None:
    """Given a loop, I expect it to work from its first success on, not in an outage, and not when it is stuck."""
    now = 1_000.0
    stop = asyncio.Event()
    stop.set()  # so that nothing waits
    connection = LoopConnection("ai_responses", stop, clock=lambda: now)
    assert not connection.working()

    connection.up()
    assert connection.working()
    now += STUCK_AFTER_S
    assert not connection.working()

    connection.up()
    with capture_logs():
        asyncio.run(connection.down(OSError("gone")))
    assert not connection.working()


def test_a_pause_ends_with_the_stop() -> None:
    """Given a stop during a long pause, I expect its end; without one, the end after its time."""

    async def story() -> None:
        stop = asyncio.Event()
        await pause(0.01, stop)
        asyncio.get_running_loop().call_soon(stop.set)
        async with asyncio.timeout(30):
            await pause(60, stop)

    asyncio.run(story())


def test_a_channel_is_read_again_after_an_outage() -> None:
    """Given an error while listening, I expect a new subscription, and its messages passed on in order."""

    async def story() -> None:
        server = fakeredis.FakeServer()
        client, publisher = (fakeredis.FakeAsyncRedis(server=server) for _ in range(2))
        stop, received = asyncio.Event(), list[bytes]()
        server.connected = False

        async def handle(raw: bytes) -> None:
            received.append(raw)

        task = asyncio.create_task(listen(client, "news", handle, LoopConnection("news", stop), stop))
        await eventually(lambda: lines, description="the outage")
        server.connected = True
        for content in (b"one", b"two"):
            await eventually(partial(publisher.publish, "news", content), description="a subscriber")
        await eventually(lambda: len(received) == 2, description="both messages")
        stop.set()
        await task
        assert received == [b"one", b"two"]

    with capture_logs() as lines, asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(story())
    assert [line["event"] for line in lines] == ["dependency_down", "dependency_up"]


def test_tasks_are_cancelled_until_they_end() -> None:
    """Given a task that swallows its first cancellation, I expect it to be cancelled again."""
    swallowed: list[bool] = []

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if swallowed:
                    raise
                swallowed.append(True)

    async def story() -> None:
        tasks = [asyncio.create_task(stubborn()), asyncio.create_task(asyncio.sleep(60))]
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await cancel_all(tasks)
        assert all(task.done() for task in tasks)

    asyncio.run(story())
    assert swallowed == [True]
