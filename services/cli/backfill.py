"""`ltm backfill`: index stored conversations, such as those from before long-term memory was enabled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import redis
import typer
from keepsake_client.errors import InvalidMessage, Unavailable
from keepsake_client.protocol import (
    STREAM_EVENT_FIELD,
    MemoryUpdateMessage,
    conversation_key,
    parse_update,
)
from keepsake_client.times import parse_timestamp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.backlog import wait_for_room
from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, found_stack
from services.cli.output import Output
from services.runtime.redis import connect, words
from services.runtime.settings import Settings

CHUNK = 200


@dataclass
class Counts:
    """Number of conversations written, and of messages by outcome."""

    conversations: int = 0
    appended: int = 0
    earlier: int = 0
    unreadable: int = 0


class Backfill:
    """Writes stored messages to the stream of updates, with their own ids and times, so that it is idempotent.

    It waits while the backlog is over half of what the adapters prefetch and of what the stream keeps (backpressure):
    new messages are then prefetched along with it, so they get their turn, and nothing is trimmed unread.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._client: Any = client
        self._stream = settings.ltm_stream_key
        self._max_len = settings.ltm_stream_max_len
        self._max_chars = settings.ltm_max_content_chars
        self._defaults = settings.message_defaults
        self._max_backlog = max(CHUNK, min(settings.ltm_prefetch, settings.ltm_stream_max_len) // 2)

    def keys(self, user_id: str | None) -> list[bytes]:
        """The keys of the stored conversations, of one user or of all."""
        if user_id is not None:
            return [conversation_key(user_id).encode()]
        # SCAN may name a key twice. Other programs may have keys of other types under such names.
        return sorted(set(self._client.scan_iter(match="memory:conversation:*", count=1_000, _type="list")))

    def append(self, key: bytes, since: float, counts: Counts) -> None:
        """Write one conversation to the stream, oldest first.

        Raises:
            Unavailable: nothing takes messages from the stream.
        """
        messages = self._messages(key, since, counts)
        while chunk := list(islice(messages, CHUNK)):
            wait_for_room(self._client, self._stream, self._max_backlog)
            with self._client.pipeline(transaction=False) as pipeline:
                for message in chunk:
                    event = message.to_wire(logged=True)
                    pipeline.xadd(self._stream, {STREAM_EVENT_FIELD: event}, maxlen=self._max_len, approximate=True)
                pipeline.execute()
            counts.appended += len(chunk)
        counts.conversations += 1

    def _messages(self, key: bytes, since: float, counts: Counts) -> Iterator[MemoryUpdateMessage]:
        now = time.time()
        # In one call: new messages shift the list between two. Its length is bounded by MEMORY_MAX_MESSAGES.
        for raw in self._client.lrange(key, 0, -1):
            try:
                message = parse_update(raw, self._max_chars, self._defaults, arrived_at=now)
            except InvalidMessage:
                counts.unreadable += 1
                continue
            # With neither id nor time it would be a new memory each time; under the key of another user it is invalid.
            unidentified = message.message_id is None and message.timestamp == now
            if unidentified or conversation_key(message.user_id).encode() != key:
                counts.unreadable += 1
            elif message.timestamp < since:
                counts.earlier += 1
            else:
                yield message


def backfill(
    since: Annotated[str | None, typer.Option(help="Only messages from this time on, in ISO 8601.")] = None,
    user: Annotated[str | None, typer.Option(help="Only this user's conversation.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Index the stored conversations, such as those from before LTM was enabled; idempotent."""
    stack = found_stack(data_dir)
    try:
        from_time = float("-inf") if since is None else parse_timestamp(since, stack.settings.message_defaults.zone)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
    job, counts = Backfill(connect(stack.redis_url), stack.settings), Counts()
    columns = (TextColumn("conversations"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        keys = job.keys(user)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            for key in progress.track(keys):
                job.append(key, from_time, counts)
    except (redis.RedisError, OSError) as error:
        raise Unavailable(f"Redis does not answer: {words(error)}") from error
    Output().line(
        f"{counts.appended} messages of {counts.conversations} conversations are on their way to be indexed; "
        f"{counts.earlier} were earlier, {counts.unreadable} could not be read"
    )
