"""URLs of Redis behind Sentinel, and the selection of a master among the sentinels' answers."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keepsake_client import AsyncClient, Client, sentinel
from keepsake_client.connections import address, connect, connect_async
from keepsake_client.errors import InvalidURL
from keepsake_client.sentinel import _AsyncSentinels, _Sentinels
from keepsake_client.sentinel_url import SentinelURL, parse_sentinel_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.sentinel import MasterNotFoundError, SentinelManagedConnection, SentinelManagedSSLConnection

from tests.support import eventually, wait_until

PARSED = {
    "redis+sentinel://one:26379,two:26380,three/mymaster/2": SentinelURL(
        (("one", 26379), ("two", 26380), ("three", 26379)), "mymaster", {"db": 2}, {}, tls=False
    ),
    "redis+sentinel://[::1]:1,10.0.0.2/my.master-1_x": SentinelURL(
        (("::1", 1), ("10.0.0.2", 26379)), "my.master-1_x", {}, {}, tls=False
    ),
    "redis+sentinel://user:p%40%2F@one/m?socket_timeout=3&sentinel_username=asker&sentinel_password=%23": SentinelURL(
        (("one", 26379),),
        "m",
        {"username": "user", "password": "p@/", "socket_timeout": 3.0},
        {"username": "asker", "password": "#"},
        tls=False,
    ),
    "rediss+sentinel://one/m?ssl_ca_certs=/ca&sentinel_ssl_ca_certs=/other": SentinelURL(
        (("one", 26379),), "m", {"ssl_ca_certs": "/ca"}, {"ssl": True, "ssl_ca_certs": "/other"}, tls=True
    ),
    "rediss+sentinel://one/m?ssl_ca_certs=/ca&sentinel_ssl=false": SentinelURL(
        (("one", 26379),), "m", {"ssl_ca_certs": "/ca"}, {}, tls=True
    ),
}


@pytest.mark.parametrize("url", PARSED)
def test_a_url_has_sentinels_a_service_and_options(url: str) -> None:
    """Given a URL, I expect its parts; those for the sentinels apart, TLS with one set of certificates unless told."""
    assert parse_sentinel_url(url) == PARSED[url]


MISSPELT = {
    "redis-sentinel://hush/m": "begins with redis[+]sentinel",
    "sentinel://hush/m": "begins with redis[+]sentinel",
    "redis+sentinel://hush:26379/0": "the name of the sentinels' service",
    "redis+sentinel://hush:26379": "the name of the sentinels' service",
    "redis+sentinel://hush/m/one": "a database that is a number",
    "redis+sentinel://hush/m/0/1": "a database that is a number",
    "redis+sentinel://hush/m%0aPING": "the name of the sentinels' service",
    "redis+sentinel:///m": "a name or an address for each sentinel",
    "redis+sentinel://one,,hush/m": "a name or an address for each sentinel",
    "redis+sentinel://one:0,hush/m": "each with a port",
    "redis+sentinel://one:65536,hush/m": "each with a port",
    "redis+sentinel://one,hush:port/m": "each with a port",
    "redis+sentinel://one hush/m": "a name or an address for each sentinel",
    "redis+sentinel://[::1,hush/m": "a name or an address for each sentinel",
    "redis+sentinel://:hu@hush@one/m": "percent-encoded",
    "redis+sentinel://:hush%zz@one/m": "percent-encoded",
    "redis+sentinel://:hush#1@one/m": "percent-encoded",
    "redis+sentinel://:hush/1@one/m": "percent-encoded",
    "redis+sentinel://:hush?1@one/m": "percent-encoded",
    "redis+sentinel://one/m?passwort=hush": "options of redis-py",
    "redis+sentinel://one/m?host=hush": "options of redis-py",
    "redis+sentinel://one/m?sentinel_host=hush": "options of redis-py",
    "redis+sentinel://one/m?socket_timeout=hush": "options of redis-py",
}


@pytest.mark.parametrize("url", MISSPELT)
@pytest.mark.parametrize("opened", [AsyncClient, Client, connect, connect_async])
def test_a_misspelt_url_is_one_line_with_the_remedy(opened: Any, url: str) -> None:
    """Given a misspelt URL, I expect one line that says what is allowed, and nothing of the URL."""
    with pytest.raises(InvalidURL, match=f"; allowed: a URL .*{MISSPELT[url]}") as refused:
        opened(url)

    assert "hush" not in str(refused.value)
    assert "\n" not in str(refused.value)


@given(st.text(max_size=80))
def test_no_url_raises_anything_else(rest: str) -> None:
    """Given any text after the scheme, I expect it parsed or refused as such."""
    with suppress(InvalidURL):
        assert parse_sentinel_url(f"redis+sentinel://{rest}").service


def test_one_address_is_connected_as_before() -> None:
    """Given the URL of one server, I expect redis-py's plain pools, and nothing of Sentinel."""
    url = "redis://host/1"
    clients: list[Any] = [connect(url), connect_async(url), connect_async(url, waits=True)]

    pools = [type(client.connection_pool) for client in clients]

    assert [f"{pool.__module__}.{pool.__name__}" for pool in pools] == [
        "redis.connection.ConnectionPool",
        "redis.asyncio.connection.ConnectionPool",
        "redis.asyncio.connection.BlockingConnectionPool",
    ]


