"""One user's side of the pipeline, where no service takes the message."""

from __future__ import annotations

import json
import time
from typing import Any

import fakeredis
import pytest
from keepsake_client.errors import RequestTimeout, Unavailable
from keepsake_client.protocol import MEMBERSHIP_KEY, alive_key

from services.cli.conversation import Conversation
from services.runtime.settings import load_settings


class Silence:
    """A subscription on which nothing comes."""

    def next(self, until: float) -> None:
        return None


def conversation(client: Any) -> Conversation:
    """A conversation that waits for nothing to be stored."""
    events: Any = Silence()
    return Conversation(client, load_settings(), events, "anna", "s", "terminal", stored_timeout_s=0.0)


def test_a_message_that_is_not_stored_in_time_is_taken_back() -> None:
    """Given a memory service that takes nothing, I expect an error, and the list without this message alone."""
    client = fakeredis.FakeRedis()
    client.lpush("user_input_queue", "another one's")
    mine = conversation(client)

    with pytest.raises(RequestTimeout):
        mine.wait_until_stored(mine.send("hello"))

    assert client.lrange("user_input_queue", 0, -1) == [b"another one's"]


def test_a_message_says_who_speaks_and_to_whom() -> None:
    """Given a character and a speaker, I expect both in the message; without them, neither."""
    client: Any = fakeredis.FakeRedis()
    events: Any = Silence()
    Conversation(client, load_settings(), events, "room", "s", "terminal", agent_id="luna", speaker="Anna").send("hi")
    conversation(client).send("hi")

    with_both, with_neither = (json.loads(raw) for raw in reversed(client.lrange("user_input_queue", 0, -1)))
    assert (with_both["agent_id"], with_both["speaker"]) == ("luna", "Anna")
    assert not {"agent_id", "speaker"} & set(with_neither)


def test_what_does_not_run_is_named() -> None:
    """Given the memory service alone, I expect chat-ai named, and nothing where both run."""
    client = fakeredis.FakeRedis()
    client.set(alive_key("memory"), "host:2:1")
    with pytest.raises(Unavailable, match=r"^chat-ai of Keepsake does not run on redis://127.0.0.1:6379/0"):
        conversation(client).check_running()

    client.set(alive_key("chat-ai"), "host:2:1")
    conversation(client).check_running()


def test_services_of_ones_own_may_stand_in() -> None:
    """Given none of Keepsake's services, I expect no error once others listen besides this command and an adapter."""
    client: Any = fakeredis.FakeRedis()
    client.zadd(MEMBERSHIP_KEY, {"a1": time.time(), "failed": time.time() - 3_600})
    listeners: list[Any] = []

    def listen(*channels: str) -> None:
        listeners.append(client.pubsub())
        listeners[-1].subscribe(*channels)

    listen("memory_updates", "ai_responses")  # this command
    listen("memory_updates")  # the adapter
    with pytest.raises(Unavailable, match="memory and chat-ai of Keepsake do not run"):
        conversation(client).check_running()

    listen("ai_responses")  # a memory service
    with pytest.raises(Unavailable, match="chat-ai of Keepsake does not run"):
        conversation(client).check_running()

    listen("memory_updates")  # a chat service
    conversation(client).check_running()
    for listener in listeners:
        listener.close()
