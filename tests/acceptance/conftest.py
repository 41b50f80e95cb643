"""Fixtures: the whole stack as a user starts it, `ltm up` in a process of its own."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.gateway.access import ROLES
from services.gateway.key_file import KeyFile
from tests.ltm_command import LTM, clean_environment
from tests.support import wait_until

READY_WITHIN_S = 180.0
ENDED_WITHIN_S = 30.0
#: The CPU priority of indexing and extraction: at 19, the default, they get no CPU while other tests keep it busy.
INDEX_NICE = 1


@dataclass(frozen=True)
class Stack:
    """A running `ltm up`.

    Args:
        ready: the content of its ready file.
        output: the file of its output.
        keys: of its gateway, by role; none of one that needs no key.
    """

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    output: Path
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def redis_url(self) -> str:
        return str(self.ready["redis_url"])

    @property
    def database_url(self) -> str:
        return str(self.ready["database_url"])

    @property
    def gateway_url(self) -> str:
        return str(self.ready["gateway_url"])

    @property
    def pids(self) -> dict[str, int]:
        return dict(self.ready["pids"])

    @property
    def nice(self) -> int:
        """The CPU priority of `ltm up`, to which those of its processes are relative."""
        return psutil.Process(self.process.pid).nice()

    def printed(self) -> str:
        return self.output.read_text()

    def end(self, number: signal.Signals) -> int:
        """Send the signal to `ltm up` alone; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=ENDED_WITHIN_S)


Up = Callable[..., Stack]


def without(*names: str) -> list[str]:
    """The options of `ltm up` that leave these processes out."""
    return [word for name in names for word in ("--without", name)]


def start_ltm_up(directory: Path, *arguments: str, **variables: str) -> Stack:
    """Start `ltm up` on free ports and wait for its ready file."""
    environment = clean_environment(**variables)
    environment.setdefault("LTM_CONSOLE", "false")  # it takes half a second of each start
    environment.setdefault("LTM_INDEX_NICE", str(INDEX_NICE))
    # The default ports are those of the developer's own stack.
    ports = [] if "REDIS_URL" in variables or "--redis-port" in arguments else ["--redis-port", "0"]
    ports += ["--gateway-port", "0"]
    ready, output = directory / "ready.json", directory / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [LTM, "up", "--ready-file", str(ready), *ports, *arguments],
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, READY_WITHIN_S, "the ready file")
        assert process.poll() is None, output.read_text()
    except BaseException:
        process.terminate()
        process.wait(timeout=ENDED_WITHIN_S)
        print(output.read_text())
        raise
    return Stack(process, json.loads(ready.read_text()), output)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that share a stack last of those here: a stack that waits takes a tenth of a core."""
    here = {item.path for item in items if item.path.is_relative_to(Path(__file__).parent)}
    sharing = {item.path for item in items if item.path in here and "stack" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path not in here, item.path in sharing))


# Not for the session: its processes would take a tenth of a core while all other tests run.
@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    """One `ltm up --ephemeral` for all tests that do not change it, with keys for its gateway."""
    with tempfile.TemporaryDirectory(prefix="ltm-test-") as directory:
        file = KeyFile(Path(directory) / "keys.json")
        keys = {role: file.create(role, tuple(rights), rate=0) for role, rights in ROLES.items()}
        settings = {"LTM_SEARCH_TIMEOUT_MS": "30000", "LTM_GATEWAY_KEYS": str(file.path), "LTM_CONSOLE": "true"}
        stack = start_ltm_up(Path(directory), "--ephemeral", **settings)
        stack.keys.update(keys)
        yield stack
        stack.end(signal.SIGTERM)


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory that PostgreSQL's account can traverse when root runs the tests, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp(prefix="ltm-test-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def up(place: Path) -> Iterator[Up]:
    """Starts stacks that are stopped after the test."""
    stacks: list[Stack] = []

    def start(*arguments: str, **variables: str) -> Stack:
        stacks.append(start_ltm_up(place, *arguments, **variables))
        return stacks[-1]

    yield start
    for each in stacks:
        if each.process.poll() is None:
            each.end(signal.SIGTERM)
