"""Output of `ltm up`: the stack runs on when what it prints can no longer be written."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from rich.console import Console

from services.cli.output import Output


def discard_stdout() -> None:
    """Send what is still buffered, and what follows, nowhere: it would fail again when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Console(Console):
    """A console that reports a reader that has gone, where rich's own ends the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class LastingOutput(Output):
    """Prints lines until that fails, then says so once on stderr and prints no more."""

    def __init__(self) -> None:
        super().__init__()
        self._console = _Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._failed = False

    def line(self, text: str = "", style: str | None = None) -> None:
        """One line, never wrapped."""
        if self._failed:
            return
        try:
            super().line(text, style)
        except OSError as error:  # a full disk, a reader that has gone
            self._failed = True
            discard_stdout()
            with suppress(OSError):
                reason = os.strerror(error.errno or 0) if error.errno else "its reader has gone"
                print(f"ltm: the output cannot be written ({reason}); the stack runs on without it", file=sys.stderr)
