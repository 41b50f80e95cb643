"""Earlier releases of Keepsake, from the git history, and processes of several releases on the same servers.

An earlier release runs with the libraries of this one's environment.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from keepsake_client.protocol import alive_key

from bench.harness.load import ROOT
from services.runtime.errors import StackError
from services.runtime.queues import INDEX_QUEUE, INTERACTIVE_QUEUE, WRITES_QUEUE
from services.runtime.redis import connect
from services.stack.processes import ADAPTERS, INDEXER, MEMORY, WORKER, WRITER

#: The last one before the gateway, 0.2.0; and the first one that was used, whose modules have other names.
RELEASES = {"0.2.0": "6c22a0a^", "295cecd": "295cecd"}
QUEUE_OF = {WORKER: INTERACTIVE_QUEUE, WRITER: WRITES_QUEUE, INDEXER: INDEX_QUEUE}
MODULE_OF = {ADAPTERS: "adapters", MEMORY: "services.memory"}
#: Settings that name the servers; those of a release's processes are given.
SERVERS_OF = ("REDIS_URL", "DATABASE_URL", "BROKER_URL")
READY_WITHIN_S = 120.0
ENDED_WITHIN_S = 30.0
POLL_EVERY_S = 0.05


class ReleaseMissing(Exception):
    """The git history here does not have the release, as in a shallow clone or without git."""


@dataclass(frozen=True)
class Release:
    """A release of Keepsake that can be run.

    Args:
        name: as it is printed.
        root: the directory of its source.
    """

    name: str
    root: Path

    def command(self, process: str) -> list[str]:
        """The command of a process, as the release's own docker-compose.yml gives it."""
        if process in MODULE_OF:
            return [sys.executable, "-m", MODULE_OF[process]]
        options = ["--worker-shutdown-timeout", "20000", "--queues", QUEUE_OF[process]]
        if (self.root / "tasks" / "__main__.py").exists():
            return [sys.executable, "-m", "tasks", *options]
        size = ["--processes", "1", "--threads", "2", "--skip-logging"]
        return [sys.executable, "-m", "dramatiq", "tasks.worker", *size, *options]

    def ltm(self, *arguments: str) -> list[str]:
        """The command `ltm` of the release."""
        return [sys.executable, "-c", "from services.cli import main; main()", *arguments]

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """What a process of it runs in: the environment here, with its own modules first, and `variables`."""
        paths = [str(self.root), str(self.root / "clients" / "python")]
        inherited = {name: value for name, value in os.environ.items() if name not in SERVERS_OF}
        return {**inherited, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **variables}


THIS_RELEASE = Release("this release", ROOT)


@contextmanager
def earlier_release(commit: str, name: str = "") -> Iterator[Release]:
    """The release of a commit, in a temporary directory that is removed at the end.

    Raises:
        ReleaseMissing: there is no such commit here, or no git.
    """
    try:
        packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise ReleaseMissing("there is no git here") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise ReleaseMissing(f"the git history here has no {commit}: {reason}") from None
    root = Path(tempfile.mkdtemp(prefix="keepsake-release-"))
    try:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(root, filter="data")
        yield Release(name or commit, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@dataclass(frozen=True)
class RunningProcess:
    """A process of a release."""

    release: Release
    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Fleet:
    """Processes of several releases on the same servers, which are killed at the end of a `with` block.

    Args:
        redis_url, database_url: of the servers.
        logs: the directory of their logs.
        variables: settings of all processes.
    """

    def __init__(self, redis_url: str, database_url: str, logs: Path, **variables: str) -> None:
        self._redis_url = redis_url
        self._logs = logs
        self._variables = {"REDIS_URL": redis_url, "DATABASE_URL": database_url, **variables}
        self.running: list[RunningProcess] = []
        self._number = 0

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def start(self, release: Release, *names: str) -> None:
        """Start processes, and return once they have sent a heartbeat.

        Raises:
            StackError: one of them ended, or did not become ready in time.
        """
        started = [self.spawn(release, name) for name in names]
        for one in started:
            self.wait_until_ready(one)

    def spawn(self, release: Release, name: str) -> RunningProcess:
        """Start a process without waiting for it."""
        self._number += 1
        log = self._logs / f"{name}-{self._number}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                release.command(name),
                cwd=release.root,
                env=release.environment({**self._variables, "LTM_PROCESS_NAME": name}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        one = RunningProcess(release, name, process, log)
        self.running.append(one)
        return one

    def wait_until_ready(self, one: RunningProcess) -> None:
        """Wait for the heartbeat of a process, or of one that it has forked; raises as `start` does."""
        until = time.monotonic() + READY_WITHIN_S
        with connect(self._redis_url) as client:
            while not _is_of(one.process.pid, client.get(alive_key(one.name))):
                if one.process.poll() is not None or time.monotonic() > until:
                    raise StackError(f"{one.name} of {one.release.name} is not ready:\n{one.log.read_text()[-4000:]}")
                time.sleep(POLL_EVERY_S)

    def stop(self, release: Release, *names: str) -> None:
        """Stop the processes of these names of a release, as compose and systemd do."""
        ending = [one for one in self.running if one.release is release and one.name in names]
        for one in ending:
            one.process.terminate()
        for one in ending:
            one.process.wait(ENDED_WITHIN_S)
            self.running.remove(one)

    def kill_all(self) -> None:
        """Kill what still runs."""
        for one in self.running:
            children = psutil.Process(one.process.pid).children(recursive=True) if one.process.poll() is None else []
            one.process.kill()
            one.process.wait()
            for child in children:
                child.kill()
        self.running.clear()


def _is_of(pid: int, heartbeat: object) -> bool:
    """Whether a heartbeat, `host:pid:parent pid`, is of a process or of one that it has forked."""
    return isinstance(heartbeat, bytes) and str(pid).encode() in heartbeat.split(b":")[-2:]
