"""Several hosts: network namespaces, of which some are cut off, killed, or have a clock that is off."""

from __future__ import annotations

import pytest

from bench.harness.hosts import libfaketime
from bench.resilience.fault_schedule import Fault
from bench.resilience.hosts import run
from tests.network_namespaces import unavailable

pytestmark = [
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
    pytest.mark.skipif(libfaketime() is None, reason="libfaketime is not installed: run .ci/install-libfaketime"),
]
MESSAGES = 100
SECONDS = 40.0


def promises(figures: dict[str, float]) -> dict[str, float]:
    """The figures that break a promise of docs/reliability.md unless they are 0."""
    return {name.strip(): value for name, value in figures.items() if name.isupper() and value}


def test_hosts_that_are_cut_off_or_killed_cost_nothing() -> None:
    """Given a worker's host cut off, another one cut off from the database, and the adapters' host killed, I expect
    every message indexed once, and every request answered once, or its loss reported."""
    faults = [
        Fault(3.0, "cut off", "work1", 8.0),
        Fault(14.0, "cut off from postgres", "work2", 8.0),
        Fault(26.0, "kill host", "adapters", 1.0),
    ]

    figures = run(1, MESSAGES, SECONDS, None, faults)["figures"]

    assert promises(figures) == {}
    assert figures["still pending"] == 0
    assert figures["  answered"] > 0
    assert figures["  answered twice"] == 0


def test_clocks_that_are_off_cost_nothing() -> None:
    """Given hosts of workers whose clocks are 30 s off, one ahead and then one behind, I expect what is expected of one
    clock: no search expires, and no message of a worker that lives runs twice."""
    faults = [Fault(3.0, "clock ahead", "work1", 8.0), Fault(22.0, "clock behind", "work2", 8.0)]

    figures = run(2, MESSAGES, SECONDS, None, faults)["figures"]

    assert promises(figures) == {}
    assert figures["still pending"] == 0
    assert figures["  expired"] == 0
