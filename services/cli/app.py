"""The application `ltm`, assembled from its commands."""

from __future__ import annotations

import errno
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from keepsake_client.errors import KeepsakeError

from services.cli.ask import add, context, profile, search
from services.cli.backfill import backfill
from services.cli.backup import backup, restore
from services.cli.chat import chat
from services.cli.config import config
from services.cli.dead_letters import app as dead
from services.cli.demo import demo
from services.cli.export import export
from services.cli.extract import app as extract
from services.cli.forget import forget
from services.cli.importing import import_command
from services.cli.key import app as key
from services.cli.lasting_output import discard_stdout
from services.cli.logs import logs
from services.cli.mcp import mcp
from services.cli.memories import correct, memories, memory
from services.cli.output import print_error, report
from services.cli.partition import partition_command
from services.cli.plan import plan_command
from services.cli.reembed import reembed_command
from services.cli.status import status
from services.cli.trace import trace
from services.cli.up import up
from services.cli.users import users
from services.runtime.settings import renamed_settings, unknown_settings

#: Of a full disk or a broken one, as when stdout is a file there.
OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def build_app() -> typer.Typer:
    """The application with all its commands."""
    # Typer's tracebacks show local variables, and some of them contain passwords.
    app = typer.Typer(name="ltm", no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_options)
    about_users = (chat, search, context, add, profile, users, memories, memory, correct, forget, export)
    for command in (up, status, demo, *about_users, trace, logs, config, mcp, backfill, backup, restore):
        app.command()(command)
    app.command("import")(import_command)
    app.command("reembed")(reembed_command)
    app.command("plan")(plan_command)
    app.command("partition")(partition_command)
    app.add_typer(dead)
    app.add_typer(extract)
    app.add_typer(key)
    return app


def main() -> None:
    """Run the command line. A KeepsakeError is one line on stderr, see `report`."""
    if "_LTM_COMPLETE" not in os.environ:  # the shell would show the lines among its completions
        _warn_of_settings()
    try:
        build_app()()
    except KeepsakeError as error:
        sys.exit(report(error))
    except OSError as error:
        if error.errno not in OUTPUT_ERRORS:
            raise
        discard_stdout()
        print_error(f"the output cannot be written ({error.strerror})")
        sys.exit(1)


def _warn_of_settings() -> None:
    for old, new in renamed_settings():
        print_error(f"{old} is now called {new}; the old name is read while the new one is not set")
    for variable, nearest in unknown_settings():
        hint = f"; did you mean {nearest}?" if nearest else ""
        print_error(f"{variable} is no setting of Keepsake{hint}")


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
