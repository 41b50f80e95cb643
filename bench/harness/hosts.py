"""A stack on several hosts: network namespaces of this machine, each with the processes of one part of it.

`redis` and `postgres` have the servers, `work1` and `work2` a worker of each kind, `adapters` the adapters and the
memory service, `askers` is where the load comes from. On each, an `ltm up` runs its processes, as on a host of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.harness import clock_off
from bench.harness.load import ROOT
from bench.harness.stack import ENDED_WITHIN_S, POLL_EVERY_S, READY_WITHIN_S, LtmUp, Stack
from services.long_term_memory.postgres.pool import reachable
from services.runtime.errors import StackError
from services.runtime.settings import load_settings
from services.stack.data_directory import DataDirectory
from services.stack.embedded_postgres import DATABASE, SYSTEM_USER, TUNING, USER, binaries, postgres_spec, postgres_url
from services.stack.embedded_valkey import valkey_spec
from services.stack.processes import ADAPTERS, INDEXER, MEMORY, SERVICES, WORKER, WRITER
from tests.network_namespaces import Host, Network, network

PARTS: Mapping[str, tuple[str, ...]] = {
    "work1": (WORKER, WRITER, INDEXER),
    "work2": (WORKER, WRITER, INDEXER),
    "adapters": (ADAPTERS, MEMORY),
}
REDIS_PORT, POSTGRES_PORT = 6379, 5432


def libfaketime() -> Path | None:
    """Debian's libfaketime, which gives a process another time; None where it is not installed."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@dataclass