@pytest.mark.parametrize(
    ("scheme", "connection"),
    [("redis+sentinel", SentinelManagedConnection), ("rediss+sentinel", SentinelManagedSSLConnection)],
)
def test_connections_are_redis_pys_own(scheme: str, connection: type) -> None:
    """Given a URL for Sentinel, I expect redis-py's connections, with TLS where it says so."""
    pool: Any = connect(f"{scheme}://one/mymaster").connection_pool

    assert isinstance(pool.make_connection(), connection)


def test_a_client_names_its_service() -> None:
    """Given a client that never connected, I expect its service in place of an address, and no password."""
    client = connect("redis+sentinel://:hush@one/mymaster/3")

    assert address(client) == "master:unknown/3 (mymaster of Redis Sentinel)"


class Asked:
    """A sentinel that answers as the test says."""

    def __init__(self, answer: dict[str, Any] | Exception, host: str) -> None:
        self.answer = answer
        self.connection_pool = self
        self.connection_kwargs = {"host": host, "port": 26379}

    def sentinel_masters(self) -> dict[str, Any]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def state(port: int, epoch: int, **flags: bool) -> dict[str, Any]:
    """What a sentinel says of `mymaster`."""
    up = {"is_master": True, "is_sdown": False, "is_odown": False}
    return {"mymaster": {"ip": "10.0.0.1", "port": port, "config-epoch": epoch, **up, **flags}}


def sentinels(*answers: dict[str, Any] | Exception | Asked) -> _Sentinels:
    """Sentinels that answer so."""
    asked = _Sentinels([])
    clients: list[Any] = [
        answer if isinstance(answer, Asked) else Asked(answer, f"s{number}") for number, answer in enumerate(answers)
    ]
    asked.sentinels = clients
    return asked


class Pool:
    """A pool that has its master's address looked up."""

    service_name = "mymaster"

    def __init__(self, asked: _Sentinels | _AsyncSentinels) -> None:
        self._asked = asked

    def connection_pool_ref(self) -> Pool:
        return self

    def get_master_address(self) -> None:
        self._asked.discover_master(self.service_name)


def test_the_first_sentinel_that_knows_decides() -> None:
    """Given sentinels of which the first does not answer and the second has the master down, I expect the third's."""
    asked = sentinels(RedisTimeoutError("hush"), state(1, 5, is_sdown=True), state(2, 5))

    assert asked.discover_master("mymaster") == ("10.0.0.1", 2)


def test_a_sentinel_that_was_cut_off_is_not_believed() -> None:
    """Given a first sentinel that has not learnt of the last failover, I expect the others' master once all were asked,
    and no way back to the old one when the others find theirs down."""
    behind, knows = state(1, 3), state(2, 4)
    asked = sentinels(behind, knows)
    assert asked.discover_master("mymaster") == ("10.0.0.1", 1)

    asked.follow(Pool(asked))
    assert asked.discover_master("mymaster") == ("10.0.0.1", 2)

    knows["mymaster"]["is_sdown"] = True
    with pytest.raises(MasterNotFoundError, match=r"s0:26379 has not learnt of the last failover"):
        asked.discover_master("mymaster")


def test_sentinels_that_were_set_up_anew_are_believed() -> None:
    """Given sentinels that all began to count their failovers anew, I expect them believed once all were asked."""
    answer = state(1, 9)
    asked = sentinels(answer)
    asked.follow(Pool(asked))

    answer.update(state(2, 0))
    asked.follow(Pool(asked))

    assert asked.discover_master("mymaster") == ("10.0.0.1", 2)


