"""The start of `ltm up`: its ports, and its time-out."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import fakeredis
import pytest
from keepsake_client.protocol import alive_key, process_key

from services.runtime.errors import PortTaken, StackError
from services.runtime.setting_values import values_of
from services.runtime.settings import GATEWAY_PORT, Settings, load_settings
from services.stack import addresses, launch
from services.stack.addresses import Addresses, LaunchOptions, choose_addresses
from services.stack.data_directory import DataDirectory
from services.stack.environment import child_environment
from services.stack.launch import Launch
from services.stack.processes import EXTRACTOR, GATEWAY, POSTGRES, REDIS, WORKER
from services.stack.sockets import FREE_PORTS
from services.stack.stop_request import StopRequest
from services.stack.supervisor import Supervisor

ADDRESSES = Addresses("redis://nowhere", "postgresql://nowhere", [], None)


def redis_url(directory: Path, **options: Any) -> str:
    """The address of the Redis that `ltm up` would start with these options."""
    return chosen(directory, without=(POSTGRES, GATEWAY), **options).redis_url


def gateway_port(directory: Path, **options: Any) -> int | None:
    """The port of the gateway that `ltm up` would start with these options."""
    return chosen(directory, **{"without": (POSTGRES, REDIS), **options}).gateway_port


def chosen(directory: Path, **options: Any) -> Addresses:
    with ExitStack() as at_exit:
        return choose_addresses(LaunchOptions(directory, **options), {}, DataDirectory(directory), at_exit)


def test_the_embedded_redis_has_a_port_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no option, I expect the documented port; given one, that one."""
    monkeypatch.setattr(addresses, "check_port", lambda port, *_: port)

    assert redis_url(tmp_path) == "redis://127.0.0.1:18379/0"
    assert redis_url(tmp_path, redis_port=7000) == "redis://127.0.0.1:7000/0"
    assert redis_url(tmp_path, redis_port=7000, ephemeral=True) == "redis://127.0.0.1:7000/0"


