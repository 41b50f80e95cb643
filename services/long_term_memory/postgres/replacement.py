"""Replacement: a second table that is made like `memories`, filled by its user, and put in the place of `memories`.

What is in the catalog (indexes, constraints, rights, options, the sequence) is carried over by its definition there, so
that a new migration needs no change here. `memories` may be one table, or be partitioned by a hash of the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from psycopg import Connection, errors, sql
from psycopg.rows import TupleRow

#: An index row of PostgreSQL holds 2,704 bytes; larger vectors stay in the table.
MAX_INDEXED_DIMENSIONS: Final = 480
#: Before the names of the second table's partitions and indexes, until the switch.
PREFIX: Final = "next_"
#: How long a switch waits for a lock before it lets those pass that wait behind it.
LOCK_TIMEOUT_MS: Final = 1_000
#: How often a foreign key of the partitions is given to the whole table, which waits for writers.
ATTEMPTS: Final = 30
#: `memories` and its partitions, as a condition on `pg_class`.
MEMORIES_TABLES: Final = (
    "(pg_class.oid = 'memories'::regclass OR pg_class.oid IN"
    " (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'memories'::regclass))"
)
#: Their size with their indexes, as an expression.
MEMORIES_BYTES: Final = f"(SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE {MEMORIES_TABLES})"  # noqa: S608 - constants

_PARTITIONS = (
    "SELECT relname::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
    " WHERE inhparent = to_regclass(%s) ORDER BY relname"
)
_INDEXES_OF = (
    "SELECT relname::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE indrelid = to_regclass(%s) ORDER BY relname"
)
_OF_PARTITIONS = (
    "SELECT conname, pg_get_constraintdef(pg_constraint.oid) FROM pg_constraint"
    " JOIN pg_inherits ON inhrelid = conrelid WHERE inhparent = 'memories'::regclass AND contype = 'f'"
    " AND conparentid = 0 GROUP BY 1, 2"
)
_HASHED_KEY = re.compile(r"\((user_number[^)]*)\)(?: INCLUDE \(([^)]*)\))?")


class Definition(NamedTuple):
    """One index of `memories`.

    Args:
        constraint: `p` or `u`, where it is that of a constraint.
    """

    name: str
    statement: str
    constraint: str | None

    @property
    def next_name(self) -> str:
        """The name of the second table's, until the switch."""
        return PREFIX + self.name

    @property
    def method(self) -> str:
        """The definition from USING on."""
        return self.statement[self.statement.index(" USING ") :]

    @property
    def keys(self) -> str:
        """The columns, in parentheses."""
        return self.method[self.method.index("(") : self.method.index(")") + 1]

    def hashed(self) -> Definition:
        """The same of a table that is distributed by `user_hash`: a unique key contains that, and searches read it."""
        if self.constraint:
            statement = self.statement.replace(self.keys, f"{self.keys[:-1]}, user_hash)")
        else:
            statement = _HASHED_KEY.sub(
                lambda found: f"({found[1]}) INCLUDE ({', '.join(filter(None, (found[2], 'user_hash')))})",
                self.statement,
            )
        return self._replace(statement=statement) if "user_hash" not in self.statement else self


def partitions_of(connection: Connection[TupleRow], table: str = "memories") -> list[str]:
    """The names of the partitions of a table; none of one that is not partitioned."""
    return [name for (name,) in connection.execute(_PARTITIONS, (table,)).fetchall()]


def partition_index(partition: str, index: str) -> str:
    """The name of a partition's part of an index of `memories`."""
    return f"{partition}_{index.removeprefix('memories_')}"


def attach_index(connection: Connection[TupleRow], index: str, part: str) -> None:
    """Make the index of a partition a part of that of the table."""
    statement = sql.SQL("ALTER INDEX {} ATTACH PARTITION {}")
    connection.execute(statement.format(sql.Identifier(index), sql.Identifier(part)))


