"""The addresses of a stack's servers: those of the environment, or of embedded ones."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.runtime.errors import PortTaken, StackError
from services.runtime.redis import connect
from services.runtime.settings import Settings, load_settings
from services.stack.data_directory import DataDirectory
from services.stack.embedded_postgres import postgres_spec, postgres_url
from services.stack.embedded_valkey import DEFAULT_PORT, valkey_spec, valkey_url
from services.stack.processes import GATEWAY, POSTGRES, REDIS, ProcessSpec
from services.stack.readiness import stack_serves
from services.stack.sockets import LOOPBACK, check_port, free_port, make_socket_directory, remove_socket_directory

#: Of the look at what holds a port.
LOOK_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class LaunchOptions:
    """The options of `ltm up`.

    Args:
        redis_port, gateway_port: 0 for a free one; None for the default one or, where the stack is ephemeral, a free
            one.
    """

    data_directory: Path
    ephemeral: bool = False
    without: tuple[str, ...] = ()
    ready_file: Path | None = None
    redis_port: int | None = None
    postgres_port: int | None = None
    gateway_port: int | None = None


@dataclass(frozen=True)
class Addresses:
    """The addresses of a stack's servers.

    Args:
        embedded: those that the stack starts itself.
        socket_directory: a directory made for their sockets outside the data directory.
        gateway_port: None where the gateway is left out.
    """

    redis_url: str
    database_url: str
    embedded: list[ProcessSpec]
    socket_directory: Path | None
    gateway_port: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, by field name, that they are for the processes of the stack."""
        urls = {"redis_url": self.redis_url, "database_url": self.database_url}
        return urls | ({"ltm_gateway_port": self.gateway_port} if self.gateway_port else {})


def choose_addresses(
    options: LaunchOptions, environment: Mapping[str, str], directory: DataDirectory, at_exit: ExitStack
) -> Addresses:
    """The addresses that the environment names, and embedded servers for the others.

    Raises:
        StackError: a port is taken, an option contradicts the environment, or there is no embedded server here.
    """
    embedded: list[ProcessSpec] = []
    socket_directory = None
    # An empty variable counts as unset, as in the settings.
    if redis_url := environment.get("REDIS_URL", ""):
        _refuse_port(options.redis_port, "--redis-port", "REDIS_URL")
    elif REDIS not in options.without:
        port = _redis_port(options)
        embedded.append(valkey_spec(directory.valkey, port, ephemeral=options.ephemeral))
        redis_url = valkey_url(port)
    if database_url := environment.get("DATABASE_URL", ""):
        _refuse_port(options.postgres_port, "--postgres-port", "DATABASE_URL")
    elif POSTGRES not in options.without:
        if options.postgres_port:
            check_port(options.postgres_port, "--postgres-port")
        sockets = make_socket_directory(directory.postgres)
        if sockets != directory.postgres:
            socket_directory = sockets
            at_exit.callback(remove_socket_directory, sockets)
        embedded.append(postgres_spec(directory.postgres, sockets, options.postgres_port, ephemeral=options.ephemeral))
        database_url = postgres_url(sockets, options.postgres_port)
    defaults = load_settings()
    return Addresses(
        redis_url or defaults.redis_url.get_secret_value(),
        database_url or defaults.database_url.get_secret_value(),
        embedded,
        socket_directory,
        None if GATEWAY in options.without else _gateway_port(options, defaults),
    )


def _redis_port(options: LaunchOptions) -> int:
    asked = options.redis_port
    port = (0 if options.ephemeral else DEFAULT_PORT) if asked is None else asked
    if not port:
        return free_port()
    try:
        return check_port(port, "--redis-port")
    except PortTaken as error:
        ours = stack_serves(connect(valkey_url(port), LOOK_TIMEOUT_S))
        holder = ". Another Keepsake answers there: stop it first, or leave it running and use it" if ours else ""
        raise PortTaken(f"{error}, or 0 for a free one{holder}") from None


def _gateway_port(options: LaunchOptions, settings: Settings) -> int:
    port = options.gateway_port
    if port is None:
        by_setting = "ltm_gateway_port" in settings.model_fields_set
        port = 0 if options.ephemeral and not by_setting else settings.ltm_gateway_port
    if not port:
        return free_port()
    try:
        return check_port(port, "--gateway-port", settings.ltm_gateway_host)
    except PortTaken as error:
        elsewhere = "" if settings.ltm_gateway_host == LOOPBACK else ", or correct LTM_GATEWAY_HOST"
        raise PortTaken(f"{error}, or 0 for a free one{elsewhere}, or start without it: --without gateway") from None


def _refuse_port(port: int | None, option: str, variable: str) -> None:
    if port is not None:
        raise StackError(f"{option} is for the embedded server, and {variable} says to use another: leave one out")
