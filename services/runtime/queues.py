"""Queue names of the workers, and the key layout of Dramatiq's Redis broker: the one place that spells either.

The layout is private to Dramatiq: tests/integration/test_broker.py fails when a new version changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

# One queue for each urgency, so that a search never waits behind indexing.
INTERACTIVE_QUEUE = "interactive"
WRITES_QUEUE = "writes"
INDEX_QUEUE = "index"
#: Those whose messages carry what users said.
QUEUES = (INTERACTIVE_QUEUE, WRITES_QUEUE, INDEX_QUEUE)
#: Where an LLM is set. Its messages carry no words of a user: a number and the token of a lease.
EXTRACT_QUEUE = "extract"
ALL_QUEUES = (*QUEUES, EXTRACT_QUEUE)

#: Prefix of every key of the broker.
NAMESPACE = "dramatiq"


def taken_list(requests_queue: str, adapter: str) -> str:
    """List of the requests that an adapter has taken and not yet put on a queue."""
    return f"{requests_queue}:taken:{adapter}"


def delay_queue(queue: str) -> str:
    """Name of the queue of the delayed messages of a queue."""
    return f"{queue}.DQ"


def dead_letter_queue(queue: str) -> str:
    """Name of the dead letters of a queue; on RabbitMQ, a queue of that name."""
    return f"{queue}.XQ"


@dataclass(frozen=True)
class QueueKeys:
    """Redis keys of one Dramatiq queue.

    Args:
        queue: the queue's name. The queue of its delayed messages, `NAME.DQ`, has keys of the same layout, but dead
            letters in common with it.
    """

    queue: str
    namespace: str = NAMESPACE

    @property
    def ids(self) -> str:
        """List of the ids of waiting messages; consumers pop from the left."""
        return f"{self.namespace}:{self.queue}"

    @property
    def messages(self) -> str:
        """Hash of message bodies by id: waiting and fetched ones, until they are acknowledged."""
        return f"{self.ids}.msgs"

    @property
    def delayed_messages(self) -> str:
        """Hash of the bodies of delayed messages by id."""
        return f"{self.namespace}:{delay_queue(self.queue)}.msgs"

    @property
    def dead_ids(self) -> str:
        """Sorted set of the ids of dead letters by the time they were put there, in ms since 1970."""
        return f"{self.namespace}:{dead_letter_queue(self.queue)}"

    @property
    def dead_messages(self) -> str:
        """Hash of the bodies of dead letters by id."""
        return f"{self.dead_ids}.msgs"

    def acks(self, broker_id: str) -> str:
        """Set of the ids that one worker process has fetched and not acknowledged."""
        return f"{self.namespace}:__acks__.{broker_id}.{self.queue}"


def queue_depths(client: redis.Redis) -> dict[str, dict[str, int]]:
    """Numbers of waiting, running, delayed and dead messages by queue.

    Raises:
        redis.RedisError: the broker's Redis does not answer.
    """
    with client.pipeline(transaction=False) as pipeline:
        depth_commands(pipeline)
        return depths_of(pipeline.execute())


def depth_commands(pipeline: Any) -> None:
    """Queue the commands of `queue_depths` on a pipeline of redis-py, synchronous or asyncio."""
    for queue in ALL_QUEUES:
        keys = QueueKeys(queue)
        pipeline.llen(keys.ids)
        pipeline.hlen(keys.messages)
        pipeline.hlen(keys.delayed_messages)
        pipeline.zcard(keys.dead_ids)


def depths_of(replies: Sequence[int]) -> dict[str, dict[str, int]]:
    """The depths that these replies of `depth_commands` say."""
    depths = {}
    for queue, at in zip(ALL_QUEUES, range(0, len(replies), 4), strict=True):
        waiting, unacknowledged, delayed, dead = replies[at : at + 4]
        working = max(0, unacknowledged - waiting)
        depths[queue] = {"waiting": waiting, "working": working, "delayed": delayed, "dead": dead}
    return depths
