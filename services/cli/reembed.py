"""`ltm reembed`: replace the stored vectors after a change of the embedder, while the stack runs."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir
from services.cli.output import Output
from services.runtime.logging import configure_logging
from services.runtime.settings import load_settings
from services.stack.servers import servers

if TYPE_CHECKING:
    from services.long_term_memory.reembedding import Costs, Progress

REPORT_INTERVAL_S = 10.0

Yes = Annotated[bool, typer.Option("--yes", help="Begin, and switch, without asking; so it is without a terminal.")]


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
        self._printed_at = 0.0

    def accepts(self, costs: Costs) -> bool:
        """Print what it costs, and ask."""
        done = f", of which {costs.done:,} are done" if costs.done else ""
        free = f" ({size(shutil.disk_usage(self._directory).free)} are free)" if self._directory else ""
        self._output.line(
            f"{costs.total:,} memories{done}; about {duration(costs.seconds)} at {costs.rate:,.0f} a second, and about"
            f" {size(costs.needed_bytes)} of disk{free} for a second table; the first one's {size(costs.table_bytes)}"
            " are free again at the end."
        )
        self._output.line("Searches go on with the old vectors meanwhile. Ctrl-C stops it, and it can be resumed.")
        self._printed_at = time.monotonic()
        return not self._asks or typer.confirm("Begin?", default=True)

    def progressed(self, progress: Progress) -> None:
        """Print how far it is, if it is time to."""
        now = time.monotonic()
        if now - self._printed_at >= REPORT_INTERVAL_S:
            self._printed_at = now
            left = f"about {duration(progress.seconds_left)} left"
            self._output.line(f"  {progress.done:,} of {progress.total:,}; {left}")

    def indexing(self) -> None:
        """Print that this takes a while."""
        self._output.line("  all are embedded; making the indexes")

    def switches(self) -> bool:
        """Ask whether to switch."""
        if not self._asks:
            return True
        self._output.line(
            "Ready to switch. Workers that run with the old embedder end then: be ready to start them with the new"
            " settings."
        )
        return typer.confirm("Switch now?", default=True)

    def waiting(self) -> None:
        """Print what it waits for."""
        self._output.line("  waiting: something else reads the table, such as `ltm backup`")


def duration(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5_400 else f"{seconds / 3_600:.1f} hours"


def size(number: float) -> str:
    """A number of bytes in words."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{max(number / 1e6, 0.1):,.1f} MB"


def reembed_command(yes: Yes = False, data_dir: DataDir = DEFAULT_DATA_DIRECTORY) -> None:
    """Replace the vectors of all memories with those of the configured embedder, after it was changed.

    Run it with the new settings, while the stack runs with the old ones or is stopped. A run that was ended is resumed.
    """
    # Here: the other commands do without Mem0, which takes 60 MB of memory.
    from services.long_term_memory.reembedding import reembed  # noqa: PLC0415

    configure_logging(load_settings(), "ltm")
    output = Output()
    embedded = not os.environ.get("DATABASE_URL")
    with servers(data_dir, os.environ, "database_url") as (settings, running):
        if hasattr(os, "nice"):
            os.nice(settings.ltm_index_nice)  # as the indexer: searches come first
        terminal = Terminal(output, asks=sys.stdin.isatty() and not yes, directory=data_dir if embedded else None)
        number, embedder = reembed(settings, terminal)
    if number is None:
        output.line(f"The memories are embedded by {embedder} already.")
        return
    output.line(f"{number:,} memories are embedded by {embedder}.")
    if running or not embedded:
        output.line("Workers with the old embedder end now: start the stack with the new settings.")
