"""Rotated log files of the stack's processes."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
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
        """The file, opened for appending: each write goes to its current end, also after a rotation.

        A directory that was removed meanwhile does not keep a process from its restart: its log is discarded.
        """
        try:
            return self.path.open("ab")
        except FileNotFoundError:
            return Path(os.devnull).open("ab")

    def trim(self) -> None:
        """Rotate the file to `NAME.log.1` if it is over the limit."""
        if self.size() <= self._max_bytes:
            return
        with suppress(OSError):  # on a full disk, the older half is lost
            shutil.copyfile(self.path, self.path.with_name(self.path.name + OLDER_SUFFIX))
        with self.path.open("r+b") as file:
            file.truncate(0)

    def size(self) -> int:
        """The size of the file in bytes, 0 where there is none."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def tail(self, lines: int, since: int = 0) -> list[str]:
        """The last lines of the log, without their line ends.

        Args:
            since: an earlier size of the file, before which nothing is read.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            size = self.size()
            file.seek(max(since if since <= size else 0, size - TAIL_BYTES))  # rotated, if it is smaller now
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
