"""ServerState: which database a connection has reached, and how far in the write-ahead log its server is."""

from __future__ import annotations

from typing import NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow

from services.runtime.write_notes import Position

# What is flushed: a commit is, before it returns, and replicas are sent nothing else. What else was inserted behind it
# may stay unflushed for as long as the primary is idle. A commit with synchronous_commit = off returns before.
_WRITTEN = (
    "(SELECT CASE current_setting('synchronous_commit') WHEN 'off' THEN pg_current_wal_insert_lsn()"
    " ELSE pg_current_wal_flush_lsn() END)"
)
# Any role may call these functions. What a standby receives it tells to members of pg_monitor alone; the others learn
# of its new timeline by its next restartpoint.
_STATE = (
    "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()),"  # noqa: S608 - constants
    " (SELECT oid::bigint FROM pg_database WHERE datname = current_database()), 'memories'::regclass::oid::bigint,"
    " (SELECT max(version) FROM schema_migrations),"
    " (SELECT concat_ws(' ', provider, model, dimensions, projection) FROM embedders WHERE vector_column = 'vector'),"
    " CASE WHEN pg_is_in_recovery() THEN greatest((SELECT timeline_id FROM pg_control_checkpoint()),"
    " (SELECT min_recovery_end_timeline FROM pg_control_recovery()), (SELECT received_tli FROM pg_stat_wal_receiver))"
    " ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END,"
    f" (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE {_WRITTEN} END - '0/0')::bigint"
)
# Of a writer, after its commit.
_POSITION = (
    "SELECT system_identifier, ('x' || left(pg_walfile_name(lsn), 8))::bit(32)::int, (lsn - '0/0')::bigint"  # noqa: S608 - constants
    f" FROM pg_control_system(), LATERAL {_WRITTEN} AS log (lsn)"
)
_UNSIGNED = 2**64 - 1


class ReplicaUnusable(Exception):
    """What DATABASE_READ_URL names is no replica of the database of DATABASE_URL, or not in the same state."""


class ServerState(NamedTuple):
    """The state of a server, as one statement found it.

    Args:
        in_recovery: whether it is a standby.
        database, memories: PostgreSQL's numbers of the database and of the table of memories, the same on a standby.
        schema: the number of the last migration.
        embedder: that filled the vectors.
        position: what a standby has replayed, and what any other server has written.
    """

    in_recovery: bool
    database: int
    memories: int
    schema: int
    embedder: str | None
    position: Position

    def check_standby_of(self, primary: ServerState) -> None:
        """Check that this is a standby of the primary's system, with the same database in the same state.

        Raises:
            ReplicaUnusable: it is not, and why.
        """
        if not self.in_recovery:
            raise ReplicaUnusable("it is no standby: it was promoted, or DATABASE_READ_URL names a primary")
        if self.position.system != primary.position.system:
            raise ReplicaUnusable("it is a standby of another PostgreSQL than that of DATABASE_URL")
        if (self.database, self.memories) != (primary.database, primary.memories):
            raise ReplicaUnusable("DATABASE_READ_URL names another database or schema than DATABASE_URL")
        if self.schema != primary.schema:
            raise ReplicaUnusable(f"its schema is at step {self.schema}, that of the primary at {primary.schema}")
        if self.embedder != primary.embedder:
            raise ReplicaUnusable("its vectors are of another embedder than those of the primary")


def read_state(connection: Connection[TupleRow]) -> ServerState:
    """The state of the server of a connection."""
    row = connection.execute(_STATE).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM
    in_recovery, system, database, memories, schema, embedder, timeline, lsn = row
    position = Position(system & _UNSIGNED, timeline, lsn or 0)
    return ServerState(in_recovery, database, memories, schema or 0, embedder, position)


def written_position(connection: Connection[TupleRow]) -> Position:
    """A position behind everything that the primary has committed."""
    row = connection.execute(_POSITION).fetchone()
    assert row is not None  # noqa: S101 - neither function returns no row
    system, timeline, lsn = row
    return Position(system & _UNSIGNED, timeline, lsn)
