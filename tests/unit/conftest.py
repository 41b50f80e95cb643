"""For all unit tests: one that configures the log, as `ltm up` does, leaves no other one with its handlers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import restored_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restores the logging configuration afterwards."""
    with restored_logging():
        yield
