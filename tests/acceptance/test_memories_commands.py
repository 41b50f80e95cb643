"""`ltm memories`, `memory`, `correct` and `forget`, against a running stack and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import uuid
from contextlib import suppress

import pytest

from tests.acceptance.conftest import Stack
from tests.acceptance.test_commands import ltm
from tests.ltm_command import LTM, clean_environment
from tests.support import wait_until


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"


def ids(stack: Stack, user: str, *options: str) -> dict[str, str]:
    """The ids of a user's memories by content."""
    response = json.loads(ltm(stack, "memories", user, "--json", *options).stdout)
    return {memory["content"]: memory["id"] for memory in response["memories"]}


def on_a_terminal(stack: Stack, answer: str, *arguments: str) -> tuple[int, str]:
    """The exit code and the output of a command whose question is answered on a terminal."""
    mine, its = pty.openpty()
    environment = clean_environment(REDIS_URL=stack.redis_url, DATABASE_URL=stack.database_url, TERM="dumb")
    with subprocess.Popen([LTM, *arguments], stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        shown = b""
        with suppress(OSError):  # the end of a terminal
            while b"[y/N]" not in shown:
                shown += os.read(mine, 1_000)
            os.write(mine, f"{answer}\n".encode())
            while part := os.read(mine, 1_000):
                shown += part
        os.close(mine)
    return process.returncode, shown.decode()


def test_memories_are_listed_shown_corrected_and_forgotten(stack: Stack, user: str) -> None:
    for text in ("My cat is called Tofu", "My dog is called Rex", "Ich mag Äpfel"):
        assert ltm(stack, "add", user, text).returncode == 0
    stored = ids(stack, user, "--oldest")
    assert list(stored) == ["My cat is called Tofu", "My dog is called Rex", "Ich mag Äpfel"]
    cat = stored["My cat is called Tofu"]

    # A correction is found at once, by its new words
    corrected = ltm(stack, "correct", user, cat, "My cat is called Mochi", "--meta", '{"checked": true}')
    assert corrected.stdout.startswith(f"{cat}  "), corrected.stderr
    assert "Mochi" in ltm(stack, "search", user, "what is my cat called?").stdout.splitlines()[0]
    shown = ltm(stack, "memory", user, cat).stdout
    assert '"checked": true' in shown
    assert "My cat is called Tofu" in shown.splitlines()[-1]

    # A question is answered on the terminal
    code, output = on_a_terminal(stack, "n", "forget", user, "--contains", "äpfel")
    assert (code, f"Delete 1 memory of {user}" in output) == (1, True)
    assert len(ids(stack, user)) == 3
    code, output = on_a_terminal(stack, "y", "forget", user, "--contains", "äpfel")
    assert (code, f"1 memory of {user} deleted" in output) == (0, True)

    # Without one, --yes is needed
    refused = ltm(stack, "forget", user, "--id", cat)
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    assert ltm(stack, "forget", user, "--id", cat, "--yes").stdout == f"1 memory of {user} deleted\n"
    assert list(ids(stack, user)) == ["My dog is called Rex"]
    gone = ltm(stack, "memory", user, cat)
    assert (gone.returncode, gone.stderr) == (1, "ltm: not_found: the user has no memory of this id\n")


def test_a_chat_message_that_was_forgotten_does_not_come_back_by_a_backfill(stack: Stack, user: str) -> None:
    ltm(stack, "chat", "--user", user, stdin="My parrot is called Polly\n/quit\n")
    wait_until(lambda: any("Polly" in text for text in ids(stack, user)), description="the message to be indexed")

    # The reply may quote it, and be indexed later
    assert ltm(stack, "forget", user, "--contains", "polly", "--yes").returncode == 0
    assert ltm(stack, "backfill", "--user", user).returncode == 0

    wait_until(lambda: "events_deleted" in ltm(stack, "status").stdout, description="it to be refused, and counted")
    assert not any("My parrot is called Polly" in text for text in ids(stack, user))
