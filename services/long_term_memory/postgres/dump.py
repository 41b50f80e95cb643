"""Dump: all that a database holds, read in one snapshot, and loaded into an empty database in one transaction.

By PostgreSQL's own COPY in its binary format, table by table and column by column, so nothing but the driver is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import Connection, IsolationLevel, sql
from psycopg.rows import TupleRow

from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.postgres.embedder_record import drop_new_vectors, read_record
from services.long_term_memory.postgres.index_definitions import create_as_defined
from services.long_term_memory.postgres.partitioning import (
    PARTITIONS,
    PARTITIONS_STEP,
    USER_HASH,
    is_hashed,
    partition_at_once,
)
from services.long_term_memory.postgres.pool import APPLICATION_NAME, MIGRATION_LOCK, check_connects, database_errors
from services.long_term_memory.postgres.preconditions import applied_steps, schema_errors, step_files
from services.long_term_memory.postgres.schema import migrate, read_migrations, table_dimensions
from services.long_term_memory.postgres.tables import Table, created_tables, sequence_values, stored_tables
from services.runtime.errors import BackupRefused, RestoreRefused

#: What the migrations themselves keep, and what any start writes: no content.
_MIGRATIONS, _RECORDS = "schema_migrations", "embedders"
_INDEXES = (
    "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
    " WHERE indrelid = ANY(SELECT to_regclass(name) FROM unnest(%s::text[]) AS name)"
    " AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)"
)
_WORKERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
    " AND pid <> pg_backend_pid()"
)


class Snapshot:
    """All that a database holds at one moment.

    Args:
        connection: in a transaction of REPEATABLE READ.
    """

    def __init__(self, connection: Connection[TupleRow]) -> None:
        self._connection = connection
        self.version = applied_steps(connection, len(step_files()))
        # As the tables of a new database are, whatever those of this one are: their rows can be loaded into such a one.
        self._unhashed = self.version >= PARTITIONS_STEP and not is_hashed(connection)
        self.tables = [self._as_new(table) for table in stored_tables(connection)]
        self.dimensions = table_dimensions(connection) or 0
        self.embedder = _embedder(connection)
        self.sequences = sequence_values(connection, self.tables)

    def copy(self, table: Table) -> Iterator[bytes]:
        """The rows of a table in PostgreSQL's binary format."""
        statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(self._select(table))
        with self._connection.cursor() as cursor, cursor.copy(statement) as rows:
            yield from map(bytes, rows)

    def _as_new(self, table: Table) -> Table:
        derived = {"user_hash"} if self._unhashed and table.name == "users" else set()
        return Table(table.name, tuple(name for name in table.columns if name not in derived))

    def _select(self, table: Table) -> sql.Composed:
        columns: list[sql.Composable] = [sql.Identifier(table.name, name) for name in table.columns]
        joined: sql.Composable = table.identifier
        if self._unhashed and table.name == "memories":
            columns[table.columns.index("user_hash")] = sql.SQL(USER_HASH)
            joined = sql.SQL("memories JOIN users ON users.number = user_number")
        return sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(columns), joined)

    def count(self, table: Table) -> int:
        """How many rows a table has."""
        row = self._connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table.identifier)).fetchone()
        return int(row[0]) if row else 0


@contextmanager
def snapshot(database_url: str) -> Iterator[Snapshot]:
    """A snapshot of a database, which its users write to meanwhile.

    Raises:
        BackupRefused: there is nothing of Keepsake in it.
        CannotStart, Unavailable: it cannot be used, or does not answer.
    """
    check_connects(database_url)
    with database_errors(), schema_errors(), psycopg.connect(database_url) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        tables = _present(connection)
        connection.rollback()
        if _MIGRATIONS not in tables:
            raise BackupRefused("there is nothing to back up: no worker has opened this database yet")
        # Before the snapshot, which the first query takes: a migration that is under way ends first.
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(_names(tables)))
        yield Snapshot(connection)