def test_one_sentinel_alone_is_not_believed_against_the_last_failover() -> None:
    """Given the last failover, and then an answer of the one sentinel that has not learnt of it alone, I expect its
    master left; and believed once a second one says the same."""
    behind, knows = Asked(state(1, 3), "s0"), Asked(state(2, 4), "s1")
    asked = sentinels(behind, knows, RedisTimeoutError("hush"))
    asked.follow(Pool(asked))

    knows.answer = RedisTimeoutError("hush")
    asked.follow(Pool(asked))
    with pytest.raises(MasterNotFoundError, match=r"s0:26379 has not learnt of the last failover"):
        asked.discover_master("mymaster")

    knows.answer = state(1, 3)
    asked.follow(Pool(asked))
    assert asked.discover_master("mymaster") == ("10.0.0.1", 1)


class Swallowing:
    """A sentinel that is asked for a second time where the first cancellation is swallowed, as redis-py may do."""

    connected = swallowed = False

    async def sentinel_masters(self) -> None:
        self.connected = True
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.swallowed = True
        self.connected = True
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.connected = False


def test_closing_ends_an_asyncio_watcher_before_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a watcher that misses its cancellation amid a question, I expect it ended and nothing connected."""
    monkeypatch.setattr(sentinel, "WATCH_INTERVAL_S", 0)

    async def story() -> None:
        asked, answering = _AsyncSentinels([]), Swallowing()
        clients: list[Any] = [answering]
        asked.sentinels = clients
        asked.watch(Pool(asked))
        await eventually(lambda: answering.connected, description="a question")

        async with asyncio.timeout(30):
            await asked.close_all()

        assert answering.swallowed
        assert not answering.connected
        assert [task for task in asyncio.all_tasks() if task.get_name() == "redis-sentinel"] == []

    asyncio.run(story())


class Slow(Asked):
    """A sentinel that answers when the connection to it is closed, and is connected to by each question."""

    def __init__(self, host: str) -> None:
        super().__init__({}, host)
        self.connected = False
        self._closed = threading.Event()

    def sentinel_masters(self) -> dict[str, Any]:
        self.connected = True
        self._closed.wait()
        raise RedisConnectionError("closed")

    def close(self) -> None:
        self.connected = False
        self._closed.set()


def test_a_watcher_that_is_late_closes_what_it_has_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a thread that asks for longer than closing waits for it, I expect no connection after its end."""
    monkeypatch.setattr(sentinel, "WATCH_INTERVAL_S", 0)
    monkeypatch.setattr(sentinel, "TIMEOUT_S", 0)
    asked, slow = sentinels(), [Slow("s0"), Slow("s1")]
    clients: list[Any] = slow
    asked.sentinels = clients
    asked.watch(Pool(asked))
    wait_until(lambda: slow[0].connected, description="a question")

    asked.close_all()

    watcher: Any = asked._watcher
    wait_until(lambda: not watcher.is_alive(), description="the end of the watcher")
    assert not any(each.connected for each in slow)


class Encrypted(socket.socket):
    """A socket that is no longer encrypted after its own shutdown, as Python's of TLS."""

    encrypted = True

    def shutdown(self, how: int) -> None:
        self.encrypted = False
        super().shutdown(how)


def test_a_connection_with_tls_is_left_as_one() -> None:
    """Given a connection with TLS to another server than the master, I expect it ended, and nothing that its thread
    sends at that moment without TLS."""
    own, peer = socket.socketpair()
    client: Any = connect("rediss+sentinel://one/mymaster")
    connection = client.connection_pool.make_connection()
    connection.host, connection.port = "10.0.0.1", 6379
    with Encrypted(fileno=own.detach()) as tls, peer:
        connection._sock = tls

        connection.leave_unless(("10.0.0.2", 6379))

        assert peer.recv(1) == b""
        assert tls.encrypted
        connection._sock = None


def test_what_keeps_a_master_from_being_found_is_said() -> None:
    """Given sentinels that are of no use, I expect one outage, with the reason of each."""
    asked = sentinels(
        RedisConnectionError("Connection\nrefused"),
        NoPermissionError("hush"),
        {"other": {}},
        state(1, 0, is_odown=True),
    )

    with pytest.raises(RedisConnectionError) as lost:
        asked.discover_master("mymaster")

    assert str(lost.value) == (
        "no master of 'mymaster': sentinel s0:26379 does not answer (Connection refused), sentinel s1:26379 does"
        " not permit its user SENTINEL MASTERS, sentinel s2:26379 knows no service 'mymaster', sentinel s3:26379 finds"
        " the master down"
    )
