"""A run of `ltm reembed` or `ltm partition`, which fills a second table while the stack works: what both share."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from services.cli.output import Output
from services.runtime.logging import configure_logging
from services.runtime.settings import Settings, load_settings
from services.stack.servers import servers

REPORT_INTERVAL_S = 10.0

Yes = Annotated[bool, typer.Option("--yes", help="Begin, and switch, without asking; so it is without a terminal.")]


class TableRun(NamedTuple):
    """What a run is given.

    Args:
        asks: whether to ask the operator.
        directory: where the database is, if that is known.
        running: whether the stack of the data directory runs.
    """

    settings: Settings
    asks: bool
    directory: Path | None
    running: bool


@contextmanager
def table_run(data_dir: Path, *, yes: bool) -> Iterator[TableRun]:
    """The configured database, at the CPU priority of the indexer: searches come first."""
    configure_logging(load_settings(), "ltm")
    directory = None if os.environ.get("DATABASE_URL") else data_dir
    with servers(data_dir, os.environ, "database_url") as (settings, running):
        if hasattr(os, "nice"):
            os.nice(settings.ltm_index_nice)
        yield TableRun(settings, sys.stdin.isatty() and not yes, directory, running)


class Terminal:
    """The operator at a terminal: asks, and prints every ten seconds how far the run is."""

    def __init__(self, output: Output, run: TableRun) -> None:
        self._output = output
        self._asks = run.asks
        self._directory = run.directory
        self._printed_at = time.monotonic()

    def waiting(self) -> None:
        """Print what it waits for."""
        self._output.line("  waiting: something else uses the table, such as `ltm backup`")

    def _free(self) -> str:
        """How much of the disk is free, in parentheses, if that is known."""
        return f" ({size(shutil.disk_usage(self._directory).free)} are free)" if self._directory else ""

    def _agrees(self, question: str) -> bool:
        """Whether the operator agrees, or is not asked."""
        agreed = not self._asks or typer.confirm(question, default=True)
        self._printed_at = time.monotonic()
        return agreed

    def _print_progress(self, line: str) -> None:
        """Print how far the run is, if it is time to."""
        now = time.monotonic()
        if now - self._printed_at >= REPORT_INTERVAL_S:
            self._printed_at = now
            self._output.line(line)


def size(number: float) -> str:
    """A number of bytes in words."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{max(number / 1e6, 0.1):,.1f} MB"
