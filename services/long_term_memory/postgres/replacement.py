"""Replacement: a second table that is made like `memories`, filled by its user, and put in the place of `memories`.

What is in the catalog (indexes, constraints, rights, options, the sequence) is carried over by its definition there, so
that a new migration needs no change here. `memories` may be one table, or be partitioned by a hash of the user.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from psycopg import Connection, errors, sql
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.foreign_keys import HASHED_REFERENCE
from services.long_term_memory.postgres.index_definitions import PREFIX, Definition, attach_index, partition_index
from services.long_term_memory.postgres.layout import is_like_memories, partitions_of
from services.long_term_memory.postgres.locking import until_locked
from services.long_term_memory.postgres.own_objects import grant, own_objects, rights_of
from services.runtime.errors import ReplacementRefused

#: An index row of PostgreSQL holds 2,704 bytes; larger vectors stay in the table.
MAX_INDEXED_DIMENSIONS: Final = 480

_ANOTHER_OWNER = (
    "SELECT relowner::regrole::text FROM pg_class"
    " WHERE oid = 'memories'::regclass AND NOT pg_has_role(relowner, 'USAGE')"
)
_INDEXES_OF = (
    "SELECT relname::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE indrelid = to_regclass(%s) ORDER BY relname"
)


class Replacement:
    """The table `memories_next`.

    Args:
        connection: in autocommit mode, without a statement time-out.
        dimensions: of its vectors; None for those of `memories`.
        partitions: how many partitions it has, 0 for a table that is not partitioned, but has the distribution column
            in its keys; None for a table like `memories`, whatever that is.
    """

    def __init__(
        self, connection: Connection[TupleRow], dimensions: int | None = None, partitions: int | None = None
    ) -> None:
        self._connection = connection
        self._dimensions = dimensions
        self._partitions = partitions

    def create(self) -> None:
        """Make the table and its primary key; of a partitioned one its unique keys too, which it cannot get later.

        Raises:
            ReplacementRefused: something of the operator's depends on `memories`, or another role owns it.
        """
        for (owner,) in self._connection.execute(_ANOTHER_OWNER).fetchall():
            raise ReplacementRefused(
                f"the table memories belongs to the role {owner}: run it as that role or a superuser"
            )
        self._check_own_objects()
        number = len(partitions_of(self._connection)) if self._partitions is None else self._partitions
        options = self._options()
        by_hash = sql.SQL(" PARTITION BY HASH (user_hash)" if number else "")
        self._execute(
            "CREATE TABLE memories_next (LIKE memories INCLUDING GENERATED INCLUDING DEFAULTS INCLUDING CONSTRAINTS"
            " INCLUDING STORAGE){by_hash}",
            by_hash=by_hash,
        )
        names = [f"{PREFIX}memories_{place:02}" for place in range(number)]
        for place, name in enumerate(names):
            self._execute(
                "CREATE TABLE {name} PARTITION OF memories_next FOR VALUES WITH (MODULUS {number}, REMAINDER {place})",
                name=sql.Identifier(name),
                number=sql.Literal(number),
                place=sql.Literal(place),
            )
        for name in (names or ["memories_next"]) if options else ():
            self._execute("ALTER TABLE {name} SET ({options})", name=sql.Identifier(name), options=options)
        if self._dimensions is not None:
            self._execute(
                "ALTER TABLE memories_next ALTER COLUMN vector TYPE halfvec({})", sql.Literal(self._dimensions)
            )
        if self._partitions is not None:
            self._execute("ALTER TABLE memories_next ALTER COLUMN user_hash DROP DEFAULT")
        for index in self._definitions():
            if index.constraint == "p" or (index.constraint and number):
                kind = "PRIMARY KEY" if index.constraint == "p" else "UNIQUE"
                self._execute(
                    f"ALTER TABLE memories_next ADD CONSTRAINT {{name}} {kind} {index.keys}",
                    name=sql.Identifier(index.next_name),
                )
        rights = rights_of(self._connection, "memories")
        for name in ("memories_next", *names):
            grant(self._connection, rights, name)
        self.copy_owner("memories_next", *names)

    def build_indexes(self, *, concurrently: bool = True) -> None:
        """Make the indexes of `memories` on this table; resumable where that is done concurrently with writers."""
        partitions = partitions_of(self._connection, "memories_next")
        for index in self._definitions():
            if index.constraint and (index.constraint == "p" or partitions):
                continue
            if partitions:
                self._build_partitioned(index, partitions, concurrently=concurrently)
            else:
                self._build(index, index.next_name, "memories_next", concurrently=concurrently)

    def replace(self) -> None:
        """Put this table in the place of `memories`, in the transaction of the connection, which has locked both.

        Raises:
            ReplacementRefused: something of the operator's depends on `memories`, or that has got another column.
        """
        self._check_own_objects()
        if not is_like_memories(self._connection):
            raise ReplacementRefused(
                "a newer release has changed the table memories meanwhile: run it again, with that"
            )
        indexes = self._definitions()
        references = self._connection.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = 'memories'::regclass AND contype = 'f'"
        ).fetchall()
        row = self._connection.execute("SELECT last_value + is_called::int FROM memories_number_seq").fetchone()
        partitions = partitions_of(self._connection, "memories_next")
        rights = rights_of(self._connection, "memories_number_seq")
        try:
            self._execute("DROP TABLE memories")
        except errors.DependentObjectsStillExist as error:
            raise ReplacementRefused.of(str(error.diag.message_detail)) from error
        self._execute("ALTER TABLE memories_next RENAME TO memories")
        for index in indexes:
            old, new = sql.Identifier(index.next_name), sql.Identifier(index.name)
            if index.constraint == "u" and not partitions:
                statement = "ALTER TABLE memories ADD CONSTRAINT {new} UNIQUE USING INDEX {old}"
            else:
                statement = "ALTER INDEX {old} RENAME TO {new}"  # that of a constraint renames the constraint
            self._execute(statement, old=old, new=new)
        for partition in partitions:
            for (name,) in self._connection.execute(_INDEXES_OF, (partition,)).fetchall():
                if name.startswith(PREFIX):
                    self._rename("INDEX", name)
            self._rename("TABLE", partition)
        for name, definition in references:
            # Checked afterwards, without the lock.
            for table in partitions_of(self._connection) or ["memories"]:
                self._execute(
                    "ALTER TABLE {table} ADD CONSTRAINT {name} {definition} NOT VALID",
                    table=sql.Identifier(table),
                    name=sql.Identifier(name),
                    definition=sql.SQL(self._reference(definition)),
                )
        self._execute(
            "ALTER TABLE memories ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY"
            " (SEQUENCE NAME memories_number_seq START WITH {})",
            sql.Literal(row[0] if row else 1),
        )
        grant(self._connection, rights, "memories_number_seq")

    def copy_owner(self, *tables: str) -> None:
        """Give tables the owner of `memories`."""
        statement = "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'memories'::regclass"
        for (owner,) in self._connection.execute(statement).fetchall():
            for table in tables:
                self._execute("ALTER TABLE {} OWNER TO {}", sql.Identifier(table), sql.SQL(owner))

    def _check_own_objects(self) -> None:
        if own := own_objects(self._connection):
            raise ReplacementRefused.of(", ".join(own))

    def _build_partitioned(self, index: Definition, partitions: list[str], *, concurrently: bool) -> None:
        """Make an index of each partition, of which PostgreSQL makes only single ones concurrently with writers."""
        if not self._is_relation(index.next_name):
            self._create_index(index, index.next_name, "ONLY memories_next")
        for partition in partitions:
            name = partition_index(partition, index.name)
            attached = self._connection.execute(
                "SELECT FROM pg_inherits WHERE inhrelid = to_regclass(%s)", (name,)
            ).fetchone()
            if attached is None:
                self._build(index, name, partition, concurrently=concurrently)
                until_locked(partial(attach_index, self._connection, index.next_name, name))

    def _build(self, index: Definition, name: str, table: str, *, concurrently: bool) -> None:
        """Make an index, unless an earlier run has."""
        valid = self._connection.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", (name,)
        ).fetchone()
        if valid != (True,):
            mode = "CONCURRENTLY " if concurrently else ""
            self._execute(f"DROP INDEX {mode}IF EXISTS {{}}", sql.Identifier(name))
            self._create_index(index, name, table, mode)

    def _create_index(self, index: Definition, name: str, table: str, mode: str = "") -> None:
        unique = "UNIQUE " if index.constraint else ""
        # A definition may have braces of its own, as in an expression.
        self._connection.execute(f"CREATE {unique}INDEX {mode}{name} ON {table}{self._method(index)}")

    def _method(self, index: Definition) -> str:
        """The definition from USING on, with the vector in it where that fits."""
        if self._dimensions is None:
            return index.method
        included = "head, terms, vector" if self._dimensions <= MAX_INDEXED_DIMENSIONS else "head, terms"
        return re.sub(r"INCLUDE \(head, terms(?:, vector)?", f"INCLUDE ({included}", index.method)

    def _definitions(self) -> list[Definition]:
        """The indexes that the table has in the end: those of `memories`, as migrations have made them."""
        rows = self._connection.execute(
            "SELECT relname, pg_get_indexdef(indexrelid), contype::text FROM pg_index"
            " JOIN pg_class ON pg_class.oid = indexrelid"
            " LEFT JOIN pg_constraint ON conindid = indexrelid AND contype IN ('p', 'u')"
            " AND conrelid = indrelid WHERE indrelid = 'memories'::regclass ORDER BY relname"
        )
        found = [Definition(*row) for row in rows.fetchall()]
        return found if self._partitions is None else [index.hashed() for index in found]

    def _reference(self, definition: str) -> str:
        """A foreign key, which contains the distribution column where the table is distributed by it."""
        if self._partitions is None:
            return definition
        return definition.replace("(user_number) REFERENCES users(number)", HASHED_REFERENCE)

    def _options(self) -> sql.Composable | None:
        """The storage options of `memories`, which LIKE leaves out, and a partitioned table has in its partitions."""
        table = next(iter(partitions_of(self._connection)), "memories")
        statement = "SELECT reloptions FROM pg_class WHERE oid = to_regclass(%s)"
        row = self._connection.execute(statement, (table,)).fetchone()
        return sql.SQL(", ").join(map(sql.SQL, row[0])) if row and row[0] else None

    def _is_relation(self, name: str) -> bool:
        return self._connection.execute("SELECT to_regclass(%s) IS NOT NULL", (name,)).fetchone() == (True,)

    def _rename(self, kind: str, name: str) -> None:
        old, new = sql.Identifier(name), sql.Identifier(name.removeprefix(PREFIX))
        self._execute(f"ALTER {kind} {{}} RENAME TO {{}}", old, new)

    def _execute(self, statement: str, *args: sql.Composable, **kwargs: sql.Composable | None) -> None:
        self._connection.execute(sql.SQL(statement).format(*args, **kwargs))
