"""What an operator has added to `memories`: rights, which another table gets too, and objects, which it cannot get."""

from __future__ import annotations

from psycopg import Connection, sql
from psycopg.rows import TupleRow

# What PostgreSQL drops with a table without a word; it refuses to where a view or a foreign key depends on it.
_OWN_OBJECTS = (
    "SELECT 'the trigger ' || tgname FROM pg_trigger WHERE tgrelid = 'memories'::regclass AND NOT tgisinternal"
    " AND tgname NOT IN ('mirror_memory', 'note_changed_memory')"
    " UNION ALL SELECT 'row level security' FROM pg_class WHERE oid = 'memories'::regclass AND relrowsecurity"
    " UNION ALL SELECT 'the policy ' || polname FROM pg_policy WHERE polrelid = 'memories'::regclass"
    " UNION ALL SELECT 'the publication ' || pubname FROM pg_publication_rel JOIN pg_publication"
    " ON pg_publication.oid = prpubid WHERE prrelid = 'memories'::regclass ORDER BY 1"
)
# Of a table with those of its columns, or of a sequence: what is granted, and to which role.
_RIGHTS = (
    "SELECT privilege_type || coalesce(' (' || quote_ident(attname) || ')', ''),"
    " CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END"
    " || CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END FROM pg_class, LATERAL ("
    "SELECT NULL AS attname, relacl AS acl UNION ALL SELECT attname, attacl FROM pg_attribute"
    " WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped) AS given, aclexplode(acl)"
    " WHERE pg_class.oid = to_regclass(%s) AND grantee <> relowner"
)


def own_objects(connection: Connection[TupleRow]) -> list[str]:
    """The operator's own triggers, policies and publications of `memories`, which another table would not have."""
    return [name for (name,) in connection.execute(_OWN_OBJECTS).fetchall()]


def rights_of(connection: Connection[TupleRow], relation: str) -> list[TupleRow]:
    """What is granted on a table with its columns, or on a sequence, and to which role."""
    return connection.execute(_RIGHTS, (relation,)).fetchall()


def grant(connection: Connection[TupleRow], rights: list[TupleRow], relation: str) -> None:
    """Grant on a relation what `rights_of` found."""
    for right, role in rights:
        statement = sql.SQL("GRANT {} ON {} TO {}")
        connection.execute(statement.format(sql.SQL(right), sql.Identifier(relation), sql.SQL(role)))
