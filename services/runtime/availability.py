"""A server that goes and comes back, told once each way."""

from __future__ import annotations

import threading

import structlog

log = structlog.get_logger()


class Availability:
    """Whether a server is away, as far as this process knows; each change of it is logged once.

    Args:
        server: its name, for the log.
        up: whether it is taken to be there before anybody has asked; otherwise nothing is lost before it was found.
    """

    def __init__(self, server: str, *, up: bool = True) -> None:
        self._server = server
        self._up: bool | None = True if up else None
        self._lock = threading.Lock()

    def down(self, reason: object) -> None:
        """It failed just now."""
        with self._lock:
            was_up, self._up = self._up, False if self._up is not None else None
        if was_up:
            log.warning("dependency_down", server=self._server, reason=str(reason))

    def up(self) -> None:
        """It answered just now."""
        if self._up:
            return
        with self._lock:
            was_up, self._up = self._up, True
        if was_up is False:
            log.info("dependency_up", server=self._server)
