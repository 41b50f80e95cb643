"""One user's side of the pipeline: says something, hears that it was stored, hears the reply."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import redis
from keepsake_client.errors import RequestTimeout

from services.runtime.settings import Settings
from services.stack.wire import Subscription

STORED_WITHIN_S = 10.0
REPLIED_WITHIN_S = 60.0  # a model on somebody's laptop may take its time


class Conversation:
    """What any producer on `user_input_queue` and listener on `ai_responses` does.

    Args:
        client: connects to the pipeline's Redis.
        settings: names the list and the channels.
        events: a subscription to both channels, `channels(settings)`.
        origin: where the messages come in, as `source`.
    """

    def __init__(
        self, client: redis.Redis, settings: Settings, events: Subscription, user_id: str, session_id: str, origin: str
    ) -> None:
        self._client = client
        self._queue = settings.user_input_queue
        self._updates, self._replies = channels(settings)
        self._events = events
        self._user_id = user_id
        self._session_id = session_id
        self._origin = origin

    def say(self, content: str) -> str:
        """Push a message; its task_id."""
        task_id = f"task-{uuid.uuid4()}"
        message = {
            "task_id": task_id,
            "type": "text",
            "user_id": self._user_id,
            "content": content,
            "source": self._origin,
            "meta": {"session_id": self._session_id},
        }
        self._client.lpush(self._queue, json.dumps(message))
        return task_id

    def stored(self, task_id: str) -> str:
        """Wait until the message has been published as stored; its message_id.

        Raises:
            RequestTimeout: it has not, in time.
        """
        until = time.monotonic() + STORED_WITHIN_S
        while received := self._events.next(until):
            channel, event = received
            if channel == self._updates and event.get("task_id") == task_id:
                return str(event["message_id"])
        raise RequestTimeout(f"nothing was published on {self._updates} within {STORED_WITHIN_S:g} s")

    def replied(self, message_id: str) -> dict[str, Any]:
        """Wait for the reply to a message, as it was published.

        Raises:
            RequestTimeout: none came in time.
        """
        until = time.monotonic() + REPLIED_WITHIN_S
        while received := self._events.next(until):
            channel, event = received
            if channel == self._replies and event.get("original_message_id") == message_id:
                return event
        raise RequestTimeout(f"no reply came on {self._replies} within {REPLIED_WITHIN_S:g} s; does chat-ai run?")


def channels(settings: Settings) -> tuple[str, str]:
    """Where messages are published as stored, and where replies are."""
    return settings.memory_updates_channel, settings.ai_responses_channel
