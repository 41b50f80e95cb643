"""Replica: a streaming replica that answers reads, for each user once it has replayed that user's last write.

Whatever is wrong with it, the primary answers: where the replica is behind, down, frozen, promoted or another database.
docs/adr/0022 says why it is done this way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, cast

import psycopg
import redis
from keepsake_client.protocol import COUNTERS
from psycopg_pool import ConnectionPool, PoolTimeout

from services.long_term_memory.postgres.replica_pool import (
    READ_S,
    READING,
    Reading,
    ReplicaBehind,
    ReplicaPool,
    has_replayed,
)
from services.long_term_memory.postgres.server_state import ReplicaUnusable, ServerState, read_state
from services.runtime.availability import Availability
from services.runtime.backoff import wait_s
from services.runtime.counters import PendingCounts
from services.runtime.periodic import PeriodicThread
from services.runtime.redis import connect
from services.runtime.write_notes import NOTE_TTL_S, READ_TIMEOUT_S, Position, WriteNotes

#: Between two looks at the primary and the replica.
INTERVAL_S: Final = 1.0
#: The replica must have replayed what the primary had at the floor, which is so old at least; twice that at most while
#: the primary answers. A user without a note has not written for longer, so the replica has all of that user's.
FLOOR_INTERVAL_S: Final = NOTE_TTL_S / 3
FLOOR_MAX_AGE_S: Final = NOTE_TTL_S * 0.9
#: A replica on a later timeline follows a server that was promoted; it is no replica of a primary that still answers,
#: as one has done within this time.
ANSWERED_S: Final = 5.0
#: A replica that has not replayed in this time what a process found on the primary at its start is said to be down.
CATCH_UP_S: Final = 60.0

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Sample:
    """The state of the primary at a time of the monotonic clock."""

    state: ServerState
    at: float


class Replica:
    """Reads of a replica, with the primary for whatever it cannot answer.

    Args:
        primary: the pool of the primary.
        url: of the replica.
        size: how many connections to it at most.
        redis_url: of the pipeline's Redis, where the notes are.
        interval_s: between two looks at both servers.
    """

    def __init__(
        self, primary: ConnectionPool, url: str, size: int, redis_url: str, interval_s: float = INTERVAL_S
    ) -> None:
        self._primary = primary
        self._notes = WriteNotes(redis_url, READ_TIMEOUT_S, self._forget_floor)
        self._client = connect(redis_url, READ_TIMEOUT_S)
        self._counts = PendingCounts(COUNTERS)
        self._availability = Availability("replica")
        self._lock = threading.Lock()
        self._usable = False
        self._floor: _Sample | None = None
        self._next_floor: _Sample | None = None
        self._latest: _Sample | None = None
        self._floors_forgotten = 0
        self._failures = 0
        self._retry_at = 0.0
        #: How many bytes of the log the replica was behind at the last look; None where it cannot be used.
        self.lag_bytes: int | None = None
        #: For those who read within `read`; a connection of it may raise `ReplicaBehind`.
        self.pool = ReplicaPool(url, size, self._verify, self._availability.down)
        self._thread = PeriodicThread("replica", self.look, "replica_look_failed", lambda: None, interval_s)

    def open(self) -> None:
        """Begin; the primary answers until the replica was looked at.

        Raises:
            CannotStart: Redis does not permit the notes.
        """
        self._notes.check()
        self.pool.open()
        self._thread.start()
        self._thread.wake()

    def close(self) -> None:
        """Close the connections."""
        self._thread.stop()
        self._thread.join(timeout=2)
        self.pool.close()
        self._counts.flush(self._client)
        self._notes.close()
        self._client.close()

    def read(
        self, users: Collection[str], on_replica: Callable[[], T], on_primary: Callable[[], T], left_s: float
    ) -> T:
        """Read the replica where it has the last writes of these users, and the primary otherwise.

        Args:
            users: encoded ids of all whose data is read.
            on_replica: reads by `pool`; whatever it does is done again by `on_primary` where the replica fails.
            left_s: the seconds that the read has, at either of them.
        """
        began = time.monotonic()
        required = self._required(users)
        if required is not None:
            token = READING.set(Reading(required, began + min(READ_S, left_s / 2)))
            try:
                found = on_replica()
            except ReplicaBehind:
                self._counts.count("replica_behind")
            except (psycopg.Error, PoolTimeout, ReplicaUnusable) as error:
                self._counts.count("replica_failed")
                if not _conflict(error):
                    self._usable = False  # until it was looked at, which also says what is wrong
                    self._thread.wake()
            else:
                self._counts.count("replica_reads")
                return found
            finally:
                READING.reset(token)
        return on_primary()

    def look(self) -> None:
        """Look at the primary and the replica, and write the counts."""
        self._look_at_primary()
        if self._latest is not None and time.monotonic() >= self._retry_at:
            self._look_at_replica(self._latest)
        self._counts.flush(self._client)

    def _required(self, users: Collection[str]) -> list[Position] | None:
        """The positions that the replica must have replayed; None where the primary is to be read."""
        if not self._usable:
            return None
        try:
            notes = self._notes.latest(users)
        except (redis.RedisError, ValueError):
            self._counts.count("replica_failed")
            return None
        floor = self._floor  # after the notes: a new connection to Redis has forgotten it
        if floor is None or time.monotonic() - floor.at > FLOOR_MAX_AGE_S:
            return None
        return [floor.state.position, *notes]

    def _forget_floor(self) -> None:
        """Have the replica replay all that was written until now: Redis may have lost the notes of it."""
        with self._lock:
            self._floors_forgotten += 1
            self._floor = self._next_floor = None

    def _look_at_primary(self) -> None:
        """Note the state of the primary, as the floor where that is due; one that does not answer has logged it."""
        forgotten, now = self._floors_forgotten, time.monotonic()
        try:
            with self._primary.connection(timeout=INTERVAL_S) as connection:
                state = read_state(connection)
        except (psycopg.Error, PoolTimeout):
            return
        sample = _Sample(state, now)
        with self._lock:
            self._latest = sample
            if state.in_recovery or forgotten != self._floors_forgotten:
                return
            changed = self._floor is not None and self._floor.state.position[:2] != state.position[:2]
            if self._floor is None or self._next_floor is None or changed:  # after a failover, it may have less
                self._floor = self._next_floor = sample
            elif now - self._next_floor.at > FLOOR_INTERVAL_S:
                self._floor, self._next_floor = self._next_floor, sample

    def _look_at_replica(self, latest: _Sample) -> None:
        try:
            with self.pool.connection(timeout=READ_S) as connection:
                state = read_state(connection)
            self._verify(state)
            self._check_lag(state)
        except (psycopg.Error, PoolTimeout, ReplicaUnusable) as error:
            self._usable, self.lag_bytes = False, None
            self._failures += 1
            self._retry_at = time.monotonic() + wait_s(self._failures)
            self._availability.down(_reason(error))
        else:
            self._failures = 0
            self.lag_bytes = max(0, latest.state.position.lsn - state.position.lsn)
            self._usable = True
            self._availability.up()

    def _check_lag(self, state: ServerState) -> None:
        floor, now = self._floor, time.monotonic()
        if floor and now - floor.at > CATCH_UP_S and not has_replayed(state, [floor.state.position]):
            raise ReplicaUnusable(f"it is more than {now - floor.at:.0f} s behind")

    def _verify(self, state: ServerState) -> None:
        latest = self._latest
        if latest is None:
            raise ReplicaUnusable("the primary has not answered yet")
        state.check_standby_of(latest.state)
        later = state.position.timeline > latest.state.position.timeline
        if later and time.monotonic() - latest.at < ANSWERED_S:
            raise ReplicaUnusable("it follows another server, which was promoted, while the primary goes on")


def _conflict(error: BaseException) -> bool:
    """Whether the replica has ended a statement because what it read was removed on the primary."""
    return isinstance(error, psycopg.errors.SerializationFailure | psycopg.errors.DeadlockDetected)


def _reason(error: BaseException) -> str:
    if isinstance(error, PoolTimeout):
        return "no connection"
    if isinstance(error, psycopg.Error):
        return error.diag.message_primary or f"no answer: {type(error).__name__}"
    return str(error)


class Reads(Generic[S]):
    """What reads memories, on the primary and, where there is one, on the replica.

    Args:
        primary: what reads the primary.
        make: makes it for another pool.
    """

    def __init__(self, primary: S, make: Callable[[ConnectionPool], S], replica: Replica | None) -> None:
        self.primary = primary
        self._replica = replica
        self._on_replica = primary if replica is None else make(cast(ConnectionPool, replica.pool))

    def read(self, users: Collection[str], work: Callable[[S], T], left_s: float = READ_S * 2) -> T:
        """Do the work of a read; twice where the replica fails.

        Args:
            users: encoded ids of all whose data is read.
            left_s: the seconds that it has.
        """
        if self._replica is None:
            return work(self.primary)
        return self._replica.read(users, lambda: work(self._on_replica), lambda: work(self.primary), left_s)
