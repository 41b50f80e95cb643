"""`ltm partition`: give the memories of a database another number of partitions, while the stack runs."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir
from services.cli.output import Output
from services.cli.table_run import Terminal, Yes, size, table_run
from services.long_term_memory.repartitioning import abandon, partition

Partitions = Annotated[
    int | None, typer.Option(min=0, max=256, help="How many; 0 for one table. [default: LTM_PARTITIONS]")
]
Abandon = Annotated[bool, typer.Option("--abandon", help="Remove what a run has copied that was ended.")]


class PartitionTerminal(Terminal):
    """The operator of `ltm partition`."""

    def accepts(self, memories: int, table_bytes: int) -> bool:
        """Print what it costs, and ask."""
        self._output.line(
            f"{memories:,} memories; about {size(table_bytes)} of disk{self._free()} for a second table, until the"
            " first one is dropped. Searches and writers go on meanwhile. Ctrl-C stops it, and it can be resumed."
        )
        return self._agrees("Begin?")

    def progressed(self, done: int, total: int) -> None:
        """Print how far it is, if it is time to."""
        self._print_progress(f"  {done:,} of {total:,}")

    def indexing(self) -> None:
        """Print that this takes a while."""
        self._output.line("  all are copied; making the indexes")


def partition_command(
    partitions: Partitions = None,
    yes: Yes = False,
    abandoned: Abandon = False,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Keep the memories in another number of partitions by user, as a database of an earlier release has none.

    The stack may run meanwhile. A run that was ended is resumed.
    """
    output = Output()
    with table_run(data_dir, yes=yes) as run:
        terminal = PartitionTerminal(output, run)
        if abandoned:
            abandon(run.settings, terminal.waiting)
            output.line("Nothing is left of it.")
            return
        wanted = run.settings.ltm_partitions if partitions is None else partitions
        number = partition(run.settings, wanted, terminal)
    table = f"{wanted} partitions" if wanted > 1 else "one table"
    if number is None:
        output.line(f"The memories are in {table} already.")
    else:
        output.line(f"{number:,} memories are in {table} now.")
