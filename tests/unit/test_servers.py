"""The servers that a command uses: those of the environment, those of a running stack, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runtime.errors import StackError
from services.runtime.settings import Settings
from services.stack.data_directory import DataDirectory, StackRecord
from services.stack.servers import servers


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def set_environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, str]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def test_servers_that_the_environment_names_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given both addresses, I expect them, and no data directory made."""
    environment = set_environment(monkeypatch, REDIS_URL="redis://r:1/0", DATABASE_URL="postgresql://h/k")

    with servers(tmp_path / "data", environment, "database_url", "redis_url") as (settings, running):
        assert settings.redis_url.get_secret_value() == "redis://r:1/0"
        assert settings.database_url.get_secret_value() == "postgresql://h/k"

    assert not running
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("variables", "redis_url"), [({}, "redis://h:1/0"), ({"REDIS_URL": "redis://r:2/0"}, "redis://r:2/0")]
)
def test_servers_of_a_running_stack_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], redis_url: str
) -> None:
    """Given a stack that runs, I expect its addresses and names, but for what the environment says."""
    environment = set_environment(monkeypatch, **variables)
    directory = DataDirectory(tmp_path)
    directory.create()
    directory.write(
        StackRecord(redis_url="redis://h:1/0", database_url="postgresql://h/k", settings={"ltm_stream_key": "s"})
    )
    (tmp_path / "postgres" / "data").mkdir(parents=True)

    with directory.locked(), servers(tmp_path, environment, "database_url", "redis_url") as (settings, running):
        assert running
        assert settings.redis_url.get_secret_value() == redis_url
        assert settings.database_url.get_secret_value() == "postgresql://h/k"
        assert settings.ltm_stream_key == "s"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [({}, "there is no database in"), ({"DATABASE_URL": "postgresql://h/k"}, "there is no data in")],
)
def test_a_directory_without_data_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], reason: str
) -> None:
    """Given no data, I expect one line, and nothing made."""
    environment = set_environment(monkeypatch, **variables)

    with (
        pytest.raises(StackError, match=reason),
        servers(tmp_path / "data", environment, "database_url", "redis_url"),
    ):
        pass

    assert not (tmp_path / "data").exists()


def test_a_directory_that_another_command_uses_is_refused(tmp_path: Path) -> None:
    """Given a command that has started the servers for itself, I expect one line with its pid."""
    directory = DataDirectory(tmp_path)
    directory.create()
    (tmp_path / "postgres" / "data").mkdir(parents=True)

    with (
        directory.locked(),
        pytest.raises(StackError, match="is in use by another"),
        servers(tmp_path, {}, "database_url"),
    ):
        pass
