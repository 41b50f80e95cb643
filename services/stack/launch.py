"""`ltm up`: starts the whole stack, reports when it is ready, and keeps it running until it is stopped."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import redis
from keepsake_client.protocol import alive_key, process_key

import services
from services.long_term_memory.postgres.pool import migrating, reachable
from services.runtime.errors import StackError
from services.runtime.process_record import ProcessRecord
from services.runtime.redis import connect
from services.runtime.settings import Settings, load_settings, mask_url
from services.stack.data_directory import DataDirectory, StackRecord, write_private
from services.stack.directories import persistent_dir, temporary_dir
from services.stack.embedded_postgres import postgres_spec, postgres_url
from services.stack.embedded_valkey import valkey_spec, valkey_url
from services.stack.locate import shared_settings
from services.stack.probe import probe
from services.stack.process_tree import ProcessId
from services.stack.processes import (
    ADAPTERS,
    POSTGRES,
    REDIS,
    SERVERS,
    SERVICES,
    WORKER,
    ProcessSpec,
    check_names,
    service_specs,
)
from services.stack.readiness import Readiness
from services.stack.sockets import check_port, free_port, make_socket_directory, remove_socket_directory
from services.stack.supervisor import Supervisor

START_TIMEOUT_S = 120.0
#: A server that this stack does not start should run already.
EXTERNAL_SERVER_TIMEOUT_S = 20.0
STARTING_POLL_INTERVAL_S = 0.05
RUNNING_POLL_INTERVAL_S = 0.2
PROBE_TIMEOUT_S = 1.0
#: The time-out of one readiness check; a heartbeat is renewed as often.
CHECK_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class LaunchOptions:
    """The options of `ltm up`."""

    data_directory: Path
    ephemeral: bool = False
    without: tuple[str, ...] = ()
    ready_file: Path | None = None
    redis_port: int | None = None
    postgres_port: int | None = None


@dataclass(frozen=True)
class Addresses:
    """The addresses of a stack's servers.

    Args:
        embedded: those that the stack starts itself.
        socket_directory: a directory made for their sockets outside the data directory.
    """

    redis_url: str
    database_url: str
    embedded: list[ProcessSpec]
    socket_directory: Path | None


class StopRequest:
    """A request to stop this process: Ctrl-C, SIGTERM, or a closed terminal."""

    def __init__(self) -> None:
        self.made = False

    def listen(self) -> None:
        """Install the signal handlers; to be called in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._make)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._make)

    def _make(self, _: int, __: FrameType | None) -> None:
        # A flag that is polled: releasing a lock within a signal handler can deadlock.
        self.made = True


