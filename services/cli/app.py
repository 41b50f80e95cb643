"""The commands of `ltm`, put together."""

from __future__ import annotations

import sys

import typer
from keepsake_client.errors import KeepsakeError

from services.cli.ask import add, profile, search
from services.cli.backfill import backfill
from services.cli.chat import chat
from services.cli.dead import app as dead
from services.cli.demo import demo
from services.cli.status import status
from services.cli.up import up
from services.runtime.errors import InvalidSetting
from services.runtime.settings import renamed_settings


def build_app() -> typer.Typer:
    """The application with all its commands."""
    # Pretty tracebacks show local variables, and some of those hold passwords.
    app = typer.Typer(
        name="ltm",
        help="Keepsake: a long-term memory for Redis chat pipelines.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for command in (up, status, demo, chat, search, add, profile, backfill):
        app.command()(command)
    app.add_typer(dead)
    return app


def main() -> None:
    """Run the command line. An error of ours is told in words: exit 2 for a wrong setting, 1 for all others."""
    for old, new in renamed_settings():
        print(f"ltm: {old} is now called {new}; the old name is read while the new one is not set", file=sys.stderr)
    try:
        build_app()()
    except KeepsakeError as error:
        print(f"ltm: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InvalidSetting) else 1)
