"""The small parts of the stack: logs, ports, names, and how commands find a running stack."""

from __future__ import annotations

import socket
import stat
from pathlib import Path
from typing import Any

import dramatiq
import fakeredis
import pytest
from dramatiq.brokers.redis import RedisBroker
from keepsake_client import protocol

from services.runtime.errors import InvalidSetting, PortTaken, StackError
from services.runtime.queues import INDEX_QUEUE, INTERACTIVE_QUEUE, WRITES_QUEUE, queue_depths
from services.runtime.settings import Settings, load_settings
from services.stack.data_directory import DataDirectory, StackRecord
from services.stack.locate import find_stack, shared_settings
from services.stack.logfile import BoundedLog
from services.stack.probe import client_of, probe
from services.stack.processes import NAMES, SERVICES, check_names, service_specs
from services.stack.readiness import Readiness
from services.stack.sockets import check_port, free_port, make_socket_directory, remove_socket_directory

# --- logs


def test_a_log_over_its_limit_becomes_the_older_one_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log", max_bytes=10)
    with log.open() as writer:
        writer.write(b"first and long\n")
        writer.flush()

        log.trim()
        writer.write(b"second\n")

    assert (tmp_path / "a.log.1").read_text() == "first and long\n"
    assert (tmp_path / "a.log").read_text() == "second\n"


