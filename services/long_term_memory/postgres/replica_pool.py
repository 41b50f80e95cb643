"""ReplicaPool: connections to a streaming replica, each with what its server has replayed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.pool import (
    CONNECTION_OPTIONS,
    WAIT_INTERVAL_S,
    AnsweredConnection,
    note_layout,
    quiet,
)
from services.long_term_memory.postgres.server_state import ServerState, read_state
from services.runtime.write_notes import Position

#: How long a read of the replica may take at most, all of its statements together.
READ_S: Final = 0.5
#: How long it waits for a connection.
CONNECTION_S: Final = 0.1
#: Between two attempts to connect.
RECONNECT_S: Final = 1.0
#: What a server has replayed, and whether it is still a standby, is asked again after this time.
VERIFIED_FOR_S: Final = 1.0

T = TypeVar("T")


class ReplicaBehind(Exception):
    """The replica has not replayed what a read must see."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the statements of a read of the replica must keep to.

    Args:
        required: positions that its server must have replayed.
        until: when they must be done, by the monotonic clock.
    """

    required: Sequence[Position]
    until: float


#: Of the read of this thread; None of a look at the replica's state.
READING: ContextVar[Reading | None] = ContextVar("reading", default=None)


class ReplicaConnection(AnsweredConnection):
    """A connection to a replica, with what its server had replayed when it was last asked.

    Of its own server: one address may lead to several replicas.
    """

    state: ServerState | None = None
    asked_at: float = 0.0

    def wait(self, gen: PQGen[T], interval: float = WAIT_INTERVAL_S, timeout: float | None = None) -> T:
        reading = READING.get()
        left = READ_S if reading is None else reading.until - time.monotonic()
        self.answer_timeout_s = max(left, 0.001)
        return super().wait(gen, interval, timeout)


class ReplicaPool(ConnectionPool[ReplicaConnection]):
    """Connections to a replica, each given only where its server has replayed what the read must see.

    Args:
        verify: raises `ReplicaUnusable` where a state is not that of a replica of the primary.
    """

    def __init__(
        self, url: str, size: int, verify: Callable[[ServerState], None], on_failure: Callable[[object], None]
    ) -> None:
        self._verify = verify
        super().__init__(
            url,
            connection_class=ReplicaConnection,
            min_size=1,
            max_size=size,
            timeout=CONNECTION_S,
            open=False,
            check=_check,
            configure=self._configure,
            reconnect_timeout=RECONNECT_S,
            reconnect_failed=lambda _: on_failure("no connection"),
            kwargs=CONNECTION_OPTIONS
            | {"options": f"-c statement_timeout={round(READ_S * 2000)} -c default_transaction_read_only=on"},
        )

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[ReplicaConnection]:
        """A connection for the read of this thread.

        Raises:
            ReplicaBehind: its server has not replayed what the read must see.
            ReplicaUnusable: it is no replica of the primary.
        """
        with super().connection(timeout) as connection:
            reading = READING.get()
            required = reading.required if reading else ()
            state, now = connection.state, time.monotonic()
            if state is None or now - connection.asked_at > VERIFIED_FOR_S or not has_replayed(state, required):
                connection.state = None  # until it is verified
                state = read_state(connection)
                self._verify(state)
                connection.state, connection.asked_at = state, now
                if not has_replayed(state, required):
                    raise ReplicaBehind
            yield connection

    def _configure(self, connection: ReplicaConnection) -> None:
        connection.on_half_open = self.drain  # the others are half-open too
        note_layout(connection)


def has_replayed(state: ServerState, required: Sequence[Position]) -> bool:
    """Whether a replica in this state has replayed all of these positions."""
    return all(position.reached_by(state.position) for position in required)


def _check(connection: psycopg.Connection[Any]) -> None:
    if not quiet(connection):
        ConnectionPool.check_connection(connection)
