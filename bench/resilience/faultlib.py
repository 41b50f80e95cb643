"""What the fault run and the fuzzer share: a stack that can be hurt, and what is seen and heard of it from outside."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis
from keepsake_client.protocol import alive_key
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.runtime.errors import StackError
from services.runtime.queues import queue_depths
from services.runtime.settings import Settings, load_settings
from services.stack.data_directory import DataDirectory
from services.stack.processes import CHAT, NAMES, stop_signal
from services.stack.readiness import stream_backlog
from services.stack.wire import connect

ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 120.0
ENDED_WITHIN_S = 30.0
#: How long a process that has just been started is waited for, before it is hurt.
THERE_WITHIN_S = 20.0
AGAIN_AFTER_S = 0.05
SOCKET_TIMEOUT_S = 3.0
SHOWN_CHARS = 300


@dataclass(frozen=True)
class Stack:
    """A running `ltm up`.

    Args:
        home: its data directory.
        up: `ltm up` itself.
        output: the file that holds what it printed.
    """

    home: DataDirectory
    up: subprocess.Popen[bytes]
    output: Path
    settings: Settings

    @property
    def redis_url(self) -> str:
        """The pipeline's Redis."""
        return self.settings.redis_url.get_secret_value()

    @property
    def database_url(self) -> str:
        """The database of the workers."""
        return self.settings.database_url.get_secret_value()

    def pids(self) -> dict[str, int]:
        """Who runs now, by name, as far as `ltm up` knows."""
        record = self.home.read()
        return {name: identity.pid for name, identity in record.processes.items()} if record else {}

    def process(self, name: str) -> psutil.Process:
        """The process that `ltm up` started under this name.

        Raises:
            StackError: it does not run, and is not started within a while.
        """
        return self._there(name, lambda: self.pids()[name])

    def child(self, name: str) -> psutil.Process:
        """The process that does the work of a Dramatiq master; raises as `process` does."""
        client = connect(self.redis_url, 1.0)

        def pid() -> int:
            host_pid_parent = client.get(alive_key(name))
            assert isinstance(host_pid_parent, bytes)
            return int(host_pid_parent.split(b":")[-2])

        return self._there(name, pid)

    def _there(self, name: str, pid: Callable[[], int]) -> psutil.Process:
        until = time.monotonic() + THERE_WITHIN_S
        while time.monotonic() < until:
            try:
                process = psutil.Process(pid())
                if process.status() != psutil.STATUS_ZOMBIE:
                    return process
            except (KeyError, AssertionError, redis.RedisError, psutil.Error):
                pass
            time.sleep(AGAIN_AFTER_S)
        raise StackError(f"{name} does not run")

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.process(name).kill()

    def restart(self, name: str) -> None:
        """The signal that ends it in good order; the supervisor starts it again."""
        self.process(name).send_signal(stop_signal(name))

    @contextmanager
    def frozen(self, process: psutil.Process) -> Iterator[None]:
        """SIGSTOP for the length of the block."""
        process.suspend()
        try:
            yield
        finally:
            process.resume()

    @contextmanager
    def away(self, name: str) -> Iterator[None]:
        """Kill it, and keep the supervisor from starting it again for the length of the block."""
        with self.frozen(psutil.Process(self.up.pid)):
            self.kill(name)
            yield

    def memory(self) -> dict[str, dict[str, float]]:
        """Megabytes of each process, with what it started: RSS and USS."""
        pids = self.pids()
        figures = {}
        for name in sorted(pids, key=NAMES.index):
            family = [psutil.Process(pids[name]), *psutil.Process(pids[name]).children(recursive=True)]
            memory = [one.memory_full_info() for one in family if one.is_running()]
            figures[name] = {kind: sum(getattr(one, kind) for one in memory) / 1e6 for kind in ("rss", "uss")}
        return figures

    def deaths(self) -> Counter[str]:
        """How often each process died and was started again."""
        said = self.output.read_text(errors="replace")
        return Counter(re.findall(r'"name": "([\w-]+)"[^\n]*"event": "process_restarted"', said))

    def log_lines(self) -> Iterator[tuple[str, str]]:
        """Each line of each process's log, with the process's name."""
        for path in sorted(self.home.logs.iterdir()):
            with path.open(errors="replace") as file:
                for line in file:
                    yield path.name.partition(".log")[0], line

    def tracebacks(self) -> dict[str, Counter[str]]:
        """By process: what the tracebacks in its log end with, and how often."""
        found: dict[str, Counter[str]] = {}
        bare: dict[str, bool] = {}
        for name, line in self.log_lines():
            if line.startswith("{") and '"exception": "' in line:
                entry = _json(line)
                event = str(entry.get("event"))[:SHOWN_CHARS]
                ends = str(entry.get("exception")).strip().rpartition("\n")[2][:SHOWN_CHARS]
                found.setdefault(name, Counter())[f"{event} | {ends}"] += 1
            elif "Traceback (most recent call last)" in line:
                bare[name] = True
            elif bare.get(name) and line[:1].strip():
                bare[name] = False
                found.setdefault(name, Counter())[line.strip()[:SHOWN_CHARS]] += 1
        return found

    def waiting(self) -> dict[str, int]:
        """What is under way, by where it is; raises `redis.RedisError` if that cannot be told."""
        client = connect(self.redis_url)
        under_way = {}
        for queue in (self.settings.user_input_queue, self.settings.ltm_requests_queue):
            for key in client.scan_iter(f"{queue}*", count=1_000, _type="list"):
                under_way[key.decode()] = client.llen(key)
        log = self.settings.ltm_stream_key
        under_way[log] = stream_backlog(client, log)
        for queue, depths in queue_depths(client).items():
            under_way[f"queue {queue}"] = depths["waiting"] + depths["working"] + depths["delayed"]
        return {name: int(number) for name, number in under_way.items() if number}

    def wait_for_quiet(self, within_s: float, quiet_s: float = 3.0) -> tuple[float, dict[str, int]]:
        """Wait until nothing has been under way for `quiet_s`.

        Args:
            within_s: how long to wait while it does not become less; a busy machine may take its time.

        Returns:
            How long that took, and what is still under way if it did not end.
        """
        begun = quiet_since = less_since = time.monotonic()
        under_way: dict[str, int] = {}
        least = 1 << 60
        while time.monotonic() - less_since < within_s:
            try:
                under_way = self.waiting()
            except redis.RedisError as error:
                under_way = {repr(error): 1 << 59}
            if under_way:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= quiet_s:
                return quiet_since - begun, {}
            if sum(under_way.values()) < least:
                least, less_since = sum(under_way.values()), time.monotonic()
            time.sleep(0.25)
        return time.monotonic() - begun, under_way


