"""The supervisor: starts processes, restarts those that exit, and stops them all."""

from __future__ import annotations

import json
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import structlog

from services.runtime.errors import EXIT_CANNOT_START, CannotStart, InvalidSetting, ProcessKeepsDying
from services.runtime.logging import START_AWAITS, START_REFUSED
from services.stack import process_tree
from services.stack.fork_server import REFUSED_PAUSE_S, ForkedProcess, ForkServer
from services.stack.logfile import BoundedLog
from services.stack.process_tree import NAME_VARIABLE, ProcessId
from services.stack.processes import ProcessSpec, stop_signal

#: A process that exits this often within the window is in a crash loop, which ends the stack.
MAX_CRASHES = 5
CRASH_WINDOW_S = 60.0
LAST_LINES = 20

# Their sum, plus one second for SIGKILL, stays below the 10 s within which the stack has to stop.
SERVICE_GRACE_S = 5.5
SERVER_GRACE_S = 2.0
TRIM_INTERVAL_S = 5.0

log = structlog.get_logger()


class Child:
    """One supervised process, across its restarts.

    Args:
        spec: its name and command.
        environment: its environment, to which its name and the port of its metrics are added.
        directory: its working directory.
        logs: the directory of its log.
        clock: seconds, monotonic.
        fork_server: starts the process, if it may and has not failed.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        environment: Mapping[str, str],
        directory: Path,
        logs: Path,
        clock: Callable[[], float],
        fork_server: ForkServer | None = None,
    ) -> None:
        self.spec = spec
        self.log = BoundedLog(logs / f"{spec.name}.log")
        self.identity: ProcessId | None = None
        self._environment = environment
        self._variables = {NAME_VARIABLE: spec.name}
        if spec.metrics_port is not None:
            self._variables["LTM_METRICS_PORT"] = str(spec.metrics_port)
        self._fork_server = fork_server if spec.forkable else None
        self._directory = directory
        self._clock = clock
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self._crashes: deque[float] = deque(maxlen=MAX_CRASHES)
        self._start_at = clock()
        self._log_start = self.log.size()  # what an earlier run has logged is not of this one

    @property
    def running(self) -> bool:
        """Whether the process has been started and not yet been seen to have exited."""
        return self._process is not None

    @property
    def due(self) -> bool:
        """Whether the process has to be started now, and can be."""
        if self.running or self._clock() < self._start_at:
            return False
        return self._fork_server is None or self._fork_server.ready() or self._fork_server.failed

    def start(self) -> None:
        """Start the process, in a session of its own, so that a terminal's Ctrl-C reaches `ltm up` alone."""
        self._log_start = self.log.size()
        with self.log.open() as output:
            if self._fork_server and not self._fork_server.failed:
                _, _, *command = self.spec.argv
                self._process = self._fork_server.fork(self.spec.name, command, self._variables, output)
            else:
                environment = {**self._environment, **self._variables}
                self._process = process_tree.start(self.spec.name, self.spec.argv, environment, self._directory, output)
        if self._process is None:
            self._start_at = self._clock() + REFUSED_PAUSE_S
        # It has not been waited for, so the pid is not reused even if it has exited already.
        self.identity = process_tree.identify(self._process.pid) if self._process else None

    def reap(self) -> int | None:
        """If the process has exited, kill what it left behind and schedule its restart.

        Returns:
            Its exit code (negative: the signal that killed it), or None if it runs or is not started.
        """
        if self._process is None or (code := self._process.poll()) is None:
            return None
        # What a killed process has forked would go on working beside its successor.
        process_tree.kill(process_tree.session_members(self._process.pid))
        self._process = None
        self.identity = None
        now = self._clock()
        self._crashes.append(now)
        # The first restart is immediate, the next after 0.25, 0.5 and 1 s: most causes need a moment to disappear.
        self._start_at = now + (0.0 if self.crashes < 2 else 2.0 ** (self.crashes - 4))
        return code

    @property
    def crashes(self) -> int:
        """How often the process exited within the last `CRASH_WINDOW_S`."""
        return sum(1 for moment in self._crashes if self._clock() - moment < CRASH_WINDOW_S)

    def last_lines(self) -> list[str]:
        """The last lines that it has logged since its last start."""
        return self.log.tail(LAST_LINES, self._log_start)

    def reported(self, event: str) -> dict[str, Any] | None:
        """The last line of this log event since its last start, if there is one."""
        lines = [line for line in self.last_lines() if line.startswith("{") and event in line]
        for line in reversed(lines):
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            if fields.get("event") == event:
                return dict(fields)
        return None

    def signal(self) -> None:
        """Send the stop signal to the process alone, since a worker stops what it has forked in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(stop_signal(self.spec.name))

    def ended(self) -> bool:
        """Whether the process has exited, or was never started."""
        return self._process is None or self._process.poll() is not None

    def left(self) -> list[psutil.Process]:
        """The process, if it still runs, and everything that it started and that still runs."""
        if self._process is None:
            return []
        leader = self._process.pid
        started = process_tree.session_members(leader)
        if self._process.poll() is not None:
            return started
        process = psutil.Process(leader)  # first, so that it starts no more of them
        return [process, *process_tree.descendants(process), *started]

    def forget(self) -> None:
        """Note that the process has ended, unless it still runs."""
        if self.ended():
            self._process = None
            self.identity = None


class Supervisor:
    """A group of processes that are kept running until `stop`.

    Args:
        specs: the processes, in start order.
        environment: the environment of all of them.
        directory: their working directory.
        logs: the directory of their logs.
        on_start: called after every start, with the processes that run now, by name.
        clock: seconds, monotonic.
        service_grace_s: how long all services together may take to stop before they are killed.
        logs_kept: whether the logs outlive the stack, so that an error may name one.
        fork_server: starts those of them that may be forked.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        environment: Mapping[str, str],
        directory: Path,
        logs: Path,
        on_start: Callable[[dict[str, ProcessId]], None],
        clock: Callable[[], float] = time.monotonic,
        service_grace_s: float = SERVICE_GRACE_S,
        logs_kept: bool = True,
        fork_server: ForkServer | None = None,
    ) -> None:
        self._children = [Child(spec, environment, directory, logs, clock, fork_server) for spec in specs]
        self._fork_server = fork_server
        self._on_start = on_start
        self._clock = clock
        self._service_grace_s = service_grace_s
        self._logs_kept = logs_kept
        self._trim_at = clock() + TRIM_INTERVAL_S

    @property
    def names(self) -> list[str]:
        """The names of the supervised processes, in start order."""
        return [child.spec.name for child in self._children]

    @property
    def running(self) -> dict[str, ProcessId]:
        """The processes that run, by name, as of the last `poll`."""
        return {child.spec.name: child.identity for child in self._children if child.identity is not None}

    def last_lines(self, name: str) -> list[str]:
        """The last lines of a process's log, since its last start."""
        return self._child(name).last_lines()

    def awaited(self, name: str) -> str | None:
        """What a starting process has logged that it waits for.

        Raises:
            CannotStart: it has logged that it gives up.
        """
        child = self._child(name)
        if child.reported(START_REFUSED):
            raise _cannot_start(child)
        reported = child.reported(START_AWAITS)
        return str(reported["reason"]) if reported else None

    def _child(self, name: str) -> Child:
        return next(child for child in self._children if child.spec.name == name)

    def poll(self) -> None:
        """Start what is due, restart what has exited, trim the logs; to be called several times a second.

        Raises:
            CannotStart: one exited with `EXIT_CANNOT_START`; the message is its reason.
            ProcessKeepsDying: one exited five times within a minute; the message ends with its last lines.
        """
        for child in self._children:
            code = child.reap()
            if code is not None:
                if code == EXIT_CANNOT_START:
                    raise _cannot_start(child)
                if child.crashes >= MAX_CRASHES:
                    raise ProcessKeepsDying(self._format_crash(child, code))
                log.warning("process_restarted", name=child.spec.name, exit_code=code, crashes=child.crashes)
            if child.due:
                child.start()
                self._on_start(self.running)
        if self._clock() >= self._trim_at:
            self._trim_at = self._clock() + TRIM_INTERVAL_S
            for child in self._children:
                child.log.trim()
            if self._fork_server:
                self._fork_server.trim()
                own = {self._fork_server.pid, *(identity.pid for identity in self.running.values())}
                process_tree.reap_adopted({pid for pid in own if pid})

    def _format_crash(self, child: Child, code: int) -> str:
        lines = "\n".join(f"  {line}" for line in child.log.tail(LAST_LINES)) or "  (none)"
        where = f" ({child.log.path})" if self._logs_kept else ""
        return (
            f"{child.spec.name} exited {MAX_CRASHES} times within a minute (exit code {code}),"
            f" so the stack was stopped; its last lines{where}:\n{lines}"
        )

    def stop(self) -> None:
        """Stop every process, the servers last, within ten seconds; kill those that do not stop in time."""
        services = [child for child in reversed(self._children) if not child.spec.is_server]
        servers = [child for child in reversed(self._children) if child.spec.is_server]
        for layer, grace_s in ((services, self._service_grace_s), (servers, SERVER_GRACE_S)):
            for child in layer:
                child.signal()
            deadline = time.monotonic() + grace_s
            while time.monotonic() < deadline and not all(child.ended() for child in layer):
                time.sleep(0.02)
            # One that the kernel is slow to end, as on a busy machine, must not keep the next layer from its signal.
            process_tree.kill(process for child in layer for process in child.left())
            for child in layer:
                child.forget()
        if self._fork_server:
            self._fork_server.stop()


def _cannot_start(child: Child) -> CannotStart:
    """The error of a process that no restart helps, as it has logged it, or printed it before it could log."""
    reported = child.reported(START_REFUSED)
    if reported is None:
        printed = [line for line in child.last_lines() if line.startswith("ltm: ")]
        return CannotStart(f"{child.spec.name}: {printed[-1].removeprefix('ltm: ') if printed else 'no reason given'}")
    error = InvalidSetting if reported.get("code") == InvalidSetting.code else CannotStart
    return error(str(reported["reason"]))
