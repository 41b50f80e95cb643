"""The application `ltm`, assembled from its commands."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from keepsake_client.errors import InvalidMessage, KeepsakeError

from services.cli.ask import add, profile, search
from services.cli.backfill import backfill
from services.cli.chat import chat
from services.cli.config import config
from services.cli.dead_letters import app as dead
from services.cli.demo import demo
from services.cli.logs import logs
from services.cli.status import status
from services.cli.trace import trace
from services.cli.up import up
from services.runtime.errors import InvalidSetting
from services.runtime.settings import renamed_settings


def build_app() -> typer.Typer:
    """The application with all its commands."""
    # Typer's tracebacks show local variables, and some of them contain passwords.
    app = typer.Typer(name="ltm", no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_options)
    for command in (up, status, demo, chat, search, add, profile, trace, logs, config, backfill):
        app.command()(command)
    app.add_typer(dead)
    return app


def main() -> None:
    """Run the command line. A KeepsakeError is one line on stderr; exit 2 for a wrong setting, 1 for the others."""
    for old, new in renamed_settings() if "_LTM_COMPLETE" not in os.environ else ():
        print(f"ltm: {old} is now called {new}; the old name is read while the new one is not set", file=sys.stderr)
    try:
        build_app()()
    except KeepsakeError as error:
        print(f"ltm: {error.wire if isinstance(error, InvalidMessage) else error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InvalidSetting) else 1)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"keepsake-ltm {version('keepsake-ltm')}")
        raise typer.Exit


def _options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Keepsake: a long-term memory for Redis chat pipelines."""