def test_a_log_within_its_limit_is_left_alone(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log", max_bytes=10)
    log.path.write_text("short\n")

    log.trim()

    assert log.tail(5) == ["short"]


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log")
    log.path.write_bytes(b"one\ntwo\n\xff three\n")

    assert log.tail(2) == ["two", "\ufffd three"]


# --- names


def test_the_processes_are_those_with_names() -> None:
    assert tuple(spec.name for spec in service_specs(Settings())) == SERVICES


def test_each_dramatiq_queue_has_a_process() -> None:
    queues = {spec.argv[-1] for spec in service_specs(Settings()) if "--queues" in spec.argv}

    assert queues == {INTERACTIVE_QUEUE, WRITES_QUEUE, INDEX_QUEUE}


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(StackError, match=r"there is no process 'chatai'; there are redis, postgres, .*chat-ai"):
        check_names(["memory", "chatai"])


def test_every_known_name_is_fine() -> None:
    check_names(NAMES)


# --- ports and sockets


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port()

    assert check_port(port, "--redis-port") == port


def test_a_taken_port_is_an_error_that_names_the_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        with pytest.raises(PortTaken, match=rf"port {port} on 127.0.0.1 cannot be used .* --redis-port"):
            check_port(port, "--redis-port")


def test_a_short_path_holds_its_sockets_itself(tmp_path: Path) -> None:
    assert make_socket_directory(Path("/short")) == Path("/short")


def test_a_path_too_long_for_sockets_gets_a_short_private_stand_in(tmp_path: Path) -> None:
    directory = make_socket_directory(tmp_path / ("long" * 30))
    (directory / ".s.PGSQL.5432").touch()

    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    remove_socket_directory(directory)
    assert not directory.exists()


def test_a_directory_with_anything_but_sockets_in_it_stays(tmp_path: Path) -> None:
    (tmp_path / "letter").touch()

    remove_socket_directory(tmp_path)

    assert (tmp_path / "letter").exists()


# --- finding the running stack


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def running(tmp_path: Path, no_settings: None) -> DataDirectory:
    """A data directory in which a stack runs that was given another queue's name."""
    directory = DataDirectory(tmp_path)
    settings = {"ltm_requests_queue": "asked", "user_input_queue": "said"}
    directory.write(
        StackRecord(
            redis_url="redis://here:1/0", database_url="postgresql://here/k", without=["chat-ai"], settings=settings
        )
    )
    return directory


def test_the_data_directory_tells_where_the_stack_is(running: DataDirectory) -> None:
    stack = find_stack(running, {})

    assert stack.redis_url == "redis://here:1/0"
    assert stack.settings.database_url.get_secret_value() == "postgresql://here/k"
    assert stack.settings.ltm_requests_queue == "asked"
    assert stack.without == ("chat-ai",)


def test_a_variable_wins_over_the_same_setting_of_the_running_stack(
    running: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTM_REQUESTS_QUEUE", "mine")

    settings = find_stack(running, {"LTM_REQUESTS_QUEUE": "mine"}).settings

    assert (settings.ltm_requests_queue, settings.user_input_queue) == ("mine", "said")


def test_redis_url_wins_over_the_data_directory(running: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://there:2/0")

    stack = find_stack(running, {"REDIS_URL": "redis://there:2/0"})

    assert (stack.redis_url, stack.database_known) == ("redis://there:2/0", False)


def test_with_neither_the_error_says_how_to_start_one(tmp_path: Path, no_settings: None) -> None:
    with pytest.raises(StackError, match=r"no stack runs in .*: start one with `ltm up`, or set REDIS_URL"):
        find_stack(DataDirectory(tmp_path), {})


def test_a_wrong_setting_is_told_before_anything_is_asked(
    running: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTM_SEARCH_TIMEOUT_MS", "soon")

    with pytest.raises(InvalidSetting, match="LTM_SEARCH_TIMEOUT_MS is 'soon'"):
        find_stack(running, {})


def test_only_settings_that_were_set_are_shared(no_settings: None) -> None:
    assert shared_settings(Settings(ltm_requests_queue="asked")) == {"ltm_requests_queue": "asked"}


# --- readiness and queues


@pytest.mark.parametrize(("pid", "expected"), [(None, True), (41, True), (40, True), (4, False)])
def test_a_process_answers_by_its_sign_of_life(pid: int | None, expected: bool) -> None:
    client = fakeredis.FakeRedis()
    client.set(protocol.alive_key("memory"), "host:41:40")  # host : pid : parent

    assert Readiness(client, lambda: False).answers("memory", pid) is expected


def test_a_process_without_a_sign_of_life_does_not_answer() -> None:
    assert not Readiness(fakeredis.FakeRedis(), lambda: False).answers("memory")


def test_servers_are_asked_themselves() -> None:
    server = fakeredis.FakeServer()
    readiness = Readiness(fakeredis.FakeRedis(server=server), lambda: True)
    assert readiness.answers("redis")
    assert readiness.answers("postgres")

    server.connected = False

    assert not readiness.answers("redis")
    assert not readiness.answers("memory")


def test_the_depth_of_a_queue_is_what_dramatiq_keeps_in_redis() -> None:
    # Given Dramatiq's own broker with three messages, of which one is fetched and one delayed
    client = fakeredis.FakeRedis()
    broker = RedisBroker(client=client, middleware=[])
    broker.declare_queue(INDEX_QUEUE)
    for delay in (None, None, 60_000):
        message: dramatiq.Message[Any] = dramatiq.Message(
            queue_name=INDEX_QUEUE, actor_name="a", args=(), kwargs={}, options={}
        )
        broker.enqueue(message, delay=delay)
    broker.do_fetch(INDEX_QUEUE, 1)

    assert queue_depths(client)[INDEX_QUEUE] == {"waiting": 1, "working": 1, "delayed": 1, "dead": 0}


# --- the check of the whole path


@pytest.fixture
def without_redis(no_settings: None) -> Settings:
    return load_settings(redis_url="redis://127.0.0.1:1/0")


def test_the_probe_is_the_error_of_a_search(without_redis: Settings) -> None:
    assert str(probe(without_redis, timeout_s=5)).startswith("unavailable: Redis does not answer: ")


def test_a_client_of_the_stack_uses_its_names(without_redis: Settings) -> None:
    names = {"ltm_requests_queue": "q", "ltm_responses_channel": "r", "memory_updates_channel": "c"}
    client = client_of(load_settings(**names, ltm_stream_key="s", ltm_stream_max_len=1_000))._client

    assert (client._requests_queue, client._responses_channel) == ("q", "r")
    assert (client._updates_channel, client._updates_stream, client._stream_max_len) == ("c", "s", 1_000)