def create_as_defined(connection: Connection[TupleRow], name: str, definition: str) -> None:
    """Make an index by its definition in the catalog, of a partitioned table with those of its partitions."""
    connection.execute(definition)
    if " ON ONLY " in definition:
        unique = "UNIQUE " if definition.startswith("CREATE UNIQUE") else ""
        for partition in partitions_of(connection):
            part = partition_index(partition, name)
            connection.execute(f"CREATE {unique}INDEX {part} ON {partition}{definition[definition.index(' USING ') :]}")
            attach_index(connection, name, part)


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
        """Make the table and its primary key; of a partitioned one its unique keys too, which it cannot get later."""
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
        self.copy_rights("memories_next", *names)

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
        """Put this table in the place of `memories`, in the transaction of the connection, which has locked both."""
        indexes = self._definitions()
        references = self._connection.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = 'memories'::regclass AND contype = 'f'"
        ).fetchall()
        row = self._connection.execute("SELECT last_value + is_called::int FROM memories_number_seq").fetchone()
        partitions = partitions_of(self._connection, "memories_next")
        self._execute("DROP TABLE memories")
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

    def copy_rights(self, *tables: str) -> None:
        """Give tables the owner and the rights of `memories`."""
        owner = self._connection.execute(
            "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'memories'::regclass"
        ).fetchone()
        rights = self._connection.execute(
            "SELECT privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END FROM pg_class,"
            " aclexplode(relacl) WHERE oid = 'memories'::regclass AND grantee <> relowner"
        ).fetchall()
        for table in map(sql.Identifier, tables):
            for right, role in rights:
                self._execute("GRANT {} ON {} TO {}", sql.SQL(right), table, sql.SQL(role))
            if owner:
                self._execute("ALTER TABLE {} OWNER TO {}", table, sql.SQL(owner[0]))

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
                attach_index(self._connection, index.next_name, name)

    def _build(self, index: Definition, name: str, table: str, *, concurrently: bool) -> None:
        """Make an index, unless an earlier run has."""
        valid = self._connection.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", (name,)
        ).fetchone()
        if valid != (True,):
            self._execute("DROP INDEX IF EXISTS {}", sql.Identifier(name))
            self._create_index(index, name, table, concurrently="CONCURRENTLY " if concurrently else "")

    def _create_index(self, index: Definition, name: str, table: str, concurrently: str = "") -> None:
        unique = "UNIQUE " if index.constraint else ""
        # A definition may have braces of its own, as in an expression.
        self._connection.execute(f"CREATE {unique}INDEX {concurrently}{name} ON {table}{self._method(index)}")

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


#: The foreign key of a table that is distributed by `user_hash`.
HASHED_REFERENCE: Final = "(user_number, user_hash) REFERENCES users(number, user_hash)"


def unvalidated(connection: Connection[TupleRow]) -> Iterator[tuple[str, str]]:
    """Table and name of the foreign keys of `memories` that were added unchecked."""
    for table in partitions_of(connection) or ["memories"]:
        found = connection.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(%s) AND NOT convalidated", (table,)
        )
        for (name,) in found.fetchall():
            yield table, name


def validate(connection: Connection[TupleRow]) -> None:
    """Check the foreign keys that a switch has added unchecked, without keeping any request waiting."""
    for table, name in list(unvalidated(connection)):
        statement = sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}")
        connection.execute(statement.format(sql.Identifier(table), sql.Identifier(name)))
    for _ in range(ATTEMPTS):
        try:
            with connection.transaction():
                _give_to_all(connection)
            return
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            continue  # the partitions have it, each: without the rest nothing is unchecked


def _give_to_all(connection: Connection[TupleRow]) -> None:
    """Give a partitioned table the foreign keys that its partitions have, each."""
    missing = connection.execute(_OF_PARTITIONS).fetchall()
    if missing:
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT_MS)))
        connection.execute("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE")  # first, as all writers do
    for name, definition in missing:
        statement = sql.SQL("ALTER TABLE memories ADD CONSTRAINT {} {}")
        connection.execute(statement.format(sql.Identifier(name), sql.SQL(definition)))
