"""Keepsake's tables and columns as the catalog of a database has them, whatever its schema version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from graphlib import TopologicalSorter

from psycopg import Connection, sql
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.preconditions import step_files

_CREATED = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)")
_NAMED = "= ANY(SELECT to_regclass(name) FROM unnest(%s::text[]) AS name)"
_COLUMNS = (
    "SELECT relname, array_agg(attname::text ORDER BY attnum)"  # noqa: S608 - constants
    " FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid"
    f" WHERE pg_class.oid {_NAMED}"
    " AND attnum > 0 AND NOT attisdropped AND attgenerated = '' GROUP BY relname ORDER BY relname"
)
# After a switch, until they are checked, only the partitions of a table have its foreign keys.
_REFERENCES = (
    "SELECT DISTINCT own.relname, other.relname FROM pg_constraint"  # noqa: S608 - constants
    " JOIN pg_class own ON own.oid = coalesce(pg_partition_root(conrelid), conrelid)"
    " JOIN pg_class other ON other.oid = confrelid"
    " WHERE contype = 'f' AND conrelid <> confrelid AND own.oid " + _NAMED
)
_SEQUENCES = (
    "SELECT relname, attname,"  # noqa: S608 - constants
    " pg_sequence_last_value(pg_get_serial_sequence(quote_ident(relname), attname)::regclass)"
    " FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid"
    f" WHERE pg_class.oid {_NAMED}"
    " AND attnum > 0 AND NOT attisdropped AND attidentity <> ''"
)


@dataclass(frozen=True)
class Table:
    """A table with its columns, without those that PostgreSQL generates."""

    name: str
    columns: tuple[str, ...]

    @property
    def identifier(self) -> sql.Identifier:
        """Its name in a statement."""
        return sql.Identifier(self.name)


def created_tables() -> list[str]:
    """The tables that the migrations of this release create, in any version; other tables of a database are foreign."""
    return sorted({name for file in step_files() for name in _CREATED.findall(file.read_text("utf-8"))})


def stored_tables(connection: Connection[TupleRow]) -> list[Table]:
    """Keepsake's tables in a database, each after those that it refers to."""
    names = created_tables()
    found = {name: Table(name, tuple(columns)) for name, columns in connection.execute(_COLUMNS, (names,)).fetchall()}
    order: TopologicalSorter[str] = TopologicalSorter({name: [] for name in found})
    for own, other in connection.execute(_REFERENCES, (list(found),)).fetchall():
        order.add(own, other)
    return [found[name] for name in order.static_order() if name in found]


def sequence_values(connection: Connection[TupleRow], tables: list[Table]) -> dict[str, dict[str, int]]:
    """The last value of the sequence of each identity column, by table and column, of those that were used."""
    values: dict[str, dict[str, int]] = {}
    for table, column, last in connection.execute(_SEQUENCES, ([table.name for table in tables],)).fetchall():
        if last is not None:
            values.setdefault(table, {})[column] = last
    return values
