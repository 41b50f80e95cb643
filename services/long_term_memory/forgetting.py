"""Forgetting: deletes everything that is kept of a user, in PostgreSQL and in Redis."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Protocol

import structlog
from keepsake_client.protocol import MemoryUpdateMessage, encode_user_id
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.deletions import DIGEST, forgotten_after, lock_user, remove_empty_owners
from services.long_term_memory.postgres.history import remove_last_messages
from services.long_term_memory.postgres.noted_writes import NoteWrites, no_notes
from services.long_term_memory.postgres.pool import database_errors
from services.long_term_memory.removal import BATCH, add_tombstones, remove
from services.long_term_memory.storing import of_update

# What arrived after that was said after, and so are the facts that it says. Memories of earlier releases and of imports
# have no such time. Facts first, so that as many are deleted as are counted.
_NUMBERS = (
    "SELECT m.number FROM memories m JOIN users u ON u.number = m.user_number WHERE u.user_id = %(user)s"
    " AND CASE u.kind WHEN 'message' THEN m.arrived_at IS NULL OR m.arrived_at <= %(at)s"
    " ELSE NOT EXISTS (SELECT FROM fact_evidence JOIN memories said ON said.number = memory_number"
    " WHERE fact_number = m.number AND said.arrived_at > %(at)s) END"
    " ORDER BY u.kind = 'message', m.number"
)

log = structlog.get_logger()


class Eraser(Protocol):
    """Erases what another store than the database keeps of users, as `services.runtime.erasure` does of Redis."""

    def erase(self, user_id: str, before: float) -> Iterable[MemoryUpdateMessage]:
        """Erase what arrived of a user before that time, in seconds since 1970; the events that were among it."""


class Forgetting:
    """Deletes everything that is kept of one user.

    First of all the database notes that the user is forgotten, so that nothing is stored any more that arrived before;
    then the memories are deleted in batches, then what is kept elsewhere. Whatever interrupts it, the same request
    does the rest. Idempotent, also of two at once.

    Args:
        eraser: of what is kept besides the database.
        batch: memories that are deleted by one transaction.
        note: of the writes of users.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        eraser: Eraser | None = None,
        batch: int = BATCH,
        *,
        note: NoteWrites = no_notes,
    ) -> None:
        self._note = note
        self._pool = pool
        self._eraser = eraser
        self._batch = batch

    def forget(self, user_id: str, at: float, *, dry_run: bool = False) -> int:
        """Delete everything of the user that arrived until then; how many memories there were.

        Args:
            at: when the request arrived, in seconds since 1970.
            dry_run: only count the memories.

        Raises:
            Unavailable: the database does not answer.
            redis.RedisError: Redis does not answer, or does not permit it.
        """
        user, moment = encode_user_id(user_id), datetime.fromtimestamp(at, UTC)
        with database_errors():
            if dry_run:
                with self._pool.connection() as connection:
                    return len(connection.execute(_NUMBERS, {"user": user, "at": moment}).fetchall())
            with self._pool.connection() as connection:
                _note(connection, user, moment)
                numbers = _memories(connection, user, moment)
            count = 0
            for begin in range(0, len(numbers), self._batch):
                with self._pool.connection() as connection:
                    count += remove(connection, numbers[begin : begin + self._batch])
        erased = [] if self._eraser is None else [of_update(event) for event in self._eraser.erase(user_id, at)]
        with database_errors(), self._pool.connection() as connection:
            # What was not indexed yet, and is handed over again, is found by nothing else.
            add_tombstones(connection, {i for event in erased for i in (event.id, event.event_id) if i})
            remove_empty_owners(connection, [user])
        self._note([user])
        log.info("user_forgotten", user_id=user_id, memories=count, erased_events=len(erased))
        return count


def _note(connection: Connection[TupleRow], user: str, at: datetime) -> None:
    """Note that the user is forgotten, and delete what is not found by its owner's row."""
    owner = {"user": user, "at": at}
    digest = DIGEST.format("%(user)s::text")
    with connection.transaction():
        lock_user(connection, user, alone=True)
        if forgotten_after(connection, user, at.timestamp()):
            return  # by an earlier delivery: a profile that is there now was written after it
        # It covers every earlier deletion of this user's, whose conditions may have contents.
        connection.execute(f"DELETE FROM deletions WHERE user_digest = {digest} AND deleted_at <= %(at)s", owner)  # noqa: S608 - constants
        connection.execute(
            f"INSERT INTO deletions (user_digest, everything, deleted_at) SELECT {digest}, true, %(at)s"  # noqa: S608 - constants
            f" WHERE NOT EXISTS (SELECT FROM deletions WHERE user_digest = {digest} AND everything)",
            owner,
        )
        for table in ("profiles", "profile_history"):
            connection.execute(f"DELETE FROM {table} WHERE user_id = %(user)s", owner)  # noqa: S608 - constants
        remove_last_messages(connection, user)


def _memories(connection: Connection[TupleRow], user: str, at: datetime) -> list[int]:
    """The numbers of the user's memories, once no insertion is in flight that has not seen the deletion."""
    with connection.transaction():
        connection.execute("SELECT number FROM users WHERE user_id = %s ORDER BY number FOR UPDATE", (user,))
        return [number for (number,) in connection.execute(_NUMBERS, {"user": user, "at": at}).fetchall()]
