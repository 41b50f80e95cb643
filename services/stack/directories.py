"""The data directory of one run: a persistent one, or a temporary one that is removed with it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.runtime.errors import StackError
from services.stack.data_directory import DataDirectory

PREFIX = "ltm-up-"


@contextmanager
def persistent_dir(path: Path) -> Iterator[DataDirectory]:
    """A persistent data directory, locked for the length of the block.

    Raises:
        StackError: it cannot be used, or another `ltm up` uses it.
    """
    directory = DataDirectory(path)
    directory.create()
    with directory.locked():
        yield directory


@contextmanager
def temporary_dir() -> Iterator[DataDirectory]:
    """A data directory that is removed after the block."""
    remove_leftovers(Path(tempfile.gettempdir()))
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with persistent_dir(path) as directory:
            yield directory
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(temporary: Path) -> None:
    """Stop and remove the temporary stacks of this user whose `ltm up --ephemeral` was killed."""
    # One that is just being created has no record yet, and one in use is locked.
    for record in temporary.glob(f"{PREFIX}*/stack.json"):
        try:
            if record.stat().st_uid != os.geteuid():
                continue
            with persistent_dir(record.parent) as directory:
                directory.end_leftovers()
        except (StackError, OSError):
            continue
        shutil.rmtree(record.parent, ignore_errors=True)
