"""The log of one process: a file that grows to a limit, with one older file beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 10 * 1024 * 1024
TAIL_BYTES = 65_536


class BoundedLog:
    """A log that a process writes through an inherited descriptor.

    It is cut by copy and truncate, because the writer keeps its descriptor; what it writes in between is lost.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes

    def open(self) -> BinaryIO:
        """The file, to be appended to; each write goes to its end wherever that has moved to."""
        return self.path.open("ab")

    def trim(self) -> None:
        """Move what there is to `NAME.log.1` once it is over the limit."""
        if self.path.stat().st_size <= self._max_bytes:
            return
        shutil.copyfile(self.path, self.path.with_name(self.path.name + ".1"))
        with self.path.open("r+b") as file:
            file.truncate(0)

    def tail(self, lines: int) -> list[str]:
        """Its last lines, without their line ends."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
