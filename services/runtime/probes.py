"""Probes: whether a process is alive and whether it is ready, for an orchestrator that restarts and routes by that.

Served beside the metrics of a process. Alive says nothing of Redis or PostgreSQL: to restart a process mends neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from services.runtime.heartbeat import HEARTBEAT_TTL_S

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LIVE_PATH: Final = "/livez"
READY_PATH: Final = "/readyz"
METRICS_PATHS: Final = ("/", "/metrics")


class Probes:
    """The liveness and readiness of this process.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turning: list[Callable[[], bool]] = []
        self._beat_at: float | None = None

    def watch(self, turning: Iterable[Callable[[], bool]]) -> None:
        """Take the process for alive only while all of these hold: that each of its work loops turns."""
        self._turning = list(turning)

    def beat(self) -> None:
        """Note that Redis just took a heartbeat, which is sent while every part of the process works."""
        self._beat_at = self._clock()

    def live(self) -> bool:
        """Whether the work loops turn; true of a process that is starting, which may wait or migrate for minutes."""
        return all(check() for check in self._turning)

    def ready(self) -> bool:
        """Whether the process works: its last heartbeat has not expired."""
        return self._beat_at is not None and self._clock() - self._beat_at < HEARTBEAT_TTL_S


def with_probes(application: WSGIApplication, probes: Probes) -> WSGIApplication:
    """The metrics' application, with `/livez` and `/readyz` beside it: 200 or 503.

    Any other path is 404: the application shows metrics on each, and a probe of `/healthz` would never fail.
    """
    paths = {LIVE_PATH: probes.live, READY_PATH: probes.ready}

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in METRICS_PATHS:
            return application(environ, start_response)
        probe = paths.get(path)
        status = HTTPStatus.NOT_FOUND
        if probe:
            status = HTTPStatus.OK if probe() else HTTPStatus.SERVICE_UNAVAILABLE
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain")])
        return [f"{status.phrase}\n".encode()]

    return serve
