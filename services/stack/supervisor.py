"""The supervisor: starts processes, starts those again that die, and ends them all."""

from __future__ import annotations

import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
import structlog

from services.runtime.errors import ProcessKeepsDying
from services.stack import process_tree
from services.stack.logfile import BoundedLog
from services.stack.process_tree import NAME_VARIABLE, ProcessId
from services.stack.processes import ProcessSpec, stop_signal

MAX_DEATHS = 5
DEATHS_WITHIN_S = 60.0
LAST_LINES = 20

# Batcher with a second for the kills they stay under the ten seconds in which everything has to end.
SERVICE_GRACE_S = 5.5
SERVER_GRACE_S = 2.0
TRIM_EVERY_S = 5.0

log = structlog.get_logger()


class Child:
    """One process, from its first start to its end.

    Args:
        spec: what to start.
        environment: its environment, to which its name is added.
        directory: where it works.
        logs: the directory of its log.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        environment: Mapping[str, str],
        directory: Path,
        logs: Path,
        clock: Callable[[], float],
    ) -> None:
        self.spec = spec
        self.log = BoundedLog(logs / f"{spec.name}.log")
        self.identity: ProcessId | None = None
        self._environment = {**environment, NAME_VARIABLE: spec.name}
        self._directory = directory
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self._start_at = clock()

    @property
    def running(self) -> bool:
        """Whether it has been started and not yet been seen dead."""
        return self._process is not None

    @property
    def due(self) -> bool:
        """Whether it is time to start it."""
        return not self.running and self._clock() >= self._start_at

    def start(self) -> None:
        """Start it, in a session of its own: a terminal's Ctrl-C is for `ltm up` alone."""
        with self.log.open() as output:
            self._process = subprocess.Popen(
                self.spec.argv,
                env=self._environment,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # It has not been waited for, so the pid is its own even if it is dead already.
        self.identity = process_tree.identify(self._process.pid)

    def died(self) -> int | None:
        """Its exit code (negative: the signal that killed it) if it has died since it was started."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        # What a killed master leaves behind would go on working beside its successor's children.
        process_tree.kill(process_tree.session_members(self._process.pid))
        self._process = None
        self.identity = None
        now = self._clock()
        self._deaths.append(now)
        # At once the first time, then with pauses of 0.25, 0.5 and 1 s: most causes need a moment to go away.
        self._start_at = now + (0.0 if self.deaths < 2 else 2.0 ** (self.deaths - 4))
        return code

    @property
    def deaths(self) -> int:
        """How often it died within the last minute."""
        return sum(1 for moment in self._deaths if self._clock() - moment < DEATHS_WITHIN_S)

    def signal(self) -> None:
        """Ask it to end; it alone is asked, since a master ends its own children in good order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(stop_signal(self.spec.name))

    def ended(self) -> bool:
        """Whether nothing of it runs any more, as far as it can be asked."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """Kill what still runs of it and of everything it started."""
        if self._process is None:
            return
        leader = self._process.pid
        left = process_tree.session_members(leader)
        if self._process.poll() is None:
            left += process_tree.descendants(psutil.Process(leader))
            self._process.kill()
            self._process.wait(timeout=2)
        process_tree.kill(left)
        self._process = None
        self.identity = None


class Supervisor:
    """A group of processes, kept running until it is stopped.

    Args:
        specs: what to start, in this order.
        environment: what all of them get.
        directory: where they work.
        logs: the directory of their logs.
        on_start: called after every start, with who runs now.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        environment: Mapping[str, str],
        directory: Path,
        logs: Path,
        on_start: Callable[[dict[str, ProcessId]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._children = [Child(spec, environment, directory, logs, clock) for spec in specs]
        self._on_start = on_start
        self._clock = clock
        self._trim_at = clock() + TRIM_EVERY_S

    @property
    def names(self) -> list[str]:
        """Whom it keeps running, in start order."""
        return [child.spec.name for child in self._children]

    @property
    def running(self) -> dict[str, ProcessId]:
        """Who runs now, by name, as far as is known."""
        return {child.spec.name: child.identity for child in self._children if child.identity is not None}

    def last_lines(self, name: str) -> list[str]:
        """The last lines of a process's log."""
        return next(child.log.tail(LAST_LINES) for child in self._children if child.spec.name == name)

    def poll(self) -> None:
        """Start what is due, the dead among them; to be called again and again.

        Raises:
            ProcessKeepsDying: one died five times within a minute; the message ends with its last lines.
        """
        for child in self._children:
            code = child.died()
            if code is not None:
                if child.deaths >= MAX_DEATHS:
                    raise ProcessKeepsDying(_format_crash(child, code))
                log.warning("process_died_and_is_restarted", name=child.spec.name, exit_code=code, deaths=child.deaths)
            if child.due:
                child.start()
                self._on_start(self.running)
        if self._clock() >= self._trim_at:
            self._trim_at = self._clock() + TRIM_EVERY_S
            for child in self._children:
                child.log.trim()

    def stop(self) -> None:
        """End every process, the servers last, within ten seconds; what does not end by itself is killed."""
        services = [child for child in reversed(self._children) if not child.spec.is_server]
        servers = [child for child in reversed(self._children) if child.spec.is_server]
        for layer, grace_s in ((services, SERVICE_GRACE_S), (servers, SERVER_GRACE_S)):
            for child in layer:
                child.signal()
            give_up = time.monotonic() + grace_s
            while time.monotonic() < give_up and not all(child.ended() for child in layer):
                time.sleep(0.02)
            for child in layer:
                child.kill()


def _format_crash(child: Child, code: int) -> str:
    lines = "\n".join(f"  {line}" for line in child.log.tail(LAST_LINES)) or "  (it said nothing)"
    return (
        f"{child.spec.name} died {MAX_DEATHS} times within a minute (exit code {code}), so everything was stopped; "
        f"its last lines ({child.log.path}):\n{lines}"
    )
