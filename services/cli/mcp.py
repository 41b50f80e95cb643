"""`ltm mcp`: the memory of one user as an MCP server on stdin and stdout, for a program that starts it."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated

import typer
from keepsake_client.fields import Id
from pydantic import TypeAdapter, ValidationError

from services.cli.options import DEFAULT_DATA_DIRECTORY, Agent, DataDir, found_stack, rights_of
from services.gateway.access import Caller, Right
from services.gateway.keys import first_problem
from services.runtime.logging import configure_logging

#: The rights that the tools need.
RIGHTS = (Right.SEARCH, Right.READ, Right.WRITE, Right.DELETE)


def mcp(
    user: Annotated[str, typer.Option(metavar="ID", help="The user whose memory it is. The model cannot change it.")],
    agent: Agent = None,
    may: Annotated[
        str, typer.Option(metavar="RIGHTS", help="What the model may do; with commas between them.")
    ] = ",".join(RIGHTS),
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Serve the memory of one user to a model, by MCP on stdin and stdout; the log is on stderr."""
    # Imported here, because no other command needs the SDK, which costs each half a second.
    from services.gateway.mcp_server.asker import Asker  # noqa: PLC0415
    from services.gateway.mcp_server.stdio import serve_stdio  # noqa: PLC0415

    character = None if agent is None else _checked("--agent", agent)
    asker = Asker.of(Caller("stdio", frozenset(rights_of(may, RIGHTS))), _checked("--user", user), character)
    settings = found_stack(data_dir).settings
    configure_logging(settings, "mcp")
    # asyncio's own handler would wait for the thread that reads stdin, which no cancellation ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asyncio.run(serve_stdio(settings, asker))


def _checked(option: str, identifier: str) -> str:
    """An id that the wire takes: otherwise each call would fail, and not the start."""
    try:
        return TypeAdapter[str](Id).validate_python(identifier)
    except ValidationError as error:
        raise typer.BadParameter(first_problem(error), param_hint=option) from None
