"""Earlier releases as benchmarks and tests get them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.harness.releases import THIS_RELEASE, Release, ReleaseMissing, earlier_release
from services.stack.processes import ADAPTERS, WORKER


def test_a_commit_that_the_history_lacks_is_reported() -> None:
    """Given a commit that is not there, as in a shallow clone, I expect an error that names it."""
    with pytest.raises(ReleaseMissing, match="has no 0123456"), earlier_release("0123456"):
        pass


def test_no_git_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a machine without git, I expect an error that says so."""
    monkeypatch.setenv("PATH", "")

    with pytest.raises(ReleaseMissing, match="no git here"), earlier_release("0123456"):
        pass


def test_a_process_has_the_command_of_its_release(tmp_path: Path) -> None:
    """Given a release without `python -m tasks`, and this one, I expect a worker by dramatiq's command, and by ours."""
    earlier = Release("0.2.0", tmp_path)

    assert earlier.command(WORKER)[1:4] == ["-m", "dramatiq", "tasks.worker"]
    assert THIS_RELEASE.command(WORKER)[1:3] == ["-m", "tasks"]
    assert earlier.command(ADAPTERS)[1:] == ["-m", "adapters"]


def test_its_processes_import_its_own_modules_and_know_no_servers_but_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given servers in the environment here, I expect those that are given alone, and the release's modules first."""
    monkeypatch.setenv("REDIS_URL", "redis://developer/0")
    release = Release("0.2.0", Path("/release"))

    environment = release.environment({"DATABASE_URL": "postgresql://given/"})

    assert environment["PYTHONPATH"] == "/release:/release/clients/python"
    assert ("REDIS_URL" in environment, environment["DATABASE_URL"]) == (False, "postgresql://given/")
