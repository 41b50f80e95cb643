"""Nodes of RabbitMQ with the management API, each on a host of a test's own, alone or as a cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

from tests import network_namespaces
from tests.network_namespaces import Host
from tests.support import wait_until

COMMAND = shutil.which("rabbitmq-server")
BOOT_WITHIN_S = 180
PASSWORD = "not-guessed"
CONFIGURATION = """
loopback_users = none
default_pass = {password}
cluster_formation.peer_discovery_backend = classic_config
cluster_partition_handling = pause_minority
net_ticktime = 10
management_agent.disable_metrics_collector = false
collect_statistics_interval = 1000
"""


def unavailable() -> str | None:
    """Why there can be no nodes here; None where there can."""
    return "rabbitmq-server is not installed" if COMMAND is None else network_namespaces.unavailable()


class RabbitmqNode:
    """One node, its data in a directory of its own; it may be killed and started again.

    Args:
        addresses: of all nodes of its cluster, its own among them.
        plugins: by default with the management API.
    """

    def __init__(
        self, host: Host, home: Path, addresses: Sequence[str], plugins: str = "[rabbitmq_management]."
    ) -> None:
        self.host = host
        self.name = f"rabbit@{host.address}"
        self.url = f"amqp://guest:{PASSWORD}@{host.address}:5672"
        self.management_url = f"http://guest:{PASSWORD}@{host.address}:15672"
        self.home = home / host.name
        self.home.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        cookie = self.home / ".erlang.cookie"
        cookie.write_text("KEEPSAKETESTS")
        cookie.chmod(0o400)
        (self.home / "enabled_plugins").write_text(plugins)
        nodes = [f"cluster_formation.classic_config.nodes.{n} = rabbit@{a}" for n, a in enumerate(addresses, 1)]
        (self.home / "rabbitmq.conf").write_text("\n".join([CONFIGURATION.format(password=PASSWORD), *nodes, ""]))

    def start(self) -> None:
        with self.host.entered(), (self.home / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [_program("rabbitmq-server")],
                env=self._environment(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def ctl(self, *command: str) -> None:
        """Run a command of `rabbitmqctl`."""
        with self.host.entered():
            subprocess.run(
                [_program("rabbitmqctl"), *command], env=self._environment(), check=True, capture_output=True
            )

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_MNESIA_BASE": str(self.home / "data"),
            "RABBITMQ_LOG_BASE": str(self.home / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }

    def kill(self) -> None:
        """kill -9 of the server, which is a child of the script that starts it."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def processes(self) -> list[psutil.Process]:
        """The script, and the server that it started."""
        assert self._process is not None
        script = psutil.Process(self._process.pid)
        return [script, *script.children(recursive=True)]

    def get(self, path: str) -> Any:
        """What the management API answers; None where it does not."""
        with self.host.entered():
            try:
                response = httpx.get(
                    f"http://{self.host.address}:15672/api/{path}", auth=("guest", PASSWORD), timeout=5, trust_env=False
                )
            except httpx.HTTPError:
                return None
        return response.json() if response.is_success else None

    def sees(self, running: int) -> bool:
        """Whether it answers, and counts so many running nodes."""
        nodes = self.get("nodes") or []
        return sum(bool(node.get("running")) for node in nodes) == running

    def close(self) -> None:
        if self._process is not None:
            self.kill()


def _program(name: str) -> Path:
    """A program of RabbitMQ's own: those in PATH may be Debian's, which run it as another user."""
    assert COMMAND is not None
    return Path(COMMAND).resolve().parent / name


@contextmanager
def rabbitmq_nodes(hosts: Sequence[Host]) -> Iterator[list[RabbitmqNode]]:
    """A cluster of one node on each host, running."""
    with ExitStack() as at_exit:
        home = Path(at_exit.enter_context(TemporaryDirectory(prefix="ltm-test-", ignore_cleanup_errors=True)))
        nodes = [RabbitmqNode(host, home, [host.address for host in hosts]) for host in hosts]
        for node in nodes:
            at_exit.callback(node.close)
            node.start()
        for node in nodes:
            wait_until(lambda node=node: node.sees(len(nodes)), BOOT_WITHIN_S, f"the cluster of {node.name}")  # type: ignore[misc]
        yield nodes
