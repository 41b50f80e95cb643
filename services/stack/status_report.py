"""Report on a stack: the states of its servers and processes, and what waits."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from services.long_term_memory.extraction import report as extraction
from services.runtime.instances import Instances

State = Literal["answers", "refuses writes", "down", "unknown", "left out", "not running", "not checked"]
NOT_OK: tuple[State, ...] = ("refuses writes", "down", "unknown")


class Part(BaseModel):
    """The state of a server or process, or of the search over the wire.

    Args:
        state: `refuses writes` of a Redis that answers and takes none; `unknown` where this command cannot see it;
            `left out` by `ltm up --without`; `not running` where it is optional and has not run on this Redis for a
            day.
        address: of a server, without its password, or of the gateway.
        detail: why it is down, unknown or not checked; of a worker that answers, the engine of its embedder; of
            the gateway, the address of its console.
        instances: the processes of this name, by host.
    """

    name: str
    state: State
    address: str | None = None
    detail: str | None = None
    instances: Instances = Instances()


class Extraction(BaseModel):
    """The state of extraction, and what it did today (UTC).

    Args:
        since, reason: of a state other than `working`.
        messages, users: that wait to be read, the oldest of them since `oldest`.
        set_aside: messages that no usable answer was had for.
    """

    state: extraction.State
    since: datetime | None = None
    reason: str | None = None
    messages: int = 0
    users: int = 0
    oldest: datetime | None = None
    set_aside: int = 0
    calls: int = 0
    tokens: int = 0


class StatusReport(BaseModel):
    """What `ltm status` shows.

    Args:
        ok: whether nothing is down, unknown or stopped; the exit code is 0 exactly then.
        parts: servers and processes, in start order; then RabbitMQ's nodes, and its queues that have no majority.
        search: that of the check, over the wire.
        lists: how many items wait, by list.
        not_dispatched: how many events of the stream wait; None where that cannot be seen.
        queues: how many messages are waiting, working, delayed and dead, by queue of the workers; on RabbitMQ also how
            many consumers there are.
        counters: `ltm:counters`.
        extraction: of facts, where an LLM is set.
        unseen: what cannot be read here, each with the reason.
        notes: what is not here to be read, such as queues on a RabbitMQ without its management API.
    """

    ok: bool = True
    parts: list[Part] = Field(default_factory=list)
    search: Part | None = None
    lists: dict[str, int] = Field(default_factory=dict)
    stream: str = ""
    not_dispatched: int | None = None
    queues: dict[str, dict[str, int]] = Field(default_factory=dict)
    counters: dict[str, int] = Field(default_factory=dict)
    extraction: Extraction | None = None
    unseen: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
