"""Indexes of `memories` by their definitions in the catalog, for a table with partitions or without."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from psycopg import Connection, sql
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.layout import partitions_of
from services.long_term_memory.postgres.locking import brief_locks

#: Before the names of the second table's partitions and indexes, until the switch.
PREFIX: Final = "next_"

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


def partition_index(partition: str, index: str) -> str:
    """The name of a partition's part of an index of `memories`."""
    return f"{partition}_{index.removeprefix('memories_')}"


def attach_index(connection: Connection[TupleRow], index: str, part: str) -> None:
    """Make the index of a partition a part of that of the table.

    Raises:
        LockNotAvailable: of psycopg: not now, as one writes to the partition.
    """
    statement = sql.SQL("ALTER INDEX {} ATTACH PARTITION {}")
    with brief_locks(connection):
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
