"""The fallback actor, for messages to an actor that a worker does not have, as of newer adapters during an upgrade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dramatiq

from services.runtime.errors import WorkerOutdated
from services.runtime.queues import INTERACTIVE_QUEUE
from tasks.middleware.retries import NO_RETRY

if TYPE_CHECKING:
    from tasks.middleware.resources import Resources


class _Actors(dict[str, dramatiq.Actor[..., Any]]):
    """The actors of a broker by name; one for every name that none has."""

    def __init__(self, known: dict[str, dramatiq.Actor[..., Any]], unknown: dramatiq.Actor[..., Any]) -> None:
        super().__init__(known)
        self._unknown = unknown

    def __missing__(self, name: str) -> dramatiq.Actor[..., Any]:
        return self._unknown


def declare(broker: dramatiq.Broker, resources: Resources) -> None:
    """Have a message for an actor that the broker does not have fail as any other does.

    Dramatiq itself would make a dead letter of it before any middleware could answer its asker.
    """

    @dramatiq.actor(broker=broker, actor_name="unknown", queue_name=INTERACTIVE_QUEUE, retry=NO_RETRY)
    def unknown(*_: Any, **__: Any) -> None:
        resources.count("worker_outdated")
        raise WorkerOutdated

    known = {name: actor for name, actor in broker.actors.items() if actor is not unknown}
    broker.actors = _Actors(known, unknown)
