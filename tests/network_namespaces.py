"""Hosts of one network on this machine: network namespaces on a bridge, each with a loopback and an address of its own.

    with network() as lab:
        a, b = lab.host("a"), lab.host("b")
        with a.entered():  # this thread, and the processes and threads it starts, are on host a
            server = subprocess.Popen(...)  # which listens on a.address, or on a's own 127.0.0.1
        b.slow(0.05)
        a.cut_off()
        a.heal()

It needs Linux, root and `ip` of iproute2. Everything is removed at the end, and nothing of the machine's own network
is touched: the bridge has a namespace of its own, too.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAMESPACES = Path("/run/netns")
#: Of this process's namespaces, whose id follows.
PREFIX = "keepsake-"
BRIDGE = "bridge"
NETWORK = "10.77.0"
#: No interface has it: a frame to it is dropped without an error.
UNASSIGNED_MAC = "02:00:00:00:00:01"

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
# Of linux/if_packet.h.
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
LARGEST_FRAME = 70_000


def unavailable() -> str | None:
    """Why there can be no namespaces here; None where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip` of iproute2"
    tried = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Host:
    """One host of a `Network`. Cutting it off or slowing it down closes no connection, and sends no error.

    Args:
        name: unique in its network, of at most eight characters.
        address: what the other hosts reach it by.
    """

    def __init__(self, name: str, address: str, namespace: str, bridge_namespace: str) -> None:
        self.name = name
        self.address = address
        self._namespace = namespace
        self._bridge_namespace = bridge_namespace
        self._port = self._outside = f"port-{name}"
        self._relay: subprocess.Popen[bytes] | None = None
        self._unreachable: set[Host] = set()
        ip("netns", "add", namespace)
        ip("link", "add", self._outside, "netns", bridge_namespace, "type", "veth", "peer", "eth0", "netns", namespace)
        self._ip("link", "set", "lo", "up")
        self._ip("address", "add", f"{address}/24", "dev", "eth0")
        self._ip("link", "set", "eth0", "up")
        self._bridge_ip("link", "set", self._outside, "master", BRIDGE, "up")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be on this host: the sockets that this thread opens, and the threads and processes that it starts, are.

        A connection stays where it was opened, whichever thread uses it.
        """
        before = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        try:
            _enter(NAMESPACES / self._namespace)
            yield
        finally:
            _set_namespace(before)
            os.close(before)

    def cut_off(self, other: Host | None = None) -> None:
        """Swallow every packet from and to this host, or those between it and one other."""
        if other is None:
            self._bridge_ip("link", "set", self._port, "nomaster")
            return
        for one, two in ((self, other), (other, self)):
            one._ip("neighbour", "replace", two.address, "lladdr", UNASSIGNED_MAC, "nud", "permanent", "dev", "eth0")
            one._unreachable.add(two)

    def heal(self) -> None:
        """Undo every `cut_off` of this host."""
        self._bridge_ip("link", "set", self._port, "master", BRIDGE)
        for other in list(self._unreachable):
            for one, two in ((self, other), (other, self)):
                one._ip("neighbour", "delete", two.address, "dev", "eth0")
                one._unreachable.discard(two)

    def slow(self, delay_s: float, loss: float = 0.0) -> None:
        """Delay what comes and goes by `delay_s` each way, and lose a share of it; 0 and 0 end it.

        By a process that forwards frames between the host and the bridge: many a kernel comes without netem.

        Args:
            loss: from 0 to 1. A frame that is lost may be of several segments of TCP.
        """
        was_cut_off = not self._on_bridge()
        if self._relay is not None:
            self._end_relay()
        if delay_s or loss:
            self._start_relay(delay_s, loss)
        self._bridge_ip("link", "set", self._port, "up")
        if not was_cut_off:
            self._bridge_ip("link", "set", self._port, "master", BRIDGE)

    def kill(self) -> None:
        """End every process of this host at once; SIGKILL."""
        _kill_all(self._namespace)

    def remove(self) -> None:
        """End the processes of this host, and the host."""
        if self._relay is not None:
            self._end_relay()
        _remove(self._namespace)

    def _start_relay(self, delay_s: float, loss: float) -> None:
        self._port, inside = f"slow-{self.name}", f"wire-{self.name}"
        self._bridge_ip("link", "set", self._outside, "nomaster")
        self._bridge_ip("link", "add", self._port, "type", "veth", "peer", inside)
        self._bridge_ip("link", "set", inside, "up")
        command = [sys.executable, __file__, self._bridge_namespace, self._outside, inside]
        self._relay = subprocess.Popen(
            [*command, "--delay", str(delay_s), "--loss", str(loss)], stdout=subprocess.PIPE, env={}
        )
        assert self._relay.stdout is not None
        assert self._relay.stdout.readline() == b"ready\n"

    def _end_relay(self) -> None:
        assert self._relay is not None
        assert self._relay.stdout is not None
        self._relay.kill()
        self._relay.wait()
        self._relay.stdout.close()
        self._relay = None
        self._bridge_ip("link", "delete", self._port)
        self._port = self._outside

    def _on_bridge(self) -> bool:
        return f"master {BRIDGE}" in ip("-n", self._bridge_namespace, "link", "show", self._port)

    def _ip(self, *arguments: str) -> None:
        ip("-n", self._namespace, *arguments)

    def _bridge_ip(self, *arguments: str) -> None:
        ip("-n", self._bridge_namespace, *arguments)


class Network:
    """A bridge, to which hosts are connected."""

    def __init__(self) -> None:
        self._name = f"{PREFIX}{os.getpid()}"
        self._hosts: list[Host] = []
        ip("netns", "add", self._name)
        ip("-n", self._name, "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
        ip("-n", self._name, "link", "set", BRIDGE, "up")

    def host(self, name: str) -> Host:
        """A new host."""
        host = Host(name, f"{NETWORK}.{len(self._hosts) + 1}", f"{self._name}-{name}", self._name)
        self._hosts.append(host)
        return host

    def remove(self) -> None:
        """End the processes of all hosts, and the network."""
        for host in self._hosts:
            host.remove()
        _remove(self._name)


@contextmanager
def network() -> Iterator[Network]:
    """A network without hosts; one for each process at a time. What a killed process left behind is removed first."""
    for left in list(NAMESPACES.glob(f"{PREFIX}*")) if NAMESPACES.exists() else []:
        owner = left.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            _remove(left.name)
    made = Network()
    try:
        yield made
    finally:
        made.remove()


def ip(*arguments: str) -> str:
    """The output of `ip`; its error is in the exception."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _remove(namespace: str) -> None:
    _kill_all(namespace)
    ip("netns", "delete", namespace)


def _kill_all(namespace: str) -> None:
    for process_id in ip("netns", "pids", namespace).split():
        if int(process_id) != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(int(process_id), 9)


def _enter(namespace: Path) -> None:
    opened = os.open(namespace, os.O_RDONLY)
    try:
        _set_namespace(opened)
    finally:
        os.close(opened)


def _set_namespace(opened: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(opened, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def relay(namespace: str, one: str, two: str, delay_s: float, loss: float) -> None:
    """Forward frames between two interfaces of a namespace, late, and not all of them."""
    _enter(NAMESPACES / namespace)
    sockets = {_packet_socket(one): deque[tuple[float, bytes]](), _packet_socket(two): deque[tuple[float, bytes]]()}
    first, second = sockets
    other = {first: second, second: first}
    print("ready", flush=True)
    while True:
        due = min((queue[0][0] for queue in sockets.values() if queue), default=None)
        ready, _, _ = select.select(sockets, [], [], None if due is None else max(0.0, due - time.monotonic()))
        for arrived in ready:
            frame = arrived.recv(LARGEST_FRAME)
            if random.random() >= loss:
                sockets[other[arrived]].append((time.monotonic() + delay_s, frame))
        now = time.monotonic()
        for leaving, queue in sockets.items():
            while queue and queue[0][0] <= now:
                leaving.send(queue.popleft()[1])


def _packet_socket(interface: str) -> socket.socket:
    """Frames as the kernel has them, before they are cut into segments and their checksums are computed."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    made.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    made.bind((interface, 0))
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=relay.__doc__)
    parser.add_argument("namespace")
    parser.add_argument("one")
    parser.add_argument("two")
    parser.add_argument("--delay", type=float, required=True)
    parser.add_argument("--loss", type=float, required=True)
    given = parser.parse_args()
    relay(given.namespace, given.one, given.two, given.delay, given.loss)
