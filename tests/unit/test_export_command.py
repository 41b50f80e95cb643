"""`ltm export`: the file that it writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.export import _written


@pytest.fixture
def open_umask() -> Iterator[None]:
    """An account whose new files everyone may read and write."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_only_its_owner_may_read_an_export(tmp_path: Path) -> None:
    """Given an account whose new files everyone may read, I expect the export to be its owner's alone from the first
    line on, and under its name once all of it is there."""
    file = tmp_path / "anna.jsonl"
    with _written(file) as lines:
        lines.write("one\n")
        [unfinished] = tmp_path.iterdir()
        assert unfinished != file
        assert unfinished.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["anna.jsonl"]
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("one\n", 0o600)
