"""`ltm up`: starts the whole stack, reports when it is ready, and keeps it running until it is stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import redis
from keepsake_client.errors import KeepsakeError
from keepsake_client.protocol import alive_key, process_key

from services.long_term_memory.postgres.pool import check_connects, migrating, reachable
from services.long_term_memory.postgres.preconditions import check_database
from services.runtime.errors import ProcessKeepsDying, StackError
from services.runtime.private_file import write_private
from services.runtime.process_record import ProcessRecord
from services.runtime.redis import connect
from services.runtime.settings import Settings, load_settings, mask_url
from services.stack.addresses import Addresses, LaunchOptions, choose_addresses
from services.stack.data_directory import DataDirectory, StackRecord
from services.stack.directories import persistent_dir, temporary_dir
from services.stack.environment import child_environment
from services.stack.fork_server import ForkServer
from services.stack.locate import shared_settings
from services.stack.metrics_ports import metrics_address
from services.stack.probe import probe
from services.stack.process_tree import ProcessId
from services.stack.processes import (
    ADAPTERS,
    BROKER,
    EXTRACTOR,
    INDEXER,
    POSTGRES,
    REDIS,
    ROOT,
    SERVERS,
    WORKER,
    WRITER,
    check_names,
    fork_server_command,
    service_specs,
)
from services.stack.readiness import Readiness
from services.stack.server_checks import ServerChecks, check_providers
from services.stack.stop_request import StopRequest
from services.stack.supervisor import Supervisor

START_TIMEOUT_S = 120.0
#: A server that this stack does not start should run already.
EXTERNAL_SERVER_TIMEOUT_S = 20.0
STARTING_POLL_INTERVAL_S = 0.05
RUNNING_POLL_INTERVAL_S = 0.2
PROBE_TIMEOUT_S = 1.0
#: The time-out of one readiness check; a heartbeat is renewed as often.
CHECK_TIMEOUT_S = 1.0


class Launch:
    """One run of the stack.

    Args:
        options: those of the command line.
        environment: this process's, which every process of the stack inherits.
        say: prints a line.
        report: prints an error, and returns the exit code for it.
        stop: ends the run.
        on_ready: called once, when every process is ready and a search is answered, with the data directory.
        start_timeout_s: how long the start may take, and again after each time a migration was found under way.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        options: LaunchOptions,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        report: Callable[[KeepsakeError], int],
        stop: StopRequest,
        on_ready: Callable[[Settings, Path], None],
        start_timeout_s: float = START_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._environment = environment
        self._say = say
        self._report = report
        self._stop = stop
        self._on_ready = on_ready
        self._start_timeout_s = start_timeout_s
        self._clock = clock
        self._gone = False
        self._metrics: str | None = None
        self._started_at = self._clock()
        self._deadline = self._started_at + start_timeout_s

    def run(self) -> None:
        """Start the stack, keep it running until a stop is requested, then stop it.

        Raises:
            InvalidSetting, StackError: it cannot be started; nothing was started.
            SystemExit: it could not be kept running, and nothing is left running; the error has been reported.
        """
        check_names(self._options.without)
        check_providers(load_settings(), self._say)
        home = temporary_dir() if self._options.ephemeral else persistent_dir(self._options.data_directory)
        with home as directory, ExitStack() as at_exit:
            if found := directory.end_leftovers():
                self._say(f"stopped what a killed `ltm up` had left running: {', '.join(found)}")
            addresses = choose_addresses(self._options, self._environment, directory, at_exit)
            settings = load_settings(**addresses.settings)
            left_out = self._options.without
            services = service_specs(extracts=settings.extracts, metrics_port=settings.ltm_metrics_port)
            specs = [*addresses.embedded, *(spec for spec in services if spec.name not in left_out)]
            self._metrics = metrics_address(specs, settings.ltm_metrics_host)
            at_exit.callback(directory.forget)
            environment = child_environment(self._environment, addresses, directory)
            command = fork_server_command(specs)
            supervisor = Supervisor(
                specs,
                environment,
                ROOT,
                directory.logs,
                partial(self._record, directory, addresses, settings),
                logs_kept=not self._options.ephemeral,
                fork_server=ForkServer(command, environment, ROOT, directory.logs) if command else None,
            )
            if self._options.ready_file:
                self._options.ready_file.unlink(missing_ok=True)
                at_exit.callback(self._options.ready_file.unlink, missing_ok=True)
            try:
                self._keep_running(supervisor, addresses, settings, directory)
            except KeepsakeError as error:
                if self._gone and isinstance(error, ProcessKeepsDying):
                    error = StackError(f"{directory.path} is gone, and a process that ended needs it to start again")
                # Before the stop, which takes seconds.
                raise SystemExit(self._report(error)) from None
            finally:
                supervisor.stop()

    def _record(
        self, directory: DataDirectory, addresses: Addresses, settings: Settings, running: dict[str, ProcessId]
    ) -> None:
        record = StackRecord(
            redis_url=addresses.redis_url,
            database_url=addresses.database_url,
            processes=running,
            without=list(self._options.without),
            settings=shared_settings(settings),
            socket_directory=str(addresses.socket_directory) if addresses.socket_directory else None,
        )
        try:
            directory.write(record)
        except OSError as error:
            if directory.path.is_dir():  # otherwise it is gone, which is reported
                self._say(
                    f"{directory.path} cannot be written ({error.strerror}): `ltm status` may show what was before"
                )

    def _keep_running(
        self, supervisor: Supervisor, addresses: Addresses, settings: Settings, directory: DataDirectory
    ) -> None:
        client = connect(addresses.redis_url, CHECK_TIMEOUT_S)
        readiness = Readiness(client, partial(reachable, addresses.database_url, CHECK_TIMEOUT_S))
        answers_searches = not {WORKER, ADAPTERS} & set(self._options.without)
        embedded = [spec.name for spec in addresses.embedded]
        checks = ServerChecks(
            client,
            addresses.redis_url,
            self._database_check(addresses.database_url, settings),
            settings.broker_url.get_secret_value() if settings.broker_url else None,
            embedded,
            self._say,
        )
        reported: dict[str, int | None] = {}
        awaited: set[str] = set()
        ready = False
        while not self._stop.made:
            self._report_gone(directory)
            supervisor.poll()
            if not ready:
                checks.run()
            pids = {name: identity.pid for name, identity in supervisor.running.items()}
            pending = self._report_ready(readiness, supervisor.names, pids, reported)
            if not ready and not pending and (not answers_searches or probe(settings, PROBE_TIMEOUT_S) is None):
                ready = True
                self._record_left_out(client, settings)
                self._announce(addresses, settings, directory, pids)
                self._on_ready(settings, directory.path)
            if not ready:
                self._report_awaited(supervisor, pending, awaited)
                missing = [*pending, BROKER] if BROKER in checks.awaited else pending
                self._check_deadline(supervisor, missing, addresses, settings)
            time.sleep(RUNNING_POLL_INTERVAL_S if ready else STARTING_POLL_INTERVAL_S)

    def _record_left_out(self, client: redis.Redis, settings: Settings) -> None:
        """Tell `ltm status`, where it knows the Redis alone, what is not to be expected; a start overwrites it."""
        with suppress(redis.RedisError):
            if not settings.extracts and not client.exists(alive_key(EXTRACTOR)):
                client.delete(process_key(EXTRACTOR))  # of a start with an LLM, which now is off
            for name in set(self._options.without) - set(SERVERS):
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
            engine = readiness.engine(name)
            detail = f"  embedder engine {engine}" if engine else ""
            self._say(f"{name:<26} answers  {origin:<12} {self._clock() - self._started_at:5.1f} s{detail}")
        return pending

    def _database_check(self, database_url: str, settings: Settings) -> Callable[[], None]:
        if {WORKER, WRITER, INDEXER} | ({EXTRACTOR} if settings.extracts else set()) <= set(self._options.without):
            return partial(check_connects, database_url)
        return partial(check_database, database_url, settings.ltm_embedder_provider)

    def _report_gone(self, directory: DataDirectory) -> None:
        """Print once that the data directory was renamed or removed; what runs goes on with the files it has open."""
        if not self._gone and not directory.path.is_dir():
            self._gone = True
            self._say(f"the data directory {directory.path} is gone: what runs goes on, but a restart may fail")

    def _report_awaited(self, supervisor: Supervisor, pending: list[str], awaited: set[str]) -> None:
        """Print once what starting processes wait for, but for the servers, which have checks of their own."""
        for name in set(pending) & set(supervisor.names):
            reason = supervisor.awaited(name)
            if reason and reason not in awaited and not reason.startswith("DATABASE_URL"):
                awaited.add(reason)
                self._say(f"waiting: {reason}")

    def _check_deadline(
        self, supervisor: Supervisor, pending: list[str], addresses: Addresses, settings: Settings
    ) -> None:
        waited_s = self._clock() - self._started_at
        urls = {
            REDIS: ("REDIS_URL", addresses.redis_url),
            POSTGRES: ("DATABASE_URL", addresses.database_url),
            BROKER: ("BROKER_URL", settings.broker.get_secret_value()),
        }
        for name in set(pending) - set(supervisor.names):
            if waited_s > EXTERNAL_SERVER_TIMEOUT_S:
                variable, address = urls[name]
                raise StackError(
                    f"{variable} is {mask_url(address)!r}, and no server answers there: start it, or correct that"
                )
        if self._clock() > self._deadline:
            if not migrating(addresses.database_url):
                raise StackError(self._start_timeout(supervisor, pending))
            # Migrating a million memories takes minutes. Aborted, it would take as long at every start, and never end.
            self._say("the database is being migrated, which may take minutes")
            self._deadline = self._clock() + self._start_timeout_s

    def _start_timeout(self, supervisor: Supervisor, pending: list[str]) -> str:
        within = f"within {self._start_timeout_s:g} s"
        if not pending:
            lines, pending = [f"no search was answered {within}; last lines:"], [WORKER, ADAPTERS]
        else:
            lines = [f"{', '.join(pending)} did not answer {within}; last lines:"]
        for name in pending:
            lines += [f"  {name}: {line}" for line in supervisor.last_lines(name)]
        return "\n".join(lines)

    def _announce(
        self, addresses: Addresses, settings: Settings, directory: DataDirectory, pids: dict[str, int]
    ) -> None:
        gateway_url = settings.gateway_url if addresses.gateway_port else None
        self._say(f"Keepsake is up after {self._clock() - self._started_at:.1f} s.")
        self._say(f"  Redis       {mask_url(addresses.redis_url)}")
        self._say(f"  PostgreSQL  {mask_url(addresses.database_url)}")
        if gateway_url:
            self._say(f"  gateway     {gateway_url}")
        self._say(f"  logs        {directory.logs}")
        if self._metrics:
            self._say(f"  metrics     {self._metrics}")
        if self._options.ready_file:
            urls = {"redis_url": addresses.redis_url, "database_url": addresses.database_url}
            content = {**urls, "gateway_url": gateway_url, "pids": pids}
            try:
                write_private(self._options.ready_file.absolute(), json.dumps(content) + "\n")
            except OSError as error:
                reason = f"cannot be written ({error.strerror})"
                raise StackError(f"--ready-file {self._options.ready_file} {reason}: give another path") from None
