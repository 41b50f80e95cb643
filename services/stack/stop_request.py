"""StopRequest: how `ltm up` is told to stop."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """A request to stop this process: Ctrl-C, SIGTERM, or a closed terminal."""

    def __init__(self) -> None:
        self.made = False

    def listen(self) -> None:
        """Install the signal handlers; to be called in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._make)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._make)

    def _make(self, _: int, __: FrameType | None) -> None:
        # A flag that is polled: releasing a lock within a signal handler can deadlock.
        self.made = True
