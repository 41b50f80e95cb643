"""constraints.txt pins all that is installed: what we ask for, and what that needs."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip()]


def needed() -> set[str]:
    """The names of everything that pyproject.toml leads to, here and on this Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    queue, seen = [Requirement(text) for text in wanted], set[tuple[str, frozenset[str]]]()
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = requires(name) or []
        except PackageNotFoundError:
            continue  # of another platform
        for text in found:
            further = Requirement(text)
            if any(further.marker is None or further.marker.evaluate({"extra": extra}) for extra in extras | {""}):
                queue.append(further)
    return {name for name, _ in seen}


def test_every_line_pins_one_version() -> None:
    """Given the file, I expect exact versions and nothing else: no index, no URL, no option."""
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line)] == []


def test_all_that_is_needed_is_pinned() -> None:
    """Given our dependencies and theirs, I expect each to be pinned."""
    pinned = {canonicalize_name(line.partition("==")[0]) for line in LINES}

    assert needed() - pinned == {"keepsake-client"}  # installed from clients/python, never from an index