class Part:
    """One host, and the `ltm up` that runs its processes.

    Args:
        services: the names of its processes.
        settings: environment variables of them all.
    """

    host: Host
    services: tuple[str, ...]
    settings: Mapping[str, str]
    place: Path
    process: subprocess.Popen[bytes] | None = None
    ready_s: float = 0.0

    @property
    def ltm_up(self) -> LtmUp:
        """Its `ltm up`.

        Raises:
            StackError: it was never started.
        """
        if self.process is None:
            raise StackError(f"nothing was started on {self.host.name}")
        return LtmUp(self.process, DataDirectory(self.place / "data"), self.place / "up.log", self.ready_s)

    def start(self, clock_ahead_s: float = 0.0) -> None:
        """Start its processes; `wait_until_ready` waits for them.

        Args:
            clock_ahead_s: by how many seconds this host's clock is ahead of the others'; behind, if negative.
        """
        ready = self.place / "ready.json"
        ready.unlink(missing_ok=True)
        left_out = [word for name in SERVICES if name not in self.services for word in ("--without", name)]
        command = [sys.executable, "-c", "from services.cli import main; main()", "up", "--ready-file", str(ready)]
        command += ["--data-dir", str(self.place / "data"), *left_out]
        with self.host.entered(), (self.place / "up.log").open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**_without_broker(os.environ), **self.settings, **_clock(clock_ahead_s)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def wait_until_ready(self) -> None:
        """Wait until each of its processes answers.

        Raises:
            StackError: they do not.
        """
        begun = time.monotonic()
        while not (self.place / "ready.json").exists():
            if self.process is None or self.process.poll() is not None or time.monotonic() - begun > READY_WITHIN_S:
                raise StackError(f"{self.host.name} did not become ready:\n{(self.place / 'up.log').read_text()}")
            time.sleep(POLL_EVERY_S)
        self.ready_s = time.monotonic() - begun

    def kill(self) -> None:
        """SIGKILL of everything on the host, as when it loses power."""
        self.host.kill()
        if self.process is not None:
            self.process.wait(timeout=ENDED_WITHIN_S)

    def stop(self) -> None:
        """End its processes in order, or kill them where that takes too long."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=ENDED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass
class Hosts:
    """The hosts of a running stack.

    Args:
        stack: the whole of it, as it is seen from the askers' host.
        parts: by the names of their hosts.
    """

    stack: Stack
    parts: dict[str, Part]
    redis: Host
    postgres: Host
    askers: Host
    network: Network = field(repr=False)


@contextmanager
def running_hosts(keep_logs: Path | None = None, **variables: str) -> Iterator[Hosts]:
    """A stack on several hosts, ready at the beginning of the block; this thread is on the askers' host in it.

    Args:
        keep_logs: a directory to copy the logs to at the end.
        variables: further settings, by the names of their environment variables.

    Raises:
        StackError: it does not become ready.
    """
    place = Path(tempfile.mkdtemp(prefix="keepsake-hosts-"))
    place.chmod(0o755)  # PostgreSQL's account has to pass
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, place, ignore_errors=True)
        lab = cleanup.enter_context(network())
        redis, postgres, askers = (lab.host(name) for name in ("redis", "postgres", "askers"))
        addresses = {
            "REDIS_URL": cleanup.enter_context(_redis(redis, place)),
            "DATABASE_URL": cleanup.enter_context(_postgres(postgres, place)),
        }
        # Each host would have processors of its own, where indexing gives way to what else runs there.
        settings = {"LTM_RESPONSE_REPEATS_MS": "", "LTM_INDEX_NICE": "0", **variables, **addresses}
        parts = {}
        for name, services in PARTS.items():
            (place / name).mkdir()
            parts[name] = Part(lab.host(name), services, settings, place / name)
            cleanup.callback(_keep, keep_logs, parts[name])
            cleanup.callback(parts[name].stop)
        for part in parts.values():
            part.start()
        for part in parts.values():
            part.wait_until_ready()
        with askers.entered():
            known = load_settings(broker_url=None, **{name.lower(): value for name, value in settings.items()})
            first, *others = (part.ltm_up for part in parts.values())
            yield Hosts(Stack(known, first, others=tuple(others)), parts, redis, postgres, askers, lab)


@contextmanager
def _redis(host: Host, place: Path) -> Iterator[str]:
    """A Valkey on a host, with its data on the disk; its URL."""
    (place / "valkey").mkdir()
    binary, *options = valkey_spec(place / "valkey", REDIS_PORT, ephemeral=False).argv
    options += ["--bind", "0.0.0.0", "--protected-mode", "no"]
    with host.entered(), (place / "valkey.log").open("wb") as log:
        process = subprocess.Popen([binary, *options], stdout=log, stderr=log)
    try:
        yield f"redis://{host.address}:{REDIS_PORT}/0"
    finally:
        _end(process)


@contextmanager
def _postgres(host: Host, place: Path) -> Iterator[str]:
    """A PostgreSQL on a host; its URL."""
    home, sockets = place / "postgres", place / "sockets"
    with (place / "postgres.log").open("wb") as log:
        maker = subprocess.Popen(postgres_spec(home, sockets, None, ephemeral=True).argv, stdout=log, stderr=log)
        try:
            _wait_for(lambda: reachable(postgres_url(sockets, None)), maker, "PostgreSQL")
        finally:
            _end(maker)
        with (home / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 trust\n")
        tuning = [word for name, value in TUNING.items() for word in ("-c", f"{name}={value}")]
        command = [str(binaries() / "postgres"), "-D", str(home / "data"), "-k", str(sockets), *tuning]
        command += ["-h", "0.0.0.0", "-p", str(POSTGRES_PORT), "-c", "max_connections=100"]
        with host.entered():
            process = subprocess.Popen(
                command, cwd=home, stdout=log, stderr=log, user=SYSTEM_USER, group=SYSTEM_USER, extra_groups=()
            )
    try:
        _wait_for(lambda: reachable(f"postgresql://{USER}@/{DATABASE}?host={sockets}"), process, "PostgreSQL")
        yield f"postgresql://{USER}@{host.address}:{POSTGRES_PORT}/{DATABASE}"
    finally:
        _end(process, signal.SIGINT)


def _without_broker(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "BROKER_URL"}


def _clock(ahead_s: float) -> dict[str, str]:
    """Environment variables of a process whose host's clock is off."""
    if not ahead_s:
        return {}
    library = libfaketime()
    if library is None:
        raise StackError("libfaketime is not installed: run .ci/install-libfaketime")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{ahead_s:+g}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": str(Path(clock_off.__path__[0])),
    }


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], name: str) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            raise StackError(f"{name} did not become ready")
        time.sleep(POLL_EVERY_S)


def _end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
    if process.poll() is None:
        process.send_signal(number)
        process.wait(timeout=ENDED_WITHIN_S)


def _keep(directory: Path | None, part: Part) -> None:
    if directory is not None and part.process is not None:
        kept = directory / part.host.name
        shutil.copytree(part.ltm_up.directory.logs, kept, dirs_exist_ok=True)
        shutil.copy(part.ltm_up.output, kept / "up.log")
