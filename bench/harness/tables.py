"""Output of the benchmarks: progress bars on stderr, tables on stdout, figures as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def progress_bar() -> Progress:
    """A progress bar on stderr, removed when it ends."""
    return Progress(console=Console(stderr=True), transient=True)


def track(items: Sequence[Any], label: str) -> Iterator[Any]:
    """The items, one by one, with a progress bar on stderr."""
    with progress_bar() as progress:
        yield from progress.track(items, description=label)


def show(title: str, rows: Mapping[str, Mapping[str, float]], digits: int = 3) -> None:
    """Print a table of figures by row and column on stdout."""
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for row, figures in rows.items():
        table.add_row(row, *(f"{figures[name]:.{digits}f}" if name in figures else "" for name in names))
    Console(width=max(100, 14 * (len(names) + 1)) if not sys.stdout.isatty() else None).print(table)


def write_json(path: Path | None, figures: Any) -> None:
    """Write the figures to the file that `--json` names; nothing without one."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")