@contextmanager
def running_stack(*, without: Sequence[str] = (CHAT,), keep: Path | None = None, **variables: str) -> Iterator[Stack]:
    """`ltm up --data-dir` in a process of its own, from ready to its end.

    Args:
        keep: where its logs are copied to at the end.
        variables: settings, by the names of their environment variables.

    Raises:
        StackError: it did not become ready.
    """
    # Not below a directory that is closed to PostgreSQL's user.
    place = Path(tempfile.mkdtemp(prefix="keepsake-faults-"))
    home, output, ready_file = DataDirectory(place / "data"), place / "up.log", place / "ready.json"
    command = [sys.executable, "-c", "from services.cli import main; main()", "up"]
    command += ["--data-dir", str(home.path), "--ready-file", str(ready_file)]
    command += [word for name in without for word in ("--without", name)]
    ours = {name.upper() for name in Settings.model_fields}
    environment = {name: value for name, value in os.environ.items() if name not in ours} | variables
    environment |= {"PYTHONPATH": str(ROOT)}
    # So that whoever ends this ends the stack too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        with output.open("wb") as file:
            up = subprocess.Popen(
                command, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        try:
            until = time.monotonic() + READY_WITHIN_S
            while not ready_file.exists():
                if up.poll() is not None or time.monotonic() > until:
                    raise StackError(f"`ltm up` did not become ready:\n{output.read_text()}")
                time.sleep(0.05)
            ready = json.loads(ready_file.read_text())
            names = {name.lower(): value for name, value in variables.items()}
            settings = load_settings(
                **{"redis_url": ready["redis_url"], "database_url": ready["database_url"], "broker_url": None} | names
            )
            yield Stack(home, up, output, settings)
        finally:
            up.send_signal(signal.SIGCONT)
            up.send_signal(signal.SIGTERM)
            try:
                up.wait(timeout=ENDED_WITHIN_S)
            except subprocess.TimeoutExpired:
                up.kill()
                home.end_leftovers()
            if keep is not None:
                shutil.copytree(home.logs, keep, dirs_exist_ok=True)
                shutil.copy(output, keep / "up.log")
    finally:
        shutil.rmtree(place, ignore_errors=True)


class Pusher:
    """Pushes and publishes, over and over until Redis says that it has.

    What Redis may have done, as nobody heard its answer, is not done again under the same id, because a double would be
    nobody's fault. It is told instead.
    """

    def __init__(self, url: str, stop: threading.Event) -> None:
        # redis-py's connections lack annotations. A client would hide whether a command was sent at all.
        self._connection: Any = redis.ConnectionPool.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_timeout=SOCKET_TIMEOUT_S
        ).make_connection()
        self._stop = stop

    def do(self, *command: str | bytes) -> bool | None:
        """Send one command: True once it is done, False if it was given up, None if that is not known."""
        while not self._stop.is_set():
            try:
                self._connection.connect()
            except (redis.RedisError, OSError):
                self._connection.disconnect()
                time.sleep(AGAIN_AFTER_S)
                continue
            try:
                self._connection.send_command(*command)
                self._connection.read_response()
            except redis.ResponseError as error:
                if not isinstance(error, redis.exceptions.OutOfMemoryError):
                    raise
                time.sleep(AGAIN_AFTER_S)
            except redis.BusyLoadingError:
                time.sleep(AGAIN_AFTER_S)
            except (redis.RedisError, OSError):
                self._connection.disconnect()
                return None
            else:
                return True
        return False


