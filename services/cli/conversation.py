"""One user's side of the pipeline: sends a message, waits until it is stored, waits for the reply."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import suppress
from typing import Any

import redis
from keepsake_client.errors import RequestFailed, RequestTimeout, Unavailable
from keepsake_client.protocol import MEMBERSHIP_KEY, REJECTED_STREAM, alive_key
from redis.exceptions import NoPermissionError

from services.cli.subscription import Subscription
from services.runtime.settings import Settings, mask_url
from services.stack.processes import CHAT, MEMORY

STORED_TIMEOUT_S = 10.0
#: An adapter whose last heartbeat is older than this listens no more; clocks may differ.
LIVE_S = 60.0
REPLY_TIMEOUT_S = 60.0  # a model on a laptop takes its time
#: So many rejects of other messages may be newer than that of one's own.
MAX_REJECTS = 50
#: How often it is looked whether the message was rejected.
POLL_INTERVAL_S = 0.2


class Conversation:
    """Pushes messages to `user_input_queue` and follows them on `memory_updates` and `ai_responses`.

    Args:
        client: connects to the pipeline's Redis.
        settings: names the list and the channels.
        events: a subscription to both channels, `channels(settings)`.
        origin: the input device, as `source` of each message.
        agent_id: the character of the AI that is spoken to.
        speaker: the name of who speaks, where several people do.
        stored_timeout_s: how long `wait_until_stored` waits.
    """

    def __init__(
        self,
        client: redis.Redis,
        settings: Settings,
        events: Subscription,
        user_id: str,
        session_id: str,
        origin: str,
        *,
        agent_id: str | None = None,
        speaker: str | None = None,
        stored_timeout_s: float = STORED_TIMEOUT_S,
    ) -> None:
        self._client = client
        self._queue = settings.user_input_queue
        self._updates, self._replies = channels(settings)
        self._events = events
        self._user_id = user_id
        self._session_id = session_id
        self._origin = origin
        whom = {"agent_id": agent_id, "speaker": speaker}
        self._whom = {name: value for name, value in whom.items() if value is not None}
        self._address = mask_url(settings.redis_url.get_secret_value())
        self._stored_timeout_s = stored_timeout_s
        self._sent = ""

    def check_running(self) -> None:
        """Check that a memory and a chat service run, before anything is pushed for them.

        Raises:
            Unavailable: one of Keepsake's own does not, and none of the pipeline's seems to listen in its place.
        """
        try:
            missing = [name for name in (MEMORY, CHAT) if self._client.get(alive_key(name)) is None]
            missing = [name for name in missing if not self._replaced(name)]
        except NoPermissionError:
            return  # it cannot be known
        if missing:
            raise Unavailable(
                f"{' and '.join(missing)} of Keepsake {'do' if missing[1:] else 'does'} not run on {self._address}, so"
                f" no reply would come; start {'them' if missing[1:] else 'it'} with `ltm up`, or see `ltm status`"
            )

    def _replaced(self, name: str) -> bool:
        """Whether the channel that the service listens to has listeners besides this command and the adapters."""
        adapters: Any = self._client.zrangebyscore(MEMBERSHIP_KEY, time.time() - LIVE_S, "+inf")
        channel, known = (self._replies, 1) if name == MEMORY else (self._updates, 1 + len(adapters))
        [(_, listeners)] = self._client.pubsub_numsub(channel)
        return int(listeners) > known

    def send(self, content: str) -> str:
        """Push a message; its task_id."""
        task_id = f"task-{uuid.uuid4()}"
        message = {
            "task_id": task_id,
            "type": "text",
            "user_id": self._user_id,
            "content": content,
            "source": self._origin,
            "meta": {"session_id": self._session_id},
            **self._whom,
        }
        self._sent = json.dumps(message)
        self._client.lpush(self._queue, self._sent)
        return task_id

    def wait_until_stored(self, task_id: str) -> str:
        """The message_id under which the message has been published as stored.

        Raises:
            RequestFailed: it was rejected.
            RequestTimeout: it was not published in time.
        """
        until = time.monotonic() + self._stored_timeout_s
        while time.monotonic() < until:
            if event := self._wait(self._updates, "task_id", task_id, POLL_INTERVAL_S):
                return str(event["message_id"])
            self._check_rejected(task_id)
        self._client.lrem(self._queue, 1, self._sent)  # or it would be answered when no one waits any more
        raise RequestTimeout(
            f"nothing was published on {self._updates} within {self._stored_timeout_s:g} s{self._asked()}"
        )

    def _check_rejected(self, task_id: str) -> None:
        entries: Any = self._client.xrevrange(REJECTED_STREAM, count=MAX_REJECTS)
        for _, entry in entries:
            # The first characters of the message, which `send` begins with its task_id.
            if task_id.encode() in entry.get(b"message", b""):
                raise RequestFailed(entry[b"reason"].decode())

    def wait_for_reply(self, message_id: str) -> dict[str, Any]:
        """The reply to a message, as published.

        Raises:
            RequestTimeout: none came in time.
        """
        reply = self._wait(self._replies, "original_message_id", message_id, REPLY_TIMEOUT_S)
        if reply is None:
            raise RequestTimeout(f"no reply came on {self._replies} within {REPLY_TIMEOUT_S:g} s; is chat-ai running?")
        return reply

    def _asked(self) -> str:
        """Where the message was pushed, and what is missing there."""
        asked = f"; pushed to {self._queue} on {self._address}"
        with suppress(redis.RedisError):  # as without the right to look
            if not self._client.exists(alive_key(MEMORY)):
                asked += f", where {MEMORY} is not running"
        return asked

    def _wait(self, channel: str, field: str, value: str, timeout_s: float) -> dict[str, Any] | None:
        until = time.monotonic() + timeout_s
        while received := self._events.next(until):
            heard_on, event = received
            if heard_on == channel and event.get(field) == value:
                return event
        return None


def channels(settings: Settings) -> tuple[str, str]:
    """The channel of stored messages and that of replies."""
    return settings.memory_updates_channel, settings.ai_responses_channel
