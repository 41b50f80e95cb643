"""Dead letters of any shape: each is listed, and none hides the others."""

from __future__ import annotations

import json

import fakeredis
import pytest

from services.runtime.dead_letters import RedisDeadLetters
from services.runtime.queues import QueueKeys

MESSAGE = {"actor_name": "memory.index", "args": [], "kwargs": {}}


@pytest.mark.parametrize(
    ("raw", "actor"),
    [
        (json.dumps({**MESSAGE, "options": {"retries": "x", "error": {"a": 1}, "traceback": None}}).encode(), None),
        (json.dumps({**MESSAGE, "options": {"retries": None}}).encode(), None),
        (json.dumps({**MESSAGE, "options": {"retries": float("inf")}}).encode(), None),
        (b"\xff\xfe<script>", "?"),
        (b"[" * 100_000, "?"),
    ],
    ids=["wrong types", "null", "infinite", "no text", "nested too deep"],
)
def test_a_dead_letter_of_another_shape_is_listed(raw: bytes, actor: str | None) -> None:
    """Given a dead letter that another program wrote, I expect it in the list, without a number of tries."""
    client, keys = fakeredis.FakeRedis(), QueueKeys("index")
    client.hset(keys.dead_messages, "letter-1", raw)
    client.zadd(keys.dead_ids, {"letter-1": 1})

    [letter] = RedisDeadLetters(client).newest(10)

    assert (letter.id, letter.tries, letter.actor) == ("letter-1", 0, actor or "memory.index")
    assert isinstance(letter.error + letter.traceback, str)
