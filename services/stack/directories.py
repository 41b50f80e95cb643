"""Where a stack lives: in a data directory that stays, or in one that goes with it."""

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
    """A data directory, owned for the length of the block.

    Raises:
        StackError: it cannot be used, or another `ltm up` owns it.
    """
    directory = DataDirectory(path)
    directory.create()
    with directory.owned():
        yield directory


@contextmanager
def temporary_dir() -> Iterator[DataDirectory]:
    """A data directory of which nothing is left after the block."""
    sweep(Path(tempfile.gettempdir()))
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with persistent_dir(path) as directory:
            yield directory
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(temporary: Path) -> None:
    """End and remove what a killed `ltm up --ephemeral` of this user left; nobody else would ever find it."""
    # One that is only just being made has no record yet, and one in use is owned.
    for record in temporary.glob(f"{PREFIX}*/stack.json"):
        try:
            if record.stat().st_uid != os.geteuid():
                continue
            with persistent_dir(record.parent) as directory:
                directory.end_leftovers()
        except (StackError, OSError):
            continue
        shutil.rmtree(record.parent, ignore_errors=True)
