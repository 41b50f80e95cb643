"""The command `ltm`."""

from __future__ import annotations

import os
import signal

__all__ = ["main"]

#: As a shell reports a program that Ctrl-C has ended.
EXIT_INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Run the command line. Ctrl-C ends it without a traceback, also while its modules are being loaded."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    # Here: loading them takes half a second.
    from services.cli.app import main as run  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
