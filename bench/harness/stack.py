"""The stack that a benchmark runs against: started for it, or one that runs already."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import redis
from psycopg.conninfo import conninfo_to_dict

from bench.harness.load import ROOT, Wire
from bench.harness.tables import progress_bar
from services.runtime.errors import StackError
from services.runtime.queues import INDEX_QUEUE, QUEUES, QueueKeys, queue_depths
from services.runtime.redis import connect
from services.runtime.settings import Settings, load_settings
from services.stack.data_directory import DataDirectory
from services.stack.directories import PREFIX
from services.stack.processes import CHAT, FORK_SERVER, GATEWAY, MEMORY, POSTGRES, REDIS, SERVICES
from services.stack.readiness import stream_backlog
from tests.swallowing_proxy import ThreadedProxy, threaded_proxy

READY_WITHIN_S = 120.0
ENDED_WITHIN_S = 30.0
POLL_EVERY_S = 0.02
LTM_UP = "ltm up"


@dataclass(frozen=True)
class LtmUp:
    """An `ltm up` that this benchmark started.

    Args:
        output: the file with what it printed.
        ready_s: how long it took to start, in seconds.
        gateway_url: where its gateway listens; "" without one.
    """

    process: subprocess.Popen[bytes]
    directory: DataDirectory
    output: Path
    ready_s: float
    gateway_url: str = ""


@dataclass(frozen=True)
class Stack:
    """A running stack.

    Args:
        started: the `ltm up` that runs it; None of a stack that ran already.
        servers: the stack that runs its servers, where that is another one.
        others: those that run the rest of it, on other hosts.
    """

    settings: Settings
    started: LtmUp | None = None
    servers: Stack | None = None
    others: tuple[LtmUp, ...] = ()

    @property
    def ltm_ups(self) -> tuple[LtmUp, ...]:
        """Every `ltm up` that runs a part of it; raises as `ltm_up` does."""
        return (self.ltm_up, *self.others)

    @property
    def ltm_up(self) -> LtmUp:
        """The `ltm up` that runs it.

        Raises:
            StackError: this benchmark did not start the stack.
        """
        if self.started is None:
            raise StackError("the stack was not started by this benchmark")
        return self.started

    @property
    def redis_url(self) -> str:
        """URL of the pipeline's Redis."""
        return self.settings.redis_url.get_secret_value()

    @property
    def database_url(self) -> str:
        """URL of the workers' database."""
        return self.settings.database_url.get_secret_value()

    @property
    def wire(self) -> Wire:
        """The wire that a load goes to."""
        names = self.settings
        return Wire(self.redis_url, names.ltm_requests_queue, names.ltm_responses_channel, names.memory_updates_channel)

    def connect(self) -> redis.Redis:
        """A client of the pipeline's Redis that reports a lost connection at once."""
        return connect(self.redis_url)

    def pids(self) -> dict[str, int]:
        """The processes that run now, by name, with `ltm up` and its fork server; none of a stack that ran already."""
        if self.started is None:
            return {}
        record = self.started.directory.read()
        running = {name: identity.pid for name, identity in record.processes.items()} if record else {}
        servers = self.servers.pids() if self.servers else {}
        return {**servers, LTM_UP: self.started.process.pid, **_fork_server(self.started.process.pid), **running}

    def pending(self) -> dict[str, int]:
        """The numbers of messages and requests that wait or are being processed, by place; places without any left out.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        pending = {}
        with self.connect() as client:
            for queue in (self.settings.user_input_queue, self.settings.ltm_requests_queue):
                for key in client.scan_iter(f"{queue}*", count=1_000, _type="list"):
                    pending[key.decode()] = client.llen(key)
            stream = self.settings.ltm_stream_key
            pending[stream] = stream_backlog(client, stream)
        for queue, number in self._queued().items():
            pending[f"queue {queue}"] = number
        return {place: int(number) for place, number in pending.items() if number}

    def indexing_pending(self) -> int:
        """The number of messages that wait to be indexed, in the stream or the queue, or are being indexed."""
        with self.connect() as client:
            return stream_backlog(client, self.settings.ltm_stream_key) + self._queued()[INDEX_QUEUE]

    def _queued(self) -> dict[str, int]:
        """Messages that wait, run or are delayed, by queue."""
        with connect(self.settings.broker.get_secret_value()) as client:
            depths = queue_depths(client)
        return {queue: of["waiting"] + of["working"] + of["delayed"] for queue, of in depths.items()}

    def dead_letters(self) -> list[bytes]:
        """The bodies of the dead letters of all queues, as Dramatiq wrote them."""
        with connect(self.settings.broker.get_secret_value()) as client:
            return [body for queue in QUEUES for body in client.hvals(QueueKeys(queue).dead_messages)]

    def wait_until_indexed(self, within_s: float = 600.0) -> None:
        """Wait until everything has been indexed, or time is up."""
        left = begun = self.indexing_pending()
        until = time.monotonic() + within_s
        with progress_bar() as progress:
            task = progress.add_task("waiting for the indexer", total=begun)
            while left and time.monotonic() < until:
                time.sleep(0.5)
                left = self.indexing_pending()
                progress.update(task, completed=begun - left)

    def wait_until_idle(self, within_s: float, idle_s: float = 3.0) -> tuple[float, dict[str, int]]:
        """Wait until nothing has been pending for `idle_s`.

        Args:
            within_s: how long to wait while the number does not fall; on a busy machine, draining may take longer.

        Returns:
            How long that took in seconds, and what is still pending if time ran out.
        """
        begun = idle_since = fell_at = time.monotonic()
        pending: dict[str, int] = {}
        least = 1 << 60
        while time.monotonic() - fell_at < within_s:
            try:
                pending = self.pending()
            except redis.RedisError as error:
                pending = {repr(error): 1 << 59}
            if pending:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= idle_s:
                return idle_since - begun, {}
            if sum(pending.values()) < least:
                least, fell_at = sum(pending.values()), time.monotonic()
            time.sleep(0.25)
        return time.monotonic() - begun, pending


@contextmanager
def running_stack(
    *,
    without: Sequence[str] = (CHAT, MEMORY, GATEWAY),
    durable: bool = False,
    keep_logs: Path | None = None,
    forked: bool = True,
    **variables: str,
) -> Iterator[Stack]:
    """`ltm up` in a process of its own, ready at the beginning of the block and ended after it.

    Settings in the environment hold for it, but for the addresses of servers: it starts its own.

    Args:
        durable: with a data directory (`--data-dir`), as in production; otherwise `--ephemeral`, without fsync.
        keep_logs: a directory to copy the logs of a durable stack to at the end.
        forked: whether a fork server starts the processes; otherwise each is as on a host of its own.
        variables: further settings, by the names of their environment variables.

    Raises:
        StackError: it does not become ready.
    """
    place = Path(tempfile.mkdtemp(prefix="keepsake-bench-"))
    output, ready_file, data = place / "up.log", place / "ready.json", place / "data"
    program = "" if forked else "from services.stack import launch; launch.fork_server_command = lambda _: None\n"
    program += "from services.cli import main; main()"
    command = [sys.executable, "-c", program, "up", "--ready-file", str(ready_file)]
    command += up_options(data if durable else None, without, variables)
    own_servers = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "DATABASE_URL", "BROKER_URL")}
    variables = {"LTM_RESPONSE_REPEATS_MS": ""} | variables  # the benchmarks count responses
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that SIGTERM ends the stack too
    directory: DataDirectory | None = DataDirectory(data) if durable else None
    try:
        begun = time.monotonic()
        with output.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=own_servers | variables, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        try:
            while not ready_file.exists():
                if process.poll() is not None or time.monotonic() - begun > READY_WITHIN_S:
                    raise StackError(f"`ltm up` did not become ready:\n{output.read_text()}")
                time.sleep(POLL_EVERY_S)
            ready_s = time.monotonic() - begun
            ready = json.loads(ready_file.read_text())
            directory = directory or _ephemeral_directory(ready["redis_url"])
            addresses = {"redis_url": ready["redis_url"], "database_url": ready["database_url"], "broker_url": None}
            settings = load_settings(**addresses | {name.lower(): value for name, value in variables.items()})
            yield Stack(settings, LtmUp(process, directory, output, ready_s, ready["gateway_url"] or ""))
        finally:
            _end(process, directory)
            if keep_logs is not None and directory is not None:
                shutil.copytree(directory.logs, keep_logs, dirs_exist_ok=True)
                shutil.copy(output, keep_logs / "up.log")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def up_options(data: Path | None, without: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    """The options of `ltm up` for a stack beside others, with a data directory or ephemeral."""
    place = ["--ephemeral"] if data is None else ["--data-dir", str(data)]
    # An ephemeral stack takes free ports anyway; one with a Redis of `variables` starts none.
    ports = [] if data is None else ["--gateway-port", "0"]
    if data is not None and "REDIS_URL" not in variables:
        ports += ["--redis-port", "0"]
    return [*place, *ports, *(word for name in without for word in ("--without", name))]


@contextmanager
def proxied_stack(
    *, without: Sequence[str], keep_logs: Path | None = None, **variables: str
) -> Iterator[tuple[Stack, dict[str, ThreadedProxy]]]:
    """A durable stack whose processes reach its servers through proxies, by the servers' names; the stack's own
    addresses are those of the servers.

    Args:
        without, keep_logs, variables: as for `running_stack`.
    """
    with running_stack(without=SERVICES, durable=True) as servers, ExitStack() as proxies:
        redis_port = urlsplit(servers.redis_url).port
        parts = conninfo_to_dict(servers.database_url)
        by_name = {
            REDIS: proxies.enter_context(threaded_proxy(redis_port or 6379)),
            POSTGRES: proxies.enter_context(threaded_proxy(f"{parts['host']}/.s.PGSQL.5432")),
        }
        variables["REDIS_URL"] = by_name[REDIS].url
        variables["DATABASE_URL"] = f"postgresql://{parts['user']}@127.0.0.1:{by_name[POSTGRES].port}/{parts['dbname']}"
        with running_stack(without=without, durable=True, keep_logs=keep_logs, forked=True, **variables) as stack:
            yield Stack(servers.settings, stack.started, servers), by_name


def _ephemeral_directory(redis_url: str) -> DataDirectory:
    """The temporary data directory of the stack with this Redis."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(StackError):  # of another user
            record = DataDirectory(path).read()
            if record is not None and record.redis_url == redis_url:
                return DataDirectory(path)
    raise StackError("`ltm up --ephemeral` has left no record of its processes")


def _fork_server(up: int) -> dict[str, int]:
    """The process that forks those of `ltm up`, by name; none where they are executed."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(up).children():
            with suppress(psutil.NoSuchProcess):
                if "tasks.fork_server" in child.cmdline():
                    return {FORK_SERVER: child.pid}
    return {}


def _end(process: subprocess.Popen[bytes], directory: DataDirectory | None) -> None:
    process.send_signal(signal.SIGCONT)  # a fault may have stopped it
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=ENDED_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        if directory is not None:
            directory.end_leftovers()


@contextmanager
def stack_at(redis_url: str | None) -> Iterator[Stack]:
    """The stack at `redis_url`, whose database DATABASE_URL names, or one that is started for the block."""
    if redis_url is None:
        with running_stack() as stack:
            yield stack
    else:
        yield Stack(load_settings(redis_url=redis_url))