class Loader:
    """Loads a dump into a database that is locked.

    Args:
        connection: in a transaction, which the caller commits.
        version: the schema version of the dump.
        dimensions: of its vectors.
        partitions: how many the table of memories gets.
    """

    def __init__(self, connection: Connection[TupleRow], version: int, dimensions: int, partitions: int) -> None:
        self._connection = connection
        self._dimensions = dimensions
        self._partitions = partitions
        present = _present(connection)
        if present:
            drop_new_vectors(connection)
            connection.execute(sql.SQL("DROP TABLE {}").format(_names(present)))
        migrate(connection, dimensions, read_migrations()[:version], partitions=partitions)
        if version >= PARTITIONS_STEP and not is_hashed(connection):  # an earlier release's worker is connected
            partition_at_once(connection, partitions)
        self._tables = {table.name: table for table in stored_tables(connection)}
        # Those of a constraint stay. The others are made once all rows are there: faster, and smaller.
        self._indexes = connection.execute(_INDEXES, (list(self._tables),)).fetchall()
        for name, _ in self._indexes:
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.SQL(name)))

    def load(self, name: str, columns: Sequence[str], chunks: Iterable[bytes]) -> int:
        """Load the rows of one table; how many.

        Raises:
            RestoreRefused: the schema of that version has no such table or column.
        """
        table = self._tables.get(name)
        if unknown := set(columns) - set(table.columns if table else ()):
            raise RestoreRefused(f"the file has {name}.{min(unknown)}, which is no column of Keepsake's")
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(sql.Identifier(name), _names(columns))
        with self._connection.cursor() as cursor:
            with cursor.copy(statement) as rows:
                for chunk in chunks:
                    rows.write(chunk)
            return cursor.rowcount

    def finish(self, sequences: Mapping[str, Mapping[str, int]], *, keep_schema: bool = False) -> None:
        """Set the sequences, make the indexes, and apply the migrations that the dump lacks.

        Args:
            keep_schema: applies none.
        """
        for table, columns in sequences.items():
            for column, last in columns.items():
                self._connection.execute("SELECT setval(pg_get_serial_sequence(%s, %s), %s)", (table, column, last))
        for name, definition in self._indexes:
            create_as_defined(self._connection, name, definition)
        if keep_schema:
            return
        migrate(self._connection, self._dimensions, read_migrations())
        if not is_hashed(self._connection):  # the dump is of a release before
            partition_at_once(self._connection, self._partitions)
        # Of a run of `ltm reembed` that was under way: its vectors are not in the dump.
        self._connection.execute("DELETE FROM embedders WHERE vector_column <> 'vector'")


@contextmanager
def loading(
    database_url: str,
    version: int,
    dimensions: int,
    embedder: EmbedderIdentity | None,
    partitions: int = PARTITIONS,
    *,
    keep_schema: bool = False,
) -> Iterator[Loader]:
    """A loader into an empty database, in one transaction that the end of the block commits.

    Args:
        version: the schema version of the dump.
        dimensions: of its vectors.
        embedder: the one that they are of, where that is known.
        partitions: how many the table of memories gets.
        keep_schema: leaves what an earlier release computed, for that release.

    Raises:
        RestoreRefused: the database is not empty, or workers with another embedder use it.
        CannotStart, Unavailable: it cannot be used, or does not answer.
    """
    check_connects(database_url)
    with database_errors(), schema_errors(), psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET statement_timeout = 0")
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
            if present := _present(connection):
                connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(_names(present)))
            _check_empty(connection)
            _check_workers(connection, embedder)
            yield Loader(connection, version, dimensions, partitions)
        if not keep_schema:
            migrate(connection, dimensions)  # renews what an earlier release computed
        for table in _present(connection):
            connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(table)))


def check_empty(database_url: str) -> None:
    """Check that a database holds nothing of Keepsake's.

    Raises:
        RestoreRefused: it does.
        CannotStart, Unavailable: it cannot be used, or does not answer.
    """
    check_connects(database_url)
    with database_errors(), schema_errors(), psycopg.connect(database_url) as connection:
        _check_empty(connection)


def _check_empty(connection: Connection[TupleRow]) -> None:
    filled = [
        name
        for name in _present(connection)
        if name not in (_MIGRATIONS, _RECORDS)
        and connection.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(sql.Identifier(name))).rowcount
    ]
    if filled:
        raise RestoreRefused(
            f"the database is not empty, there are rows in {', '.join(filled)}: restore into a new one"
            " (another --data-dir or DATABASE_URL)"
        )


def _check_workers(connection: Connection[TupleRow], embedder: EmbedderIdentity | None) -> None:
    """Check that workers which are running, and have opened the empty database, embed as the dump's did."""
    running = connection.execute(_WORKERS, (APPLICATION_NAME,)).fetchone()
    theirs = _embedder(connection)
    if running != (0,) and embedder and theirs and not theirs.same_vectors(embedder):
        raise RestoreRefused(
            f"the memories of the file were embedded by {embedder}, and the running workers embed by {theirs}:"
            " stop them, restore, and start them with that embedder, or run `ltm reembed` after it"
        )


def _embedder(connection: Connection[TupleRow]) -> EmbedderIdentity | None:
    found = connection.execute("SELECT to_regclass('embedders') IS NOT NULL").fetchone()
    return read_record(connection, "vector") if found == (True,) else None


def _present(connection: Connection[TupleRow]) -> list[str]:
    """The names of Keepsake's tables in a database, that of the migrations included."""
    rows = connection.execute(
        "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL ORDER BY name",
        ([*created_tables(), _MIGRATIONS],),
    )
    return [name for (name,) in rows.fetchall()]


def _names(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