@dataclass(frozen=True)
class Answer:
    """One response as it was heard.

    Args:
        at: when, on the monotonic clock.
        problem: how it is somebody else's, if it is.
        partial: time was short, and it was ranked by words alone.
    """

    at: float
    error: str | None
    problem: str | None
    partial: bool


class Ear(threading.Thread):
    """Hears every response, and subscribes again after each lost connection.

    Args:
        check: how a response is somebody else's, if it is.
    """

    def __init__(self, url: str, channel: str, check: Callable[[dict[str, Any]], str | None]) -> None:
        super().__init__(name="ear", daemon=True)
        self._url = url
        self._channel = channel
        self._check = check
        self._done = threading.Event()
        self.listening = threading.Event()
        self.answers: dict[str, list[Answer]] = {}

    def run(self) -> None:
        while not self._done.is_set():
            try:
                with connect(self._url).pubsub() as pubsub:  # type: ignore[no-untyped-call]
                    pubsub.subscribe(self._channel)
                    while not self._done.is_set():
                        message = pubsub.get_message(timeout=0.5)
                        if message and message["type"] == "subscribe":
                            self.listening.set()
                        elif message and message["type"] == "message":
                            self._hear(message["data"])
            except (redis.RedisError, OSError):
                time.sleep(AGAIN_AFTER_S)

    def _hear(self, raw: bytes) -> None:
        at = time.monotonic()
        response = _json(raw.decode())
        error = None if response.get("success") else str(response.get("error"))
        answer = Answer(at, error, self._check(response), bool(response.get("partial")))
        self.answers.setdefault(str(response.get("request_id")), []).append(answer)

    def stop(self) -> None:
        """Hear nothing more."""
        self._done.set()
        self.join()


class Counts(threading.Thread):
    """Watches how many memories there are."""

    def __init__(self, database_url: str) -> None:
        super().__init__(name="counts", daemon=True)
        self._url = database_url
        self._done = threading.Event()
        #: Moments at which there were more than before.
        self.grew: list[float] = []

    def run(self) -> None:
        most = 0
        while not self._done.is_set():
            try:
                with psycopg.connect(self._url, connect_timeout=1, autocommit=True) as connection:
                    while not self._done.wait(0.2):
                        row = connection.execute("SELECT coalesce(max(number), 0) FROM memories").fetchone()
                        if row and row[0] > most:
                            most = row[0]
                            self.grew.append(time.monotonic())
            except psycopg.Error:
                self._done.wait(AGAIN_AFTER_S)

    def stop(self) -> None:
        """Look no more."""
        self._done.set()
        self.join()


def longest_gap(moments: Sequence[float], begin: float, end: float) -> float:
    """The longest time from `begin` on without any of the moments.

    One that lasts beyond `end` counts, whole, if it began in the first half: a later one is what came at `end`.
    """
    edges = [begin, *sorted(moment for moment in moments if moment > begin)]
    middle = (begin + end) / 2
    gaps = (later - earlier for earlier, later in pairwise(edges) if earlier < middle or later <= end)
    return max(gaps, default=0.0)


def show_tracebacks(tracebacks: dict[str, Counter[str]], most: int = 12) -> None:
    """Print what ended the tracebacks, the most frequent first."""
    for name, endings in tracebacks.items():
        for ending, number in endings.most_common(most):
            print(f"  {number:>5} x {name}: {ending}")


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
