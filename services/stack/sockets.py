"""TCP ports and paths of Unix sockets for the embedded servers."""

from __future__ import annotations

import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from services.runtime.errors import PortTaken

LOOPBACK = "127.0.0.1"

# The size of sun_path, less the NUL that ends it.
MAX_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
POSTGRES_SOCKET = ".s.PGSQL.5432"


def free_port() -> int:
    """A TCP port on the loopback that is not in use."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def check_port(port: int, option: str) -> int:
    """The port, if it can be listened on.

    Args:
        option: the command-line option that chose it, for the error.

    Raises:
        PortTaken: it is in use.
    """
    with socket.socket() as probe:
        # As the servers do: connections of an earlier run in TIME_WAIT do not make the port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise PortTaken(
                f"port {port} on {LOOPBACK} cannot be used ({error.strerror}); give another with {option}"
            ) from None
    return port


def make_socket_directory(preferred: Path) -> Path:
    """`preferred`, or a new private directory with a short path where the path of a socket in it would be too long."""
    if len(bytes(preferred / POSTGRES_SOCKET)) <= MAX_SOCKET_PATH_BYTES:
        return preferred
    return Path(tempfile.mkdtemp(prefix="ltm-"))


def remove_socket_directory(directory: Path) -> None:
    """Remove a directory of sockets, unless it holds anything else."""
    with suppress(OSError):
        for left in directory.glob(".s.PGSQL.*"):
            left.unlink()
        directory.rmdir()
