"""Selection of the master among what the sentinels answer: those that know of the last failover count."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

#: Of the reason that a sentinel gives for its silence; three of them are to fit into a line of the log.
MAX_REASON_CHARS = 100

Address = tuple[str, int]
#: Of a service, as a sentinel describes it.
State = dict[str, Any]


class Selection:
    """Selection of the master among the answers of the sentinels, and the connections that are to follow it."""

    def __init__(self) -> None:
        self._epoch = -1
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def add(self, connection: Any) -> None:
        """Have a connection follow the master."""
        with self._lock:
            self._connections.add(connection)

    @property
    def connections(self) -> list[Any]:
        """Those that follow the master."""
        with self._lock:
            return list(self._connections)

    def master(self, state: State | str) -> Address | str:
        """The address of the master, as one sentinel says, or why its answer is of no use."""
        if isinstance(state, str):
            return state
        if state["config-epoch"] < self._epoch:
            return "has not learnt of the last failover"
        if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
            return "finds the master down"
        return state["ip"], state["port"]

    def in_order(self, states: list[tuple[Any, State | str]]) -> list[Any]:
        """The sentinels, those that know of the last failover first, and those without an answer last."""
        epochs = [
            (-1 if isinstance(state, str) else int(state["config-epoch"]), sentinel) for sentinel, state in states
        ]
        highest, answers = max(epoch for epoch, _ in epochs), sum(epoch >= 0 for epoch, _ in epochs)
        # It is lower than before where the sentinels were set up anew, and where only one that is cut off answers.
        if highest > self._epoch or 2 * answers > len(epochs):
            self._epoch = highest
        return [sentinel for _, sentinel in sorted(epochs, key=lambda pair: pair[0], reverse=True)]


def of_service(service: str, masters: dict[str, State]) -> State | str:
    return masters.get(service) or f"knows no service {service!r}"


def reason_of(error: RedisError | OSError) -> str:
    if isinstance(error, AuthenticationError):
        return "asks for another user or password (sentinel_username and sentinel_password of the URL)"
    if isinstance(error, NoPermissionError):
        return "does not permit its user SENTINEL MASTERS"
    if isinstance(error, ResponseError):
        return "is no sentinel, or refuses SENTINEL MASTERS"
    return f"does not answer ({' '.join(str(error).split())[:MAX_REASON_CHARS] or type(error).__name__})"


def no_master(service: str, reasons: list[tuple[Any, str]]) -> str:
    places = [(sentinel.connection_pool.connection_kwargs, reason) for sentinel, reason in reasons]
    return f"no master of {service!r}: " + ", ".join(
        f"sentinel {place['host']}:{place['port']} {reason}" for place, reason in places
    )
