"""TCP ports and paths of Unix sockets for the embedded servers."""

from __future__ import annotations

import errno
import secrets
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from services.runtime.errors import PortTaken

LOOPBACK = "127.0.0.1"
#: Where free ports are taken: Linux takes those of outgoing connections from 32768 on, macOS from 49152 on, and one may
#: get the port that a process is about to listen on.
FREE_PORTS = range(20_000, 32_768)

# The size of sun_path, less the NUL that ends it.
MAX_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
POSTGRES_SOCKET = ".s.PGSQL.5432"


def free_port() -> int:
    """A TCP port on the loopback that is not in use, and that no outgoing connection will use."""
    while True:
        port = secrets.choice(FREE_PORTS)
        with suppress(OSError):
            _bind(LOOPBACK, port)
            return port


def check_port(port: int, option: str, host: str = LOOPBACK) -> int:
    """The port, if it can be listened on.

    Args:
        option: the command-line option that chose it, for the error.

    Raises:
        PortTaken: it is in use.
    """
    try:
        _bind(host, port)
    except OSError as error:
        raise PortTaken(
            f"port {port} on {host} cannot be used ({error.strerror}); give another with {option}"
        ) from None
    return port


def _bind(host: str, port: int) -> None:
    """Bind a socket and close it again."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError(errno.EINVAL, "it is no host name") from None
    # IPv4 first, as the gateway does: where `localhost` has both, clients try that.
    family, kind, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    with socket.socket(family, kind) as probe:
        # As the servers do: connections of an earlier run in TIME_WAIT do not make the port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


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