def test_the_gateway_has_a_port_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no option, I expect the documented port; given an option, or else a setting, that one."""
    monkeypatch.setattr(addresses, "check_port", lambda port, *_: port)

    assert gateway_port(tmp_path) == GATEWAY_PORT == 18_380
    assert gateway_port(tmp_path, gateway_port=7000, ephemeral=True) == 7000
    monkeypatch.setenv("LTM_GATEWAY_PORT", "7001")
    assert gateway_port(tmp_path) == gateway_port(tmp_path, ephemeral=True) == 7001
    assert gateway_port(tmp_path, gateway_port=7000) == 7000
    assert gateway_port(tmp_path, without=(POSTGRES, REDIS, GATEWAY)) is None


@pytest.mark.parametrize("options", [{"gateway_port": 0}, {"ephemeral": True}])
def test_temporary_stacks_have_gateways_side_by_side(tmp_path: Path, options: dict[str, Any]) -> None:
    """Given port 0 or a temporary stack, I expect another port each time, which no outgoing connection is given."""
    ports = {gateway_port(tmp_path, **options) for _ in range(3)}

    assert len(ports) > 1
    assert all(port in FREE_PORTS for port in ports)


def test_a_taken_port_of_the_gateway_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the port of another program, on the address of the setting, I expect one line with the remedies."""
    monkeypatch.setenv("LTM_GATEWAY_HOST", "127.0.0.2")
    with socket.create_server(("127.0.0.2", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            PortTaken,
            match=f"^port {port} on 127.0.0.2 .* --gateway-port, or 0 .*LTM_GATEWAY_HOST.*--without gateway$",
        ):
            gateway_port(tmp_path, gateway_port=port)


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b"])
def test_an_address_that_this_host_does_not_have_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Given an address of another host, or no host name, as LTM_GATEWAY_HOST, I expect one line that quotes it."""
    monkeypatch.setenv("LTM_GATEWAY_HOST", host)

    with pytest.raises(PortTaken, match=rf"^port 7000 on {host} cannot be used \(.+\); give another with"):
        gateway_port(tmp_path, gateway_port=7000)


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://0.0.0.0:1"), ("::1", "http://[::1]:1")])
def test_the_address_of_the_gateway_is_a_url(host: str, url: str) -> None:
    """Given a host of the gateway, I expect a URL, with brackets around an IPv6 address."""
    assert load_settings(ltm_gateway_host=host, ltm_gateway_port=1).gateway_url == url


@pytest.mark.parametrize("options", [{"redis_port": 0}, {"ephemeral": True}])
def test_port_0_and_a_temporary_stack_take_a_free_port(tmp_path: Path, options: dict[str, Any]) -> None:
    """Given port 0 or a temporary stack, I expect another free port each time."""
    urls = {redis_url(tmp_path, **options) for _ in range(3)}

    assert len(urls) > 1
    assert "redis://127.0.0.1:18379/0" not in urls


@pytest.mark.parametrize("ours", [True, False])
def test_a_taken_port_says_whether_another_stack_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    """Given the port of another program or stack, I expect one line with the remedy, and whose it is if it is ours."""
    redis = fakeredis.FakeRedis()
    if ours:
        redis.set(alive_key("memory"), "host:1:1")
    monkeypatch.setattr(addresses, "connect", lambda *_: redis)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            PortTaken, match=f"port {port} .* give another with --redis-port, or 0 for a free one"
        ) as taken:
            redis_url(tmp_path, redis_port=port)

    assert ("Another Keepsake answers there" in str(taken.value)) == ours


def test_a_data_directory_that_is_gone_is_one_line(starting: Launch, printed: list[str], tmp_path: Path) -> None:
    """Given a data directory that is renamed while the stack runs, I expect one sentence, and no error."""
    directory = DataDirectory(tmp_path / "data")
    directory.create()
    starting._report_gone(directory)
    directory.path.rename(tmp_path / "elsewhere")

    for _ in range(2):
        starting._report_gone(directory)
        starting._record(directory, ADDRESSES, load_settings(), {})

    assert printed == [f"the data directory {directory.path} is gone: what runs goes on, but a restart may fail"]


class NeverReady:
    """A supervisor whose worker runs and does not become ready."""

    names = (WORKER,)

    def last_lines(self, _: str) -> list[str]:
        return ["still loading"]


@pytest.fixture
def printed() -> list[str]:
    return []


@pytest.fixture
def clock() -> list[float]:
    """The time in seconds, as the launch sees it, to be changed in place."""
    return [1_000.0]


@pytest.fixture
def starting(printed: list[str], clock: list[float], tmp_path: Path) -> Launch:
    """A launch that may take 60 s."""
    options, stop = LaunchOptions(tmp_path), StopRequest()
    return Launch(
        options, {}, printed.append, lambda _: 1, stop, lambda *_: None, start_timeout_s=60.0, clock=lambda: clock[0]
    )


def check(starting: Launch, pending: list[str]) -> None:
    starting._check_deadline(
        cast(Supervisor, NeverReady()), pending, ADDRESSES, load_settings(broker_url="redis://nowhere/1")
    )


def test_the_start_fails_when_a_worker_is_not_ready_in_time(
    starting: Launch, printed: list[str], clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a worker that is not ready, I expect its last lines as the error at the deadline, and not before."""
    monkeypatch.setattr(launch, "migrating", lambda _: False)
    clock[0] += 60
    check(starting, [WORKER])

    clock[0] += 1
    with pytest.raises(StackError, match="long-term-memory-worker did not answer within 60 s; last lines:") as failed:
        check(starting, [WORKER])
    assert str(failed.value).endswith("long-term-memory-worker: still loading")
    assert printed == []


def test_the_start_fails_when_no_search_is_answered_in_time(
    starting: Launch, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given that every process is ready and no search is answered, I expect the last lines of those that answer."""
    monkeypatch.setattr(launch, "migrating", lambda _: False)
    clock[0] += 61

    with pytest.raises(
        StackError, match="no search was answered within 60 s; last lines:\n  long-term-memory-worker: still loading"
    ):
        check(starting, [])


def test_a_migration_extends_the_deadline(
    starting: Launch, printed: list[str], clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a migration under way at the deadline, I expect one line, and as much time again."""
    monkeypatch.setattr(launch, "migrating", lambda _: True)
    clock[0] += 61

    for _ in range(3):
        check(starting, [WORKER])
    assert printed == ["the database is being migrated, which may take minutes"]

    clock[0] += 61
    check(starting, [WORKER])
    assert len(printed) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [(REDIS, "REDIS_URL is 'redis://nowhere'"), (POSTGRES, "DATABASE_URL is 'postgresql://nowhere'")],
)
def test_an_external_server_has_less_time(starting: Launch, clock: list[float], name: str, message: str) -> None:
    """Given a server that this stack does not start, I expect an error after 20 s that names its variable."""
    clock[0] += 20
    check(starting, [name])

    clock[0] += 1
    with pytest.raises(StackError, match=f"{message}, and no server answers there"):
        check(starting, [name])


def test_a_ready_file_that_cannot_be_written_is_one_line(printed: list[str], tmp_path: Path) -> None:
    """Given a ready file in a directory that there is not, I expect one line that names the option."""
    options = LaunchOptions(tmp_path, ready_file=tmp_path / "none" / "ready.json")
    launch = Launch(options, {}, printed.append, lambda _: 1, StopRequest(), lambda *_: None)

    with pytest.raises(StackError, match=r"^--ready-file .*ready\.json cannot be written \(No such file"):
        launch._announce(ADDRESSES, load_settings(), DataDirectory(tmp_path), {})


@pytest.mark.parametrize(("provider", "alive", "kept"), [(None, False, 0), (None, True, 1), ("openai", False, 1)])
def test_an_extractor_of_an_earlier_start_is_not_expected(
    starting: Launch, provider: str | None, alive: bool, kept: int
) -> None:
    """Given a start without an LLM after one with it, I expect the record of the extractor gone, by which `ltm status`
    would miss it; unless another host runs one."""
    client = fakeredis.FakeRedis()
    client.set(process_key(EXTRACTOR), "{}")
    if alive:
        client.set(alive_key(EXTRACTOR), "host:1:1")

    starting._record_left_out(client, load_settings(ltm_llm_provider=provider))

    assert client.exists(process_key(EXTRACTOR)) == kept


def test_what_ltm_up_has_chosen_is_named(tmp_path: Path) -> None:
    """Given addresses, one of which is the environment's own, I expect the others to be named as those of `ltm up`, and
    to be shown so beside the environment's."""
    given = {"REDIS_URL": ADDRESSES.redis_url, "LTM_GATEWAY_KEYS": "my.json", "LTM_LOG_LEVEL": "debug"}

    environment = child_environment(given, ADDRESSES, DataDirectory(tmp_path))

    assert environment["LTM_SET_BY_UP"] == "DATABASE_URL"
    values = {value.variable: value for value in values_of(Settings(), environment)}
    assert [values[name].source for name in ("DATABASE_URL", "REDIS_URL", "LTM_LOG_LEVEL", "LTM_PREFETCH")] == [
        "ltm up",
        "environment",
        "environment",
        "default",
    ]


@pytest.mark.parametrize(
    ("variables", "keys", "optional"),
    [
        ({}, "data/keys.json", "true"),
        ({"LTM_GATEWAY_KEYS": ""}, "data/keys.json", "true"),
        ({"LTM_GATEWAY_KEYS": "my.json"}, "my.json", None),
    ],
)
def test_the_gateway_gets_the_key_file_of_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], keys: str, optional: str | None
) -> None:
    """Given no LTM_GATEWAY_KEYS, I expect that of the data directory, where `ltm key` writes and there may be none yet;
    a path that is set is of the directory in which `ltm up` was called, not of the one in which the processes run."""
    monkeypatch.chdir(tmp_path)

    environment = child_environment(variables, ADDRESSES, DataDirectory(tmp_path / "data"))

    assert environment["LTM_GATEWAY_KEYS"] == str(tmp_path / keys)
    assert environment.get("LTM_GATEWAY_KEYS_OPTIONAL") == optional
