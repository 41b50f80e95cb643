"""The sentinel of a fuzz run: a user whose data no other user's message may change."""

from __future__ import annotations

import json
from typing import Any

import psycopg
from keepsake_client.protocol import conversation_key

from bench.harness.stack import Stack
from services.stack.probe import client_of

USER = "sentinel"
TIMEOUT_MS = 10_000
IDLE_WITHIN_S = 30.0


class Sentinel:
    """Stores a user's memories, profile and conversation, and compares them later, byte for byte."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        with client_of(stack.settings) as client:
            for number in range(5):
                client.add(USER, f"Secret {number} of the sentinel.", deadline_ms=TIMEOUT_MS)
            client.profile_update(USER, {"name": "Sentinel", "secret": 42}, deadline_ms=TIMEOUT_MS)
        message = json.dumps({"user_id": USER, "content": "A message of the sentinel."})
        stack.connect().lpush(stack.settings.user_input_queue, message)
        stack.wait_until_idle(IDLE_WITHIN_S)
        self._before = self._state()

    def _state(self) -> list[Any]:
        client: Any = self._stack.connect()
        with psycopg.connect(self._stack.database_url) as connection:
            memories = connection.execute(
                "SELECT m.* FROM memories m JOIN users u ON u.number = user_number WHERE user_id = %s ORDER BY number",
                (USER,),
            ).fetchall()
            profile = connection.execute("SELECT * FROM profiles WHERE user_id = %s", (USER,)).fetchall()
            history = connection.execute("SELECT * FROM profile_history WHERE user_id = %s", (USER,)).fetchall()
        return [memories, profile, history, client.lrange(conversation_key(USER), 0, -1)]

    def changed(self) -> bool:
        """Whether anything has changed, or was never stored."""
        return self._state() != self._before or not all(self._before)
