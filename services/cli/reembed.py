"""`ltm reembed`: replace the stored vectors after a change of the embedder, while the stack runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir
from services.cli.output import Output
from services.cli.table_run import Terminal, Yes, size, table_run

if TYPE_CHECKING:
    from services.long_term_memory.reembedding import Costs, Progress


class ReembedTerminal(Terminal):
    """The operator of `ltm reembed`."""

    def accepts(self, costs: Costs) -> bool:
        """Print what it costs, and ask."""
        done = f", of which {costs.done:,} are done" if costs.done else ""
        self._output.line(
            f"{costs.total:,} memories{done}; about {duration(costs.seconds)} at {costs.rate:,.0f} a second, and about"
            f" {size(costs.needed_bytes)} of disk{self._free()} for a second table; the first one's"
            f" {size(costs.table_bytes)} are free again at the end."
        )
        self._output.line("Searches go on with the old vectors meanwhile. Ctrl-C stops it, and it can be resumed.")
        return self._agrees("Begin?")

    def progressed(self, progress: Progress) -> None:
        """Print how far it is, if it is time to."""
        left = f"about {duration(progress.seconds_left)} left"
        self._print_progress(f"  {progress.done:,} of {progress.total:,}; {left}")

    def indexing(self) -> None:
        """Print that this takes a while."""
        self._output.line("  all are embedded; making the indexes")

    def switches(self) -> bool:
        """Ask whether to switch."""
        if self._asks:
            self._output.line(
                "Ready to switch. Workers that run with the old embedder end then: be ready to start them with the new"
                " settings."
            )
        return self._agrees("Switch now?")


def duration(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5_400 else f"{seconds / 3_600:.1f} hours"


def reembed_command(yes: Yes = False, data_dir: DataDir = DEFAULT_DATA_DIRECTORY) -> None:
    """Replace the vectors of all memories with those of the configured embedder, after it was changed.

    Run it with the new settings, while the stack runs with the old ones or is stopped. A run that was ended is resumed.
    """
    # Here: the other commands do without Mem0, which takes 60 MB of memory.
    from services.long_term_memory.reembedding import reembed  # noqa: PLC0415

    output = Output()
    with table_run(data_dir, yes=yes) as run:
        number, embedder = reembed(run.settings, ReembedTerminal(output, run))
    if number is None:
        output.line(f"The memories are embedded by {embedder} already.")
        return
    output.line(f"{number:,} memories are embedded by {embedder}.")
    if run.running or run.directory is None:
        output.line("Workers with the old embedder end now: start the stack with the new settings.")
