"""Egress: no process connects to anything but Redis, PostgreSQL and the providers in the settings."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis

from tests.integration.test_worker_processes import WITHIN_S, Client, Stack, start
from tests.support import wait_until

#: Channels are shared by all databases of a server, and there are other stacks in this test run.
UPDATES_CHANNEL = "watched_updates"

# Python imports it in every process that is started with its directory on PYTHONPATH, before anything else.
SITECUSTOMIZE = """
import json, os, sys

_file = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def _note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        address = arguments[:2]
    else:
        return
    os.write(_file, (json.dumps([sys.argv[:2], event, address], default=str) + chr(10)).encode())

sys.addaudithook(_note)
"""


@dataclass
class Watched:
    """A stack whose every socket is noted."""

    stack: Stack
    notes: Path
    client: Client

    def noted(self) -> list[list[Any]]:
        """Program, event and address of every connection and every name that was looked up."""
        return [json.loads(line) for line in self.notes.read_text().splitlines()]

    def connected(self) -> set[tuple[str, int]]:
        """The far ends of all that is connected just now, which libpq, being C, does not tell Python's hook."""
        families = [psutil.Process(process.pid) for process in self.stack.processes.values()]
        return {
            (connection.raddr.ip, connection.raddr.port)
            for family in families
            for process in [family, *family.children(recursive=True)]
            for connection in process.net_connections("inet")
            if connection.raddr
        }


@pytest.fixture(scope="module")
def watched(
    valkey_url: str, create_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """Adapters and workers that have indexed, added, searched and updated a profile."""
    home = tmp_path_factory.mktemp("watched")
    notes = home / "notes"
    (home / "sitecustomize.py").write_text(SITECUSTOMIZE.format(path=str(notes)))
    redis_url = valkey_url.removesuffix("/0") + "/9"
    stack = start(
        redis_url, create_database(), home / "log", PYTHONPATH=str(home), MEMORY_UPDATES_CHANNEL=UPDATES_CHANNEL
    )
    try:
        wait_until(stack.alive, WITHIN_S, "every process to be alive")
        with (
            redis.Redis.from_url(redis_url) as connection,
            connection.pubsub(ignore_subscribe_messages=True) as pubsub,
        ):
            pubsub.subscribe("ltm_responses")
            wait_until(lambda: connection.pubsub_numsub("ltm_responses")[0][1], description="the subscription")
            wait_until(lambda: connection.pubsub_numsub(UPDATES_CHANNEL)[0][1], WITHIN_S, "the adapters' subscription")
            watched = Watched(stack, notes, Client(connection, pubsub))
            live(watched.client)
            yield watched
    finally:
        stack.stop()


def live(client: Client) -> None:
    """All that a stack does for a user."""
    user = uuid.uuid4().hex
    event = {"user_id": user, "content": "My cat is called Tofu", "source": "user", "timestamp": 1_712_345_678}
    client.redis.publish(UPDATES_CHANNEL, json.dumps(event))
    client.ask("add", user, content="I like green tea")
    client.ask("profile_update", user, updates={"name": "Lin"})
    client.ask("profile_get", user)
    wait_until(lambda: len(client.found(user)) == 2, WITHIN_S, "both memories")


def port_of(stack: Stack) -> int:
    return urlsplit(stack.redis_url).port or 0


def test_only_redis_is_connected_to(watched: Watched) -> None:
    """Given processes that have done all they do, I expect every connection of theirs to be one to Redis."""
    addresses = {tuple(address) for _, event, address in watched.noted() if event == "socket.connect"}

    assert addresses == {("127.0.0.1", port_of(watched.stack))}


def test_no_other_name_is_looked_up(watched: Watched) -> None:
    """Given the same, I expect no name to be looked up but Redis's."""
    names = {tuple(address) for _, event, address in watched.noted() if "get" in event}

    assert names <= {("127.0.0.1", port_of(watched.stack))}


def test_nothing_is_sent_without_a_connection(watched: Watched) -> None:
    """Given the same, I expect no datagrams."""
    assert [note for note in watched.noted() if "send" in note[1]] == []


def test_every_process_was_watched(watched: Watched) -> None:
    """Given the notes, I expect workers and adapters in them, or they would say nothing."""
    programs = {" ".join(program) for program, _, _ in watched.noted()}

    assert [any(name in program for program in programs) for name in ("tasks", "adapters")] == [True, True]


def test_libpq_connects_to_nothing_else(watched: Watched) -> None:
    """Given PostgreSQL on a socket in a directory, I expect Redis alone at the far end of what is connected."""
    assert watched.connected() == {("127.0.0.1", port_of(watched.stack))}
