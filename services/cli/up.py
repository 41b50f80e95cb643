"""`ltm up`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from keepsake_client.errors import KeepsakeError

from services.cli.demo import Demo
from services.cli.lasting_output import LastingOutput
from services.cli.options import DEFAULT_DATA_DIRECTORY
from services.cli.output import Output, report
from services.runtime.logging import configure_logging
from services.runtime.settings import GATEWAY_PORT, Settings, load_settings
from services.stack.addresses import LaunchOptions
from services.stack.embedded_valkey import DEFAULT_PORT
from services.stack.launch import Launch
from services.stack.processes import CHAT, GATEWAY, MEMORY, NAMES
from services.stack.stop_request import StopRequest


class DemoThread:
    """The demo in a thread of its own, so that the stack is supervised meanwhile.

    Args:
        ended: called once it has been played, or has failed.
    """

    def __init__(self, output: Output, stop: StopRequest, ended: Callable[[Settings], None]) -> None:
        self._output = output
        self._stop = stop
        self._ended = ended
        self._thread: threading.Thread | None = None
        self.failed = False

    def start(self, settings: Settings) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, args=(settings,), name="demo", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the demo has noticed that its stack has ended."""
        if self._thread:
            self._thread.join(timeout=1)

    def _run(self, settings: Settings) -> None:
        try:
            Demo(settings, self._output).run()
        except KeepsakeError as error:
            if not self._stop.made:
                self.failed = True
                self._output.line(f"The demo failed: {error}. The stack stays up.", "bold red")
        if not self._stop.made:
            self._output.line("Ctrl-C stops everything.", "dim")
            self._ended(settings)


def up(
    demo: Annotated[bool, typer.Option("--demo", help="Play the demo once everything answers.")] = False,
    data_dir: Annotated[Path, typer.Option(help="Where data and logs are kept.")] = DEFAULT_DATA_DIRECTORY,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Keep everything in a temporary directory, removed at exit.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Leave a process out; repeatable. One of {', '.join(NAMES)}."),
    ] = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(help="Written once everything answers: JSON with redis_url, database_url, gateway_url, pids."),
    ] = None,
    redis_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help=f"Port of the embedded Valkey; 0 is a free one, as with --ephemeral. Otherwise {DEFAULT_PORT}.",
        ),
    ] = None,
    postgres_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65_535,
            help="Let PostgreSQL listen on this port of 127.0.0.1, without a password, as Valkey does; "
            "otherwise it is reached through a private socket alone.",
        ),
    ] = None,
    gateway_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help="Port of the gateway (HTTP); 0 is a free one, as with --ephemeral. Otherwise LTM_GATEWAY_PORT, "
            f"{GATEWAY_PORT} where that is not set.",
        ),
    ] = None,
) -> None:
    """Start the whole stack and keep it running until Ctrl-C.

    Valkey and PostgreSQL are started too, unless REDIS_URL and DATABASE_URL name others.
    """
    configure_logging(load_settings(), "ltm")
    output, stop = LastingOutput(), StopRequest()
    stop.listen()

    def show_console(settings: Settings) -> None:
        if settings.console_url and GATEWAY not in options.without:
            output.line(f"Console: {settings.console_url}", "bold")

    demo_thread = DemoThread(output, stop, show_console)

    def ready(settings: Settings, directory: Path) -> None:
        if demo:
            demo_thread.start(settings)
        else:
            commands = hints(options, directory)
            output.line(f"Try {commands} in another terminal. Ctrl-C stops everything.", "dim")
            show_console(settings)

    options = LaunchOptions(
        data_dir, ephemeral, tuple(without or ()), ready_file, redis_port, postgres_port, gateway_port
    )
    Launch(options, os.environ, output.line, report, stop, ready).run()
    demo_thread.join()
    output.line("Everything has ended.", "dim")
    if demo_thread.failed:
        raise typer.Exit(1)


def hints(options: LaunchOptions, directory: Path) -> str:
    """Commands for another terminal, that work there as they are printed.

    Args:
        directory: the stack's data directory.
    """
    invoked = sys.argv[0]
    # As it was called, where the shell would not find it, or find another one.
    program = "ltm" if "/" not in invoked or shutil.which("ltm") == invoked else invoked
    default = directory == DEFAULT_DATA_DIRECTORY.absolute()
    where = "" if default else f" --data-dir {shlex.quote(str(directory))}"
    conversing = not {MEMORY, CHAT} & set(options.without)
    names = ("demo", "chat", "status") if conversing else ("status",)
    return ", ".join(f"`{program} {name}{where}`" for name in names)
