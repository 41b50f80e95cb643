"""Metrics of a process: what it observes of its work; nothing where it serves no metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


class Metrics:
    """The metrics of a process that serves none: each method does nothing.

    `services.runtime.prometheus.PrometheusMetrics` keeps them.
    """

    enabled = False

    def observe(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Observe a message, request or reply that came to an end, by the fields of its trace record."""

    def repeated(self) -> None:
        """Observe a response that was published again."""

    def extracted(self, outcome: str, tokens: int) -> None:
        """Observe a call of the extractor's LLM: `stored`, `failed` or `discarded`."""

    def outage(self, dependency: str) -> None:
        """Observe that a server, which answered before, does not."""

    def pool(self, stats: Mapping[str, int]) -> None:
        """Observe the pool of connections to PostgreSQL, by what psycopg's `get_stats` says since its start."""

    def replica(self, lag_bytes: int | None) -> None:
        """Observe how far the replica is behind; None where it cannot be read."""

    def extraction(self, state: str, *, messages: int, owners: int, oldest_s: float, set_aside: int) -> None:
        """Observe what waits for extraction, and whether it works."""

    def follow(self, outcomes: Mapping[str, int]) -> None:
        """Show the messages of a service by their outcome, as its own counts say at each scrape."""

    def watch(self, turning: Iterable[Callable[[], bool]]) -> None:
        """Have `/livez` say whether all of these hold: that each work loop turns."""

    def beat(self) -> None:
        """Observe a heartbeat that Redis took, of which `/readyz` tells."""

    def http(self, door: str, status: int, seconds: float) -> None:
        """Observe an HTTP request that was answered."""


#: Of a process without LTM_METRICS_PORT.
NO_METRICS = Metrics()
