"""Deletions that outlive their memories, as SQL conditions: an event that was deleted before it was indexed is dropped.

A deletion has no content but for `contains`; it knows its user by a digest.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

#: The SHA-256 of an id, as an SQL expression of the column or parameter in its braces.
DIGEST: Final = "sha256(convert_to({}, 'UTF8'))"
#: What is dated so long before its user was forgotten is dropped whenever it arrives. Publishers' clocks may be wrong:
#: what is dated less long before, and arrives after, was said after. What is imported after has its own times.
CLOCK_TOLERANCE: Final = "interval '10 minutes'"
#: How long a deletion by conditions is kept: longer than the stream, retries and dead letters keep an event.
CONDITIONS_KEPT: Final = "interval '8 days'"

#: The conditions that a list or a deletion may have, as SQL of the memory `row` and the condition's `value`; by the
#: column of `deletions`. A speaker is four bytes of the hash of the name, and then four of the id, in `traits`.
#: `contains` is an array: two texts for `translate`, and the text that is looked for, folded (conditions.py).
MEETS: Final = {
    "session": "{row}.session = {value}",
    "source": "{row}.source = {value}",
    "since": "{row}.said_at >= {value}",
    "until": "{row}.said_at <= {value}",
    "speaker_name": "substring({row}.traits FROM 6 FOR 4) = {value}",
    "speaker_id": "substring({row}.traits FROM 10 FOR 4) = {value}",
    # lower() of the collation "C" folds ASCII whatever the database's locale is, and nothing else.
    "contains": (
        "strpos(lower(translate(replace(replace({row}.content, 'ß', 'ss'), 'ẞ', 'ss'), ({value})[1], ({value})[2])"
        ' COLLATE "C"), ({value})[3]) > 0'
    ),
}

#: Whether the memory `given`, with the time at which its event arrived, meets the conditions of the deletion `d`.
DELETED: Final = (
    "(given.arrived_at <= d.deleted_at"
    f" OR d.everything AND NOT given.imported AND given.said_at < d.deleted_at - {CLOCK_TOLERANCE})"
    f" AND (d.agent_digests IS NULL OR {DIGEST.format('given.agent_id')} = ANY(d.agent_digests))"
) + "".join(
    f" AND (d.{name} IS NULL OR {condition.format(row='given', value=f'd.{name}')})"
    for name, condition in MEETS.items()
)

#: The key of the advisory lock of a user. Who writes what is not found by a row of `users`, as a profile or the first
#: memory, shares it until the end of the transaction; who forgets the user holds it alone to say so in `deletions`. So
#: the former is either seen by what deletes after that, or sees that the user is forgotten.
USER_LOCK: Final = "hashtextextended({}, 7)"


def lock_user(connection: Connection[TupleRow], user: str, *, alone: bool = False) -> None:
    """Take the advisory lock of a user, by the encoded id, until the transaction ends."""
    shared = "" if alone else "_shared"
    connection.execute(f"SELECT pg_advisory_xact_lock{shared}({USER_LOCK.format('%s')})", (user,))


def forgotten_after(connection: Connection[TupleRow], user: str, arrived_at: float) -> bool:
    """Whether the user, by the encoded id, was forgotten at this time or later."""
    row = connection.execute(
        f"SELECT EXISTS (SELECT FROM deletions WHERE user_digest = {DIGEST.format('%s')}"  # noqa: S608 - constants
        " AND everything AND deleted_at >= %s)",
        (user, datetime.fromtimestamp(arrived_at, UTC)),
    ).fetchone()
    return bool(row and row[0])


def remove_empty_owners(connection: Connection[TupleRow], users: Collection[str]) -> None:
    """Delete the owners without a memory, of users by their encoded ids, with what extraction has noted of them."""
    with connection.transaction():
        connection.execute(
            "SELECT number FROM users WHERE user_id = ANY(%s) ORDER BY number FOR UPDATE", (list(users),)
        )
        removed = connection.execute(
            "DELETE FROM users u WHERE user_id = ANY(%s)"
            " AND NOT EXISTS (SELECT FROM memories WHERE user_number = u.number) RETURNING number",
            (list(users),),
        ).fetchall()
        for table in ("to_extract", "extraction", "extraction_usage") if removed else ():
            connection.execute(
                f"DELETE FROM {table} WHERE user_number = ANY(%s)",  # noqa: S608 - constants
                ([number for (number,) in removed],),
            )
