"""Reading the logs of a stack's processes: their last lines, and what is written from then on."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from services.runtime.errors import StackError
from services.runtime.settings import mask_url
from services.stack.data_directory import DataDirectory
from services.stack.directories import PREFIX
from services.stack.logfile import OLDER_SUFFIX
from services.stack.process_tree import remains
from services.stack.processes import FORK_SERVER, NAMES

POLL_INTERVAL_S = 0.2
#: Of each log, at first: enough for some thousand lines.
MAX_TAIL_BYTES = 1_000_000


class LogLine(NamedTuple):
    """One line of a process's log.

    Args:
        fields: of a line of Keepsake's own; servers write text, which becomes `process` and `event`.
        raw: a JSON object.
    """

    process: str
    fields: dict[str, Any]
    raw: str


def log_directory(data_directory: Path | None, default: Path, redis_url: str) -> Path:
    """The directory of a stack's logs: of the data directory that is given, or else of the one that runs.

    That is the one that uses `redis_url`, where it is set, or else the one in the default directory, or else one that
    `ltm up --ephemeral` started. Where none runs, it is the last one of the default directory.

    Raises:
        StackError: there is none, or there are several.
    """
    own = DataDirectory(data_directory or default)
    running = [] if data_directory else [each for each in (own, *_ephemeral()) if _address(each)]
    if running and redis_url:
        running = [each for each in running if _address(each) == redis_url]
    elif own in running:
        running = [own]
    if len(running) > 1:
        urls = ", ".join(sorted(mask_url(_address(each)) for each in running))
        raise StackError(f"several stacks run: say which one by REDIS_URL, one of {urls}")
    found = running[0] if running else own
    if not found.logs.is_dir() or (not running and redis_url and not data_directory):
        raise StackError(
            f"there are no logs of `ltm up` {f'with {mask_url(redis_url)}' if redis_url else f'in {own.path}'} here;"
            " those of Compose are shown by `docker compose logs`, those of a systemd unit by `journalctl --unit`"
        )
    return found.logs


def _ephemeral() -> Iterator[DataDirectory]:
    """The data directories of `ltm up --ephemeral` whose servers run: a killed one leaves its directory."""
    for record in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/stack.json"):
        directory = DataDirectory(record.parent)
        with suppress(StackError):  # of another user
            if (found := directory.read()) and any(remains(each, name) for name, each in found.processes.items()):
                yield directory


def _address(directory: DataDirectory) -> str:
    """The Redis of the stack that runs in a directory, or "" where none does."""
    record = directory.read()
    return record.redis_url if record else ""


class LogFile:
    """One log as it grows, over its rotations.

    Args:
        path: of the log; its older part is beside it.
        process: whose it is.
    """

    def __init__(self, path: Path, process: str) -> None:
        self._path = path
        self._process = process
        self._position = 0
        self._rest = b""

    def tail(self, lines: int) -> list[LogLine]:
        """The last lines; what is written later is read by `new`."""
        data = self._read(self._path, 0)
        self._position = len(data)
        if data.count(b"\n") < lines:
            data = self._read(self._older, 0) + data
        whole, newline, self._rest = data[-MAX_TAIL_BYTES:].rpartition(b"\n")
        return [self._parsed(line) for line in (whole + newline).splitlines()[-lines:]] if lines else []

    def new(self) -> list[LogLine]:
        """The lines that were completed since the last call."""
        size = self._path.stat().st_size if self._path.exists() else 0
        data = b""
        if size < self._position:  # rotated: what was not read yet is in the older part
            data = self._read(self._older, self._position)
            self._position = 0
        new = self._read(self._path, self._position)
        self._position += len(new)
        *whole, self._rest = (self._rest + data + new).split(b"\n")
        return [self._parsed(line) for line in whole]

    @property
    def _older(self) -> Path:
        return self._path.with_name(self._path.name + OLDER_SUFFIX)

    def _read(self, path: Path, position: int) -> bytes:
        try:
            with path.open("rb") as file:
                file.seek(position)
                return file.read()
        except FileNotFoundError:
            return b""

    def _parsed(self, line: bytes) -> LogLine:
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            fields = {"process": self._process, "event": line.decode("utf-8", "replace").rstrip("\r")}
            return LogLine(self._process, fields, json.dumps(fields))
        return LogLine(self._process, fields, line.decode("utf-8", "replace"))


def log_files(directory: Path, name: str | None) -> list[LogFile]:
    """The logs of one process, or of all of them in start order."""
    return [LogFile(directory / f"{each}.log", each) for each in ([name] if name else [FORK_SERVER, *NAMES])]


def last_lines(files: Sequence[LogFile], lines: int) -> list[LogLine]:
    """The last lines of every log, in the order of their times; a line without one follows the line before it."""
    timed: list[tuple[str, LogLine]] = []
    for file in files:
        moment = ""
        for line in file.tail(lines):
            moment = str(line.fields.get("timestamp", moment))
            timed.append((moment, line))
    return [line for _, line in sorted(timed, key=lambda each: each[0])]


def follow(files: Sequence[LogFile], directory: Path) -> Iterator[LogLine]:
    """The lines that are written from now on, until the directory is removed."""
    while directory.is_dir():
        lines = [line for file in files for line in file.new()]
        yield from lines
        if not lines:
            time.sleep(POLL_INTERVAL_S)