class Launch:
    """One run of the stack.

    Args:
        options: those of the command line.
        environment: this process's, which every process of the stack inherits.
        say: prints a line.
        stop: ends the run.
        on_ready: called once, when every process is ready and a search is answered.
        start_timeout_s: how long the start may take, and again after each time a migration was found under way.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        options: LaunchOptions,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        stop: StopRequest,
        on_ready: Callable[[Settings], None],
        start_timeout_s: float = START_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._environment = environment
        self._say = say
        self._stop = stop
        self._on_ready = on_ready
        self._start_timeout_s = start_timeout_s
        self._clock = clock
        self._started_at = self._clock()
        self._deadline = self._started_at + start_timeout_s

    def run(self) -> None:
        """Start the stack, keep it running until a stop is requested, then stop it.

        Raises:
            InvalidSetting, StackError: it cannot be started or kept running; nothing is left running.
        """
        check_names(self._options.without)
        load_settings()
        home = temporary_dir() if self._options.ephemeral else persistent_dir(self._options.data_directory)
        with home as directory, ExitStack() as at_exit:
            if found := directory.end_leftovers():
                self._say(f"stopped what a killed `ltm up` had left running: {', '.join(found)}")
            addresses = self._addresses(directory, at_exit)
            settings = load_settings(redis_url=addresses.redis_url, database_url=addresses.database_url)
            left_out = self._options.without
            specs = [*addresses.embedded, *(spec for spec in service_specs(settings) if spec.name not in left_out)]
            at_exit.callback(directory.forget)
            supervisor = Supervisor(
                specs,
                self._child_environment(addresses),
                Path(services.__file__).parents[1],  # so that a user's own `tasks` or `services` are not imported
                directory.logs,
                partial(self._record, directory, addresses, settings),
            )
            if self._options.ready_file:
                self._options.ready_file.unlink(missing_ok=True)
                at_exit.callback(self._options.ready_file.unlink, missing_ok=True)
            try:
                self._keep_running(supervisor, addresses, settings, directory)
            finally:
                supervisor.stop()

    def _addresses(self, directory: DataDirectory, at_exit: ExitStack) -> Addresses:
        options, embedded, socket_directory = self._options, [], None
        # An empty variable counts as unset, as in the settings.
        if redis_url := self._environment.get("REDIS_URL", ""):
            _refuse_port(options.redis_port, "--redis-port", "REDIS_URL")
        elif REDIS not in options.without:
            port = check_port(options.redis_port, "--redis-port") if options.redis_port else free_port()
            embedded.append(valkey_spec(directory.valkey, port, ephemeral=options.ephemeral))
            redis_url = valkey_url(port)
        if database_url := self._environment.get("DATABASE_URL", ""):
            _refuse_port(options.postgres_port, "--postgres-port", "DATABASE_URL")
        elif POSTGRES not in options.without:
            if options.postgres_port:
                check_port(options.postgres_port, "--postgres-port")
            sockets = make_socket_directory(directory.postgres)
            if sockets != directory.postgres:
                socket_directory = sockets
                at_exit.callback(remove_socket_directory, sockets)
            embedded.append(
                postgres_spec(directory.postgres, sockets, options.postgres_port, ephemeral=options.ephemeral)
            )
            database_url = postgres_url(sockets, options.postgres_port)
        defaults = load_settings()
        return Addresses(
            redis_url or defaults.redis_url.get_secret_value(),
            database_url or defaults.database_url.get_secret_value(),
            embedded,
            socket_directory,
        )

    def _child_environment(self, addresses: Addresses) -> dict[str, str]:
        return {
            **self._environment,
            "REDIS_URL": addresses.redis_url,
            "DATABASE_URL": addresses.database_url,
            # On a busy machine the embedder is 20 times slower with more than one thread per process.
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            # glibc keeps freed blocks: after a few messages of 20 MB the adapters held 199 MB, with these settings 41.
            "MALLOC_MMAP_THRESHOLD_": "1000000",
            "MALLOC_TRIM_THRESHOLD_": "10000000",
        }

    def _record(
        self, directory: DataDirectory, addresses: Addresses, settings: Settings, running: dict[str, ProcessId]
    ) -> None:
        directory.write(
            StackRecord(
                redis_url=addresses.redis_url,
                database_url=addresses.database_url,
                processes=running,
                without=list(self._options.without),
                settings=shared_settings(settings),
                socket_directory=str(addresses.socket_directory) if addresses.socket_directory else None,
            )
        )

    def _keep_running(
        self, supervisor: Supervisor, addresses: Addresses, settings: Settings, directory: DataDirectory
    ) -> None:
        client = connect(addresses.redis_url, CHECK_TIMEOUT_S)
        readiness = Readiness(client, partial(reachable, addresses.database_url, CHECK_TIMEOUT_S))
        answers_searches = not {WORKER, ADAPTERS} & set(self._options.without)
        reported: dict[str, int | None] = {}
        ready = False
        while not self._stop.made:
            supervisor.poll()
            pids = {name: identity.pid for name, identity in supervisor.running.items()}
            pending = self._report_ready(readiness, supervisor.names, pids, reported)
            if not ready and not pending and (not answers_searches or probe(settings, PROBE_TIMEOUT_S) is None):
                ready = True
                self._record_left_out(client)
                self._announce(addresses, directory, pids)
                self._on_ready(settings)
            if not ready:
                self._check_deadline(supervisor, pending, addresses)
            time.sleep(RUNNING_POLL_INTERVAL_S if ready else STARTING_POLL_INTERVAL_S)

    def _record_left_out(self, client: redis.Redis) -> None:
        """Tell `ltm status`, where it knows the Redis alone, what is not to be expected; a start overwrites it."""
        with suppress(redis.RedisError):
            for name in set(self._options.without) & set(SERVICES):
                if not client.exists(alive_key(name)):  # another host may run it
                    client.set(process_key(name), ProcessRecord(left_out=True).model_dump_json())

    def _report_ready(
        self, readiness: Readiness, names: list[str], pids: dict[str, int], reported: dict[str, int | None]
    ) -> list[str]:
        """Print a line for each process that became ready, and again after its restart; return the others."""
        pending = []
        for name in dict.fromkeys((*SERVERS, *names)):
            pid = pids.get(name)  # None: not started by this stack
            if name in reported and reported[name] == pid:
                continue
            if (name in names and pid is None) or not readiness.answers(name, pid):
                pending.append(name)
                continue
            reported[name] = pid
            origin = f"pid {pid}" if pid else "external"
            self._say(f"{name:<26} answers  {origin:<12} {self._clock() - self._started_at:5.1f} s")
        return pending

    def _check_deadline(self, supervisor: Supervisor, pending: list[str], addresses: Addresses) -> None:
        waited_s = self._clock() - self._started_at
        urls = {REDIS: addresses.redis_url, POSTGRES: addresses.database_url}
        for name in set(pending) - set(supervisor.names):
            if waited_s > EXTERNAL_SERVER_TIMEOUT_S:
                variable = "REDIS_URL" if name == REDIS else "DATABASE_URL"
                raise StackError(f"{variable} is {mask_url(urls[name])!r}, and no server answers there")
        if self._clock() > self._deadline:
            if not migrating(addresses.database_url):
                raise StackError(self._start_timeout(supervisor, pending))
            # Migrating a million memories takes minutes. Aborted, it would take as long at every start, and never end.
            self._say("the database is being migrated, which may take minutes")
            self._deadline = self._clock() + self._start_timeout_s

    def _start_timeout(self, supervisor: Supervisor, pending: list[str]) -> str:
        within = f"within {self._start_timeout_s:g} s"
        if not pending:
            return f"no search was answered {within}; the logs of {WORKER} and {ADAPTERS} may say why"
        lines = [f"{', '.join(pending)} did not answer {within}; last lines:"]
        for name in pending:
            lines += [f"  {name}: {line}" for line in supervisor.last_lines(name)]
        return "\n".join(lines)

    def _announce(self, addresses: Addresses, directory: DataDirectory, pids: dict[str, int]) -> None:
        self._say(f"Keepsake is up after {self._clock() - self._started_at:.1f} s.")
        self._say(f"  Redis       {mask_url(addresses.redis_url)}")
        self._say(f"  PostgreSQL  {mask_url(addresses.database_url)}")
        self._say(f"  logs        {directory.logs}")
        if self._options.ephemeral:
            self._say(f"  elsewhere   REDIS_URL={mask_url(addresses.redis_url)} ltm status")
        if self._options.ready_file:
            content = {"redis_url": addresses.redis_url, "database_url": addresses.database_url, "pids": pids}
            write_private(self._options.ready_file.absolute(), json.dumps(content) + "\n")


def _refuse_port(port: int | None, option: str, variable: str) -> None:
    if port is not None:
        raise StackError(f"{option} is for the embedded server, and {variable} says to use another: leave one out")
