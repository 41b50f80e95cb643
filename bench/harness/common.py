"""What the benchmarks share: a database of their own, progress bars, tables and JSON."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.long_term_memory.postgres.pool import reachable
from services.long_term_memory.retrieval.ranking import Weights
from services.runtime.errors import StackError
from services.stack.embedded_postgres import postgres_spec, postgres_url

#: The whole ranking, and three with parts of it only: what one gains by each.
FULL = Weights()
BOTH = replace(
    FULL,
    meaning_kernel=(0.0, 0.0),
    words_kernel=(0.0, 0.0),
    follow_up_boost=0.0,
    session_words=0.0,
    session_meaning=0.0,
    other_speaker=0.0,
    from_ai=0.0,
    ends_asking=0.0,
    newest=0.0,
    only_asks=0.0,
    length=0.0,
)
COLUMNS: dict[str, Weights] = {
    "semantic": replace(BOTH, words=0.0),
    "words": replace(BOTH, meaning=0.0),
    "both": BOTH,
    "full": FULL,
}


@contextmanager
def scratch_database() -> Iterator[str]:
    """The URL of an embedded PostgreSQL that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="keepsake-bench-") as name:
        home, sockets = Path(name) / "postgres", Path(name) / "s"
        spec = postgres_spec(home, sockets, None, ephemeral=True)
        with (Path(name) / "log").open("w") as log:
            server = subprocess.Popen(spec.argv, stdout=log, stderr=log)
        url = postgres_url(sockets, None)
        try:
            deadline = time.monotonic() + 60
            while not reachable(url):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise StackError((Path(name) / "log").read_text())
                time.sleep(0.1)
            yield url
        finally:
            server.send_signal(2)  # SIGINT: PostgreSQL's fast shutdown
            server.wait(timeout=30)


def track(items: Sequence[Any], label: str) -> Iterator[Any]:
    """The items, with a progress bar on stderr."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, description=label)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What the call returns, and the milliseconds it took."""
    begin = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - begin) * 1000


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def mean(values: Sequence[float]) -> float:
    """Their mean; NaN of none."""
    return statistics.fmean(values) if values else float("nan")


def show(title: str, rows: Mapping[str, Mapping[str, float]], digits: int = 3) -> None:
    """Print figures by row and column, on stdout."""
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for row, figures in rows.items():
        table.add_row(row, *(f"{figures[name]:.{digits}f}" if name in figures else "" for name in names))
    Console(width=max(100, 14 * (len(names) + 1)) if not sys.stdout.isatty() else None).print(table)


def write_json(path: Path | None, figures: Any) -> None:
    """Write the figures where `--json` says, if it says."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")
