"""`ltm backup` of a running stack, and `ltm restore` into one that was only just started, and into none."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import redis
from keepsake_client import Client
from keepsake_client.protocol import conversation_key

from tests.acceptance.conftest import Stack, Up, without
from tests.ltm_command import run_ltm
from tests.support import wait_until

SAID = ("My cat is called Tofu.", "I moved to Lisbon in May.", "我对花生过敏。", "Tofu hates the vacuum cleaner.")
QUERIES = ("What is my cat called?", "Where did I move in May?", "我对什么过敏?", "vacuum cleaner")


def searched(stack: Stack) -> list[list[tuple[Any, ...]]]:
    """Of each query the memories that are found: ids, scores and contents, in order."""
    with Client(stack.redis_url) as client:
        found = [client.search("anna", query, deadline_ms=60_000) for query in QUERIES]
    return [[(memory.id, memory.score, memory.content) for memory in memories] for memories in found]


def conversation(stack: Stack) -> list[Any]:
    with redis.Redis.from_url(stack.redis_url) as client:
        return list(client.lrange(conversation_key("anna"), 0, -1))


def test_a_restored_stack_answers_as_the_one_that_was_backed_up(up: Up, place: Path) -> None:
    # Given a running stack with memories, a profile, a conversation, and a message that cannot be indexed just now
    first, file = str(place / "first"), str(place / "backup")
    stack = up("--data-dir", first, *without("chat-ai", "gateway", "long-term-memory-indexer"))
    for text in SAID:
        assert run_ltm("add", "anna", text, "--data-dir", first).returncode == 0
    assert run_ltm("profile", "anna", "--set", "age=30", "--data-dir", first).returncode == 0
    with redis.Redis.from_url(stack.redis_url) as client:
        client.lpush("user_input_queue", json.dumps({"user_id": "anna", "content": "My violin is from Cremona."}))
    wait_until(lambda: conversation(stack), description="the conversation")
    before, said = searched(stack), conversation(stack)

    # When it is backed up while it runs
    done = run_ltm("backup", file, "--data-dir", first)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 memories, 1 users, 1 profiles, 1 conversations, 1 messages not indexed yet" in done.stdout
    assert stack.end(signal.SIGINT) == 0

    # And when it is stopped, the same, with no server left running; one line where there is no data
    stopped = run_ltm("backup", str(place / "stopped"), "--data-dir", first)
    assert "4 memories, 1 users" in stopped.stdout, stopped.stderr
    assert not (place / "first" / "postgres" / "data" / "postmaster.pid").exists()
    missing = run_ltm("backup", str(place / "other"), "--data-dir", str(place / "nowhere"))
    assert missing.returncode == 1
    assert missing.stderr.startswith("ltm: there is no database in ")
    assert not (place / "nowhere").exists()

    # And restored into a directory that is not there yet
    second = str(place / "second")
    done = run_ltm("restore", file, "--data-dir", second)
    assert (done.returncode, done.stderr) == (0, "")
    stack = up("--data-dir", second, *without("chat-ai", "gateway", "long-term-memory-indexer"))

    # I expect the same answers, profile and conversation
    assert searched(stack) == before
    assert all(before)
    assert json.loads(run_ltm("profile", "anna", "--data-dir", second).stdout) == {"age": 30}
    assert conversation(stack) == said
    again = run_ltm("restore", file, "--data-dir", second)
    assert again.returncode == 1
    assert again.stderr.startswith("ltm: the database is not empty")
    assert again.stderr.count("\n") == 1
    assert stack.end(signal.SIGINT) == 0

    # And restored into a stack that runs and is empty, the same, and the message indexed
    third = str(place / "third")
    stack = up("--data-dir", third, *without("chat-ai", "gateway"))
    assert searched(stack) == [[], [], [], []]
    done = run_ltm("restore", file, "--data-dir", third)
    assert (done.returncode, done.stderr) == (0, "")

    with Client(stack.redis_url) as client:
        wait_until(
            lambda: "My violin is from Cremona." in [each.content for each in client.search("anna", "violin")],
            description="the message that was not indexed",
        )
    contents = [[row[2] for row in answer if "violin" not in row[2]] for answer in searched(stack)]
    assert [answer[0] for answer in contents] == [answer[0][2] for answer in before]
