"""Workers as real processes, started as compose starts them, on servers of one test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis
from keepsake_client.connections import connect
from keepsake_client.protocol import MemoryUpdateMessage, alive_key

from services.stack import process_tree
from services.stack.embedded_valkey import valkey_spec, valkey_url
from tasks.broker import build_broker
from tasks.queues import index_message
from tests.integration.postgres_server import PostgresServer, postgres_server
from tests.support import free_port, wait_until

ROOT = Path(__file__).parents[2]
BOOT_WITHIN_S = 120


class ValkeyServer:
    """A Valkey with an append-only file, which may be stopped and started again with its data."""

    def __init__(self, data: Path) -> None:
        port = free_port()
        self.url = valkey_url(port)
        self._spec = valkey_spec(data, port, ephemeral=False)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._spec.argv, stdout=subprocess.DEVNULL)
        with redis.Redis.from_url(self.url) as client:
            wait_until(lambda: _answers(client), description="Valkey to answer")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=60)
            self._process = None


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


class WorkerProcess:
    """One process and its children: a Dramatiq master with its workers, or the adapters."""

    def __init__(self, servers: Servers, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        self._servers = servers
        self._log = servers.home / f"{name}.log"
        # PATH and the like, but no setting of the environment that runs the tests.
        clean = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
        # At normal priority: on a busy machine an indexer at nice 19 gets no CPU, and no test here is about priorities.
        environment = {
            "LTM_PROCESS_NAME": name,
            "LTM_INDEX_NICE": "0",
            "OMP_NUM_THREADS": "1",
            **servers.environment,
        }
        with self._log.open("ab") as output:
            self.master = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env={**clean, **environment},
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def works(self) -> bool:
        assert self.master.poll() is None, f"{self.name} ended:\n{self.log()}"
        sign: Any = self._servers.client.get(alive_key(self.name))
        return isinstance(sign, bytes) and str(self.master.pid) in sign.decode().split(":")

    def ready(self) -> WorkerProcess:
        wait_until(self.works, BOOT_WITHIN_S, f"a heartbeat of {self.name}")
        return self

    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        """kill -9 of all of it."""
        family = [psutil.Process(self.master.pid), *psutil.Process(self.master.pid).children(recursive=True)]
        for process in family:
            process.kill()
        self.master.wait()

    def terminate(self, within_s: float) -> int:
        """Its exit code after SIGTERM to the master alone."""
        self.master.send_signal(signal.SIGTERM)
        return self.master.wait(timeout=within_s)

    def close(self) -> None:
        if self.master.poll() is None:
            self.kill()
        process_tree.kill(process_tree.session_members(self.master.pid))


class Servers:
    """A Redis, a database, and the workers on them.

    Attributes:
        postgres: the server of the database, where the test has one of its own.
    """

    postgres: PostgresServer

    def __init__(
        self, home: Path, valkey: ValkeyServer, database_url: str, redis_url: str, broker_url: str | None
    ) -> None:
        self.home = home
        self.valkey = valkey
        self.database_url = database_url
        self.environment = {"REDIS_URL": redis_url, "DATABASE_URL": database_url}
        if broker_url:
            self.environment["BROKER_URL"] = broker_url
        self.client = connect(redis_url)
        self.broker = build_broker(broker_url or redis_url, [])
        self.workers: list[WorkerProcess] = []

    def worker(self, name: str, *queues: str, module: str = "tasks", processes: int = 1) -> WorkerProcess:
        """Start a worker of these queues."""
        options = ["--processes", str(processes), "--threads", "2", "--worker-shutdown-timeout", "4000"]
        return self._start(name, [module, *options, "--queues", *queues])

    def adapters(self) -> WorkerProcess:
        """Start the adapters."""
        return self._start("adapters", ["adapters"])

    def service(self, name: str, module: str) -> WorkerProcess:
        """Start another process of the pipeline."""
        return self._start(name, [module])

    def _start(self, name: str, arguments: Sequence[str]) -> WorkerProcess:
        self.workers.append(WorkerProcess(self, name, arguments))
        return self.workers[-1]

    def index(self, *contents: str, user_id: str = "u1") -> None:
        """Enqueue these messages of a user for indexing."""
        for content in contents:
            update = MemoryUpdateMessage(
                user_id=user_id, content=content, source="user", timestamp=1.0, message_id=uuid.uuid4().hex
            )
            self.broker.enqueue(index_message(update))

    def indexed(self) -> list[str]:
        """What the memories table holds, in order."""
        with psycopg.connect(self.database_url) as connection:
            return [row[0] for row in connection.execute("SELECT content FROM memories ORDER BY content")]

    def held(self, queue: str = "index") -> dict[str, int]:
        """How many messages of a queue each broker id has fetched and not acknowledged."""
        keys: list[bytes] = list(self.client.scan_iter(f"dramatiq:__acks__.*.{queue}*"))
        sizes: dict[str, Any] = {key.decode(): self.client.scard(key) for key in keys}
        return {key: size for key, size in sizes.items() if size}

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.broker.close()
        self.client.close()


@contextmanager
def servers(
    broker_url: str | None = None, database_url: str | None = None, redis_url: str | None = None
) -> Iterator[Servers]:
    """Servers without workers.

    Args:
        database_url: of an empty database; a PostgreSQL is started where it is None, which takes a second.
        redis_url: of a Redis that runs already; a Valkey is started where it is None.
    """
    with ExitStack() as at_exit:
        home = Path(at_exit.enter_context(tempfile.TemporaryDirectory(prefix="ltm-test-")))
        valkey = ValkeyServer(home)
        at_exit.callback(valkey.stop)
        if redis_url is None:
            valkey.start()
        if database_url is None:
            postgres = at_exit.enter_context(postgres_server())
            running = Servers(home, valkey, postgres.url, redis_url or valkey.url, broker_url)
            running.postgres = postgres
        else:
            running = Servers(home, valkey, database_url, redis_url or valkey.url, broker_url)
        at_exit.callback(running.close)
        yield running
