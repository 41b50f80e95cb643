"""The data directory of a stack: its servers' data, the lock of its `ltm up`, and the record of what runs."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, Field, ValidationError

from services.runtime.errors import StackError
from services.runtime.private_file import write_private
from services.stack import process_tree
from services.stack.process_tree import ProcessId
from services.stack.processes import SERVERS, stop_signal
from services.stack.sockets import remove_socket_directory

LEFTOVER_GRACE_S = 5.0


class StackRecord(BaseModel):
    """The content of `stack.json`: a running stack, for the other commands and for the next `ltm up`.

    Args:
        redis_url, database_url: the addresses of its servers.
        processes: the started ones, by name.
        without: the names of those left out.
        settings: those of `locate.SHARED_SETTINGS` that are set, by field name.
        socket_directory: a directory outside the data directory, to be removed with the stack.
    """

    redis_url: str
    database_url: str
    processes: dict[str, ProcessId] = Field(default_factory=dict)
    without: list[str] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    socket_directory: str | None = None


class DataDirectory:
    """One directory, used by at most one `ltm up` at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.valkey = self.path / "valkey"
        self.postgres = self.path / "postgres"
        self.keys = self.path / "keys.json"
        self._record = self.path / "stack.json"

    def create(self) -> None:
        """Create the directory and its subdirectories where they are missing.

        Raises:
            StackError: it cannot be created or written to.
        """
        try:
            for directory in (self.path, self.logs, self.valkey):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StackError(f"cannot use the data directory {self.path}: {error}") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory within the block; the kernel releases the lock however this process ends.

        Raises:
            StackError: another `ltm up` uses it.
        """
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                owner = file.read(20).strip() or "unknown"
                raise StackError(
                    f"{self.path} is in use by another `ltm up` (pid {owner}); stop it, or choose another --data-dir"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def in_use(self) -> bool:
        """Whether an `ltm up`, or a command that has started the servers for itself, has it locked."""
        try:
            with (self.path / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def read(self) -> StackRecord | None:
        """The record of the stack that runs here, if one does.

        Raises:
            StackError: there is a record that cannot be read.
        """
        try:
            return StackRecord.model_validate_json(self._record.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StackError(f"cannot read {self._record}: {error.strerror}") from None
        except ValidationError:
            return None  # of another version, or edited: as good as none

    def write(self, record: StackRecord) -> None:
        """Record what runs here."""
        write_private(self._record, json.dumps(record.model_dump(), indent=2) + "\n")

    def forget(self) -> None:
        """Remove the record: nothing runs here."""
        self._record.unlink(missing_ok=True)

    def end_leftovers(self) -> list[str]:
        """Stop what a killed `ltm up` left running, the servers last; return the names of those found running."""
        record = self.read()
        if record is None:
            return []
        found: list[str] = []
        for servers in (False, True):
            left: list[tuple[psutil.Process, signal.Signals]] = []
            for name, identity in record.processes.items():
                if (name in SERVERS) == servers and (processes := process_tree.remains(identity, name)):
                    left += [(process, stop_signal(name)) for process in processes]
                    found.append(name)
            process_tree.end(left, LEFTOVER_GRACE_S)
        if record.socket_directory:
            remove_socket_directory(Path(record.socket_directory))
        self.forget()
        return found
