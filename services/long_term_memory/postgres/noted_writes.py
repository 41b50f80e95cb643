"""NotedWrites: notes after each write of users where it is in the write-ahead log, for readers of a replica."""

from __future__ import annotations

from collections.abc import Callable, Collection

from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.pool import database_errors
from services.long_term_memory.postgres.server_state import written_position
from services.runtime.write_notes import WRITE_TIMEOUT_S, WriteNotes


class NotedWrites:
    """Notes where the writes of users are in the log, for readers of the replica.

    Args:
        pool: of the primary.
        redis_url: of the pipeline's Redis.
    """

    def __init__(self, pool: ConnectionPool, redis_url: str) -> None:
        self._pool = pool
        self._notes = WriteNotes(redis_url, WRITE_TIMEOUT_S)
        self._notes.check()

    def __call__(self, users: Collection[str]) -> None:
        """Note that these users, by their encoded ids, have written; after the commit, and before the answer.

        Raises:
            Unavailable: it is not noted, and the write must not be answered.
        """
        if not users:
            return
        with database_errors(), self._pool.connection() as connection:
            position = written_position(connection)
        self._notes.note(users, position)


#: Notes the writes of users, by their encoded ids.
NoteWrites = Callable[[Collection[str]], None]


def no_notes(_: Collection[str]) -> None:
    """Note nothing: there is no replica."""
