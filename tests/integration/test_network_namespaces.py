"""The hosts that other tests make of network namespaces: what reaches whom, and how late."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.network_namespaces import NAMESPACES, Host, Network, network, unavailable
from tests.support import wait_until

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
PORT = 7000


def echo(host: Host) -> threading.Thread:
    """A server of UDP on a host, which sends back what it receives until that is "end"."""
    with host.entered():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((host.address, PORT))

    def serve() -> None:
        with server:
            while True:
                data, sender = server.recvfrom(2000)
                if data == b"end":
                    break
                server.sendto(data, sender)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


class Lab:
    """Three hosts, each with an echo."""

    def __init__(self, made: Network) -> None:
        self.hosts = {name: made.host(name) for name in ("a", "b", "c")}
        self.servers = [echo(host) for host in self.hosts.values()]

    def round_trip_s(self, one: str, two: str, within_s: float = 5.0) -> float | None:
        """How long a datagram took there and back; None where it is swallowed."""
        with self.hosts[one].entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(within_s)
            sent = time.monotonic()
            try:
                asker.sendto(b"there?", (self.hosts[two].address, PORT))
                asker.recv(2000)
            except OSError:  # no answer in time, or none to the question who has this address
                return None
            return time.monotonic() - sent

    def reaches(self, one: str, two: str) -> bool:
        return self.round_trip_s(one, two) is not None

    def misses(self, one: str, two: str) -> bool:
        return self.round_trip_s(one, two, within_s=0.3) is None

    def close(self) -> None:
        for host, server in zip(self.hosts.values(), self.servers, strict=True):
            with host.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
                asker.sendto(b"end", (host.address, PORT))
            server.join()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with network() as made:
        lab = Lab(made)
        yield lab
        lab.close()


def test_a_host_reaches_the_others_and_not_the_machine(lab: Lab) -> None:
    """Given hosts, I expect each to reach the others, and no address of the machine's beside its own loopback."""
    assert lab.reaches("a", "b")
    assert lab.reaches("c", "a")
    with (
        socket.create_server(("127.0.0.1", 0)) as of_the_machine,
        lab.hosts["a"].entered(),
        pytest.raises(ConnectionRefusedError),
    ):
        socket.create_connection(of_the_machine.getsockname(), timeout=5)


def test_a_host_that_is_cut_off_is_silent_until_it_is_healed(lab: Lab) -> None:
    """Given a host cut off, I expect what goes to and from it swallowed, and the others to reach each other."""
    lab.hosts["b"].cut_off()

    assert (lab.misses("a", "b"), lab.misses("b", "a"), lab.reaches("a", "c")) == (True, True, True)

    lab.hosts["b"].heal()
    wait_until(lambda: lab.reaches("a", "b"), description="b again")


def test_two_hosts_can_be_cut_off_from_each_other_alone(lab: Lab) -> None:
    """Given two hosts cut off from each other, I expect each to reach the third; healed, I expect both to meet."""
    lab.hosts["a"].cut_off(lab.hosts["b"])

    assert (lab.misses("a", "b"), lab.misses("b", "a")) == (True, True)
    assert (lab.reaches("a", "c"), lab.reaches("b", "c")) == (True, True)

    lab.hosts["b"].heal()
    wait_until(lambda: lab.reaches("a", "b"), description="b again")


def test_a_slow_host_answers_late(lab: Lab) -> None:
    """Given 50 ms each way, I expect a round trip of at least 100 ms, after a cut too; given none, less again."""
    lab.hosts["b"].slow(0.05)
    assert (lab.round_trip_s("a", "b") or 0) >= 0.1
    lab.hosts["b"].cut_off()
    assert lab.misses("a", "b")
    lab.hosts["b"].heal()
    wait_until(lambda: lab.reaches("a", "b"), description="b again")
    assert (lab.round_trip_s("b", "c") or 0) >= 0.1

    lab.hosts["b"].slow(0)

    wait_until(lambda: (lab.round_trip_s("a", "b") or 1) < 0.1, description="b without delay")


def test_a_lossy_host_loses_some(lab: Lab) -> None:
    """Given a loss of a third, I expect some datagrams swallowed, and others answered after them."""
    lab.hosts["b"].slow(0, loss=0.3)

    wait_until(lambda: lab.misses("a", "b"), description="one that is lost")
    wait_until(lambda: not lab.misses("a", "b"), description="one that is answered")


def test_tcp_through_a_slow_host_arrives_whole(lab: Lab) -> None:
    """Given a host with delay and loss, I expect three megabytes by TCP to be what was sent."""
    lab.hosts["b"].slow(0.005, loss=0.01)
    sent = bytes(range(256)) * 12_000
    with lab.hosts["b"].entered():
        server = socket.create_server((lab.hosts["b"].address, PORT))

    def send() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(sent)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    with lab.hosts["a"].entered():
        receiver = socket.create_connection((lab.hosts["b"].address, PORT), timeout=60)
    with receiver, server:
        received = b"".join(iter(lambda: receiver.recv(65_536), b""))
    sender.join()

    assert received == sent


def test_nothing_is_left() -> None:
    """Given a network that was left, I expect its namespaces removed."""
    before = set(NAMESPACES.glob("*")) if NAMESPACES.exists() else set()

    with network() as made:
        made.host("a")
        assert set(NAMESPACES.glob("*")) > before

    assert set(NAMESPACES.glob("*")) <= before
