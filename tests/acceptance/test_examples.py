"""The examples, each run as a program against the real stack."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from keepsake_client import Client

from services.gateway.__main__ import DOORS
from tests.acceptance.conftest import Stack
from tests.served_gateway import served, settings_of
from tests.support import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
INSTALL_TIMEOUT_S = 120


@pytest.fixture
def user() -> str:
    return f"用户-{uuid.uuid4().hex[:8]}"


def run_example(stack: Stack, *command: str, stdin: str, cwd: Path = EXAMPLES, **variables: str) -> list[str]:
    """The lines that the example printed."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        command,
        env={**environment, "REDIS_URL": stack.redis_url, **variables},
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def wait_until_found(stack: Stack, user: str, query: str, content: str) -> None:
    """Wait until a memory is found, whatever its score: the bot's request to tell more answers nothing."""
    with Client(stack.redis_url) as client:
        wait_until(
            lambda: content in {m.content for m in client.search(user, query, min_score=0, deadline_ms=5_000)},
            description=f"{content!r} to be indexed",
        )


def check_bot(stack: Stack, user: str, *command: str, cwd: Path = EXAMPLES) -> None:
    """Both sides of a first conversation are remembered in a second one."""
    content = "My cat is called Mochi."
    assert run_example(stack, *command, user, stdin=f"{content}\n\n", cwd=cwd) == [f"Tell me more about “{content}”"]
    wait_until_found(stack, user, "What is my cat called?", content)
    wait_until_found(stack, user, "What did you want to know more about?", f"Tell me more about “{content}”")

    assert run_example(stack, *command, user, stdin="What is my cat called?\n", cwd=cwd) == [f"I remember: {content}"]


def test_the_asyncio_bot_remembers_across_sessions(stack: Stack, user: str) -> None:
    check_bot(stack, user, sys.executable, "asyncio_bot.py")


def test_the_threaded_script_adds_facts_and_finds_one(stack: Stack, user: str) -> None:
    facts = "I live in Lisbon.\n我喜欢喝绿茶。\nI play the cello.\n"

    profile, best, *_ = run_example(stack, sys.executable, "threaded_script.py", user, "Where do I live?", stdin=facts)

    assert profile == "profile: {'facts': 3}"
    assert best.endswith("I live in Lisbon.")


def test_curl_tells_and_finds(stack: Stack) -> None:
    user = f"user-{uuid.uuid4().hex[:8]}"  # which needs no escaping

    with served(settings_of(stack.redis_url), DOORS) as gateway:
        lines = run_example(stack, "sh", "curl.sh", user, stdin="", KEEPSAKE_URL=gateway)

    told, found, context, profile = map(json.loads, lines)

    assert [event["published"] for event in told["events"]] == [True]
    assert [memory["content"] for memory in found["memories"]] == ["My cat is called Mochi."]
    assert "My cat is called Mochi." in context["context"]
    assert profile["user_profile"] == {"name": "Anna"}


def test_curl_without_a_gateway_fails_in_words() -> None:
    done = subprocess.run(
        ["sh", "curl.sh"],
        env={"PATH": os.environ["PATH"], "KEEPSAKE_URL": "http://127.0.0.1:1"},
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stdout) == (7, "")
    assert "connect to 127.0.0.1 port 1" in done.stderr


def test_the_examples_without_redis_fail_in_words(user: str) -> None:
    done = subprocess.run(
        [sys.executable, "threaded_script.py", user, "Where do I live?"],
        env={"PATH": os.environ["PATH"], "REDIS_URL": "redis://127.0.0.1:1/0"},
        cwd=EXAMPLES,
        input="I live in Lisbon.\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("unavailable: Redis does not answer: ")


@pytest.fixture(scope="module")
def node_bot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bot for Node.js with its dependency installed; skips where that is not possible."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    directory = tmp_path_factory.mktemp("node_bot")
    for file in (EXAMPLES / "node_bot").iterdir():
        if file.is_file():
            shutil.copy(file, directory)
    command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm install took more than {INSTALL_TIMEOUT_S} s")
    if done.returncode:
        pytest.skip(f"npm install failed: {done.stderr.strip().splitlines()[-1:]}")
    return directory


def test_the_node_bot_remembers_across_sessions(stack: Stack, user: str, node_bot: Path) -> None:
    check_bot(stack, user, "node", "bot.mjs", cwd=node_bot)
