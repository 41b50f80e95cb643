"""Rotated log files of the stack's processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 10 * 1024 * 1024
TAIL_BYTES = 65_536
#: Added to the name of the older file.
OLDER_SUFFIX = ".1"


class BoundedLog:
    """The log file of one process, rotated at a size limit into one older file.

    The process writes through an inherited descriptor and keeps it, so the rotation copies and truncates. Lines
    written in between are lost.

    Args:
        max_bytes: the size from which on it is rotated.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes

    def open(self) -> BinaryIO:
        """The file, opened for appending: each write goes to its current end, also after a rotation."""
        return self.path.open("ab")

    def trim(self) -> None:
        """Rotate the file to `NAME.log.1` if it is over the limit."""
        if self.path.stat().st_size <= self._max_bytes:
            return
        shutil.copyfile(self.path, self.path.with_name(self.path.name + OLDER_SUFFIX))
        with self.path.open("r+b") as file:
            file.truncate(0)

    def tail(self, lines: int) -> list[str]:
        """The last lines of the log, without their line ends."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
