"""Opening the long-term memory while its servers are starting."""

from __future__ import annotations

import pytest
from keepsake_client.errors import Unavailable
from structlog.testing import capture_logs

from services.long_term_memory import factory
from services.runtime.errors import InvalidSetting
from services.runtime.settings import Settings
from tests.support import free_port

OPENED = object()


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """What the attempts to open come to, in their order: an error, or None for success."""
    outcomes: list[Exception | None] = []

    def open_long_term_memory(settings: Settings, connections: int, **_: object) -> object:
        error = outcomes.pop(0)
        if error:
            raise error
        return OPENED

    monkeypatch.setattr(factory, "open_long_term_memory", open_long_term_memory)
    return outcomes


def test_an_unavailable_server_is_retried_and_logged_once(attempts: list[Exception | None]) -> None:
    """Given a database that is up at the third attempt, I expect the memory, and one event."""
    attempts += [Unavailable("PostgreSQL does not answer"), Unavailable("PostgreSQL does not answer"), None]

    with capture_logs() as events:
        opened = factory.open_when_ready(Settings(), connections=1)

    assert opened is OPENED
    assert [(e["event"], e["log_level"], e["reason"]) for e in events] == [
        ("start_awaits", "warning", "PostgreSQL does not answer")
    ]


def test_a_server_that_stays_unavailable_is_given_up(attempts: list[Exception | None]) -> None:
    """Given no patience, I expect the error of the first attempt itself."""
    attempts += [Unavailable("PostgreSQL does not answer"), None]

    with pytest.raises(Unavailable, match="PostgreSQL does not answer"):
        factory.open_when_ready(Settings(), connections=1, patience_s=0)


def test_an_error_that_stays_is_not_retried(attempts: list[Exception | None]) -> None:
    """Given a provider that does not exist, I expect the error at once."""
    attempts += [InvalidSetting("no such provider"), None]

    with pytest.raises(InvalidSetting):
        factory.open_when_ready(Settings(), connections=1)

    assert attempts == [None]


def test_the_engine_is_not_opened_before_the_database_answers() -> None:
    """Given no database, I expect its error without the engine's line: attempts to reach it must not cost CPU time."""
    settings = Settings(database_url=f"postgresql://postgres@127.0.0.1:{free_port()}/keepsake")

    with capture_logs() as events, pytest.raises(Unavailable):
        factory.open_long_term_memory(settings, connections=1)

    assert [event["event"] for event in events if event["event"].startswith("embedder")] == []
