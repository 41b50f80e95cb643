"""What a worker process opens at boot, and that it does not start when it cannot."""

from __future__ import annotations

from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from keepsake_client.errors import Unavailable

from services.runtime.errors import EmbeddingDimensionMismatch
from services.runtime.settings import Settings
from tasks.middleware.resources import Resources, WorkerCannotStart


def booting(monkeypatch: pytest.MonkeyPatch, error: Exception) -> dramatiq.Worker:
    """A worker whose services cannot be opened, for a reason."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("tasks.middleware.resources.open_when_ready", fail)
    return dramatiq.Worker(StubBroker(middleware=[Resources(Settings(), "a-worker")]), worker_timeout=100)


@pytest.mark.parametrize(
    "error",
    [
        EmbeddingDimensionMismatch(8, 384),
        Unavailable("PostgreSQL does not answer"),
        PermissionError("no"),
        ImportError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_worker_that_cannot_open_its_services_does_not_start(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Given any error while opening, I expect the start to fail: Dramatiq would run on without services."""
    worker = booting(monkeypatch, error)

    with pytest.raises(WorkerCannotStart):
        worker.start()


def test_the_reason_is_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an embedder that does not fit the table, I expect the text that says so."""
    worker = booting(monkeypatch, EmbeddingDimensionMismatch(8, 384))

    with pytest.raises(WorkerCannotStart, match="gives 8 dimensions and the memories table holds 384"):
        worker.start()


@pytest.mark.parametrize("service", ["memories", "profiles"])
def test_there_are_no_services_before_the_boot(service: str) -> None:
    """Given a worker that has not booted, I expect an error, and not None."""
    with pytest.raises(RuntimeError, match="has not booted"):
        getattr(Resources(Settings(), "a-worker"), service)
