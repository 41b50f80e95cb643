"""`ltm reembed`: replace the stored vectors after a change of the embedder."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir
from services.cli.output import Output
from services.runtime.logging import configure_logging
from services.runtime.settings import load_settings
from services.stack.servers import servers

if TYPE_CHECKING:
    from services.long_term_memory.reembedding import Progress

REPORT_INTERVAL_S = 10.0


class ProgressLines:
    """Prints how many memories there are before the first is stored, then every ten seconds how far the run is."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._printed_at: float | None = None

    def __call__(self, progress: Progress) -> None:
        """Print the progress, if it is time to."""
        now = time.monotonic()
        left = f"about {duration(progress.seconds_left)} left"
        if self._printed_at is None:
            done = f", of which {progress.done:,} are done" if progress.done else ""
            self._output.line(f"{progress.total:,} memories{done}; {left}. Ctrl-C stops it, and it can be resumed.")
        elif now - self._printed_at < REPORT_INTERVAL_S:
            return
        else:
            self._output.line(f"  {progress.done:,} of {progress.total:,}; {left}")
        self._printed_at = now


def duration(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5_400 else f"{seconds / 3_600:.1f} hours"


def reembed_command(data_dir: DataDir = DEFAULT_DATA_DIRECTORY) -> None:
    """Replace the vectors of all memories with those of the configured embedder, after it was changed.

    The workers must be stopped; `ltm up` starts with the new embedder afterwards. A run that was stopped is resumed.
    """
    # Here: the other commands do without Mem0, which takes 60 MB of memory.
    from services.long_term_memory.reembedding import reembed  # noqa: PLC0415

    configure_logging(load_settings(), "ltm")
    output = Output()
    with servers(data_dir, os.environ, "database_url") as (settings, _):
        number, embedder = reembed(settings, ProgressLines(output))
    output.line(f"{number:,} memories are embedded by {embedder}.")
