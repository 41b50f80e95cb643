"""The availability of a dependency (a server): each change is logged once, however many calls fail."""

from __future__ import annotations

import threading

import structlog

from services.runtime.metrics import NO_METRICS, Metrics

log = structlog.get_logger()


class Availability:
    """Availability of a dependency: up or down, as far as this process knows; thread-safe.

    Args:
        dependency: its name, for the log.
        up: True assumes it to be up until a call fails. False logs no outage before the first success: something else
            waits for the dependency at the start, and reports it.
        metrics: of this process.
        context: further fields of the log lines.
    """

    def __init__(self, dependency: str, *, up: bool = True, metrics: Metrics = NO_METRICS, **context: str) -> None:
        self._dependency = dependency
        self._metrics = metrics
        self._context = {"dependency": dependency, **context}
        self._up: bool | None = True if up else None
        self._lock = threading.Lock()

    @property
    def assumed_up(self) -> bool:
        """Whether no call has failed since the last success."""
        return self._up is not False

    def down(self, reason: object) -> None:
        """Note that a call just failed."""
        with self._lock:
            was_up, self._up = self._up, False if self._up is not None else None
        if was_up:
            self._metrics.outage(self._dependency)
            log.warning("dependency_down", **self._context, reason=str(reason))

    def up(self) -> None:
        """Note that a call just succeeded."""
        if self._up:
            return
        with self._lock:
            was_up, self._up = self._up, True
        if was_up is False:
            log.info("dependency_up", **self._context)
