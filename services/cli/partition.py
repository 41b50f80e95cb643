"""`ltm partition`: give the memories of a database another number of partitions, while the stack runs."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir
from services.cli.output import Output
from services.cli.reembed import REPORT_INTERVAL_S, size
from services.long_term_memory.repartitioning import abandon, partition
from services.runtime.logging import configure_logging
from services.runtime.settings import load_settings
from services.stack.servers import servers

Partitions = Annotated[
    int | None, typer.Option(min=0, max=256, help="How many; 0 for one table. [default: LTM_PARTITIONS]")
]
Yes = Annotated[bool, typer.Option("--yes", help="Begin without asking; so it is without a terminal.")]
Abandon = Annotated[bool, typer.Option("--abandon", help="Remove what a run has copied that was ended.")]


class Terminal:
    """The operator at a terminal: prints what it costs, asks, and prints every ten seconds how far the run is.

    Args:
        asks: whether to ask.
        directory: where the database is, if that is known.
    """

    def __init__(self, output: Output, *, asks: bool, directory: Path | None) -> None:
        self._output = output
        self._asks = asks
        self._directory = directory
        self._printed_at = time.monotonic()

    def accepts(self, memories: int, table_bytes: int) -> bool:
        """Print what it costs, and ask."""
        free = f" ({size(shutil.disk_usage(self._directory).free)} are free)" if self._directory else ""
        self._output.line(
            f"{memories:,} memories; about {size(table_bytes)} of disk{free} for a second table, until the first one is"
            " dropped. Searches and writers go on meanwhile. Ctrl-C stops it, and it can be resumed."
        )
        return not self._asks or typer.confirm("Begin?", default=True)

    def progressed(self, done: int, total: int) -> None:
        """Print how far it is, if it is time to."""
        now = time.monotonic()
        if now - self._printed_at >= REPORT_INTERVAL_S:
            self._printed_at = now
            self._output.line(f"  {done:,} of {total:,}")

    def indexing(self) -> None:
        """Print that this takes a while."""
        self._output.line("  all are copied; making the indexes")

    def waiting(self) -> None:
        """Print what it waits for."""
        self._output.line("  waiting: something else uses the table, such as `ltm backup`")


def partition_command(
    partitions: Partitions = None,
    yes: Yes = False,
    abandoned: Abandon = False,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Keep the memories in another number of partitions by user, as a database of an earlier release has none.

    The stack may run meanwhile. A run that was ended is resumed.
    """
    configure_logging(load_settings(), "ltm")
    output = Output()
    embedded = not os.environ.get("DATABASE_URL")
    with servers(data_dir, os.environ, "database_url") as (settings, _):
        if abandoned:
            abandon(settings)
            output.line("Nothing is left of it.")
            return
        if hasattr(os, "nice"):
            os.nice(settings.ltm_index_nice)  # as the indexer: searches come first
        wanted = settings.ltm_partitions if partitions is None else partitions
        terminal = Terminal(output, asks=sys.stdin.isatty() and not yes, directory=data_dir if embedded else None)
        number = partition(settings, wanted, terminal)
    table = f"{wanted} partitions" if wanted > 1 else "one table"
    if number is None:
        output.line(f"The memories are in {table} already.")
    else:
        output.line(f"{number:,} memories are in {table} now.")
