"""Pending messages: what of the outbox of extraction waits, by owner, and since when it is due.

A transaction that changes an owner's rows of `to_extract` changes the row of `extraction` after them, and those of
several owners in the order of their numbers: so two transactions cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

#: A batch has so many messages, or tokens of them, at most, and is due at once when there are as many. 1,000 messages
#: of the test data take 54 to 62 calls (bench.retrieval.extraction_cost); each has some 620 tokens beside them.
BATCH_MESSAGES: Final = 20
BATCH_TOKENS: Final = 1_500
#: Fewer are due so long after the last of them: a session is over, and nothing more comes to understand them by.
SILENCE: Final = "interval '600 s'"
#: Or so long after the first of them, whatever is said meanwhile.
AGE: Final = "interval '1800 s'"

#: Tokens of the column `content`, as an estimate: four bytes of English text, and a Chinese character and a bit.
TOKENS: Final = "octet_length(content) / 4 + 1"


def _due_at(counts: str, at_once: str) -> str:
    """When the messages that a row of `counts` counts are due, as an expression.

    Args:
        at_once: where it is now.
    """
    full = f"{counts}.pending >= {BATCH_MESSAGES} OR {counts}.pending_tokens >= {BATCH_TOKENS}"
    return (
        f"CASE WHEN {counts}.from_user = 0 THEN NULL WHEN {full} THEN {at_once}"
        f" ELSE least({counts}.last_at + {SILENCE}, {counts}.first_at + {AGE}) END"
    )


_COUNTS = ("pending", "pending_tokens", "from_user", "first_at", "last_at")
#: CTEs that put the memories `added`, with `id` and `user_number`, of the rows `given` into the outbox.
TO_EXTRACT: Final = (
    ", queued AS (INSERT INTO to_extract (memory_number, user_number, tokens, from_user)"  # noqa: S608 - constants
    f" SELECT number, user_number, {TOKENS}, source = 'user' FROM given JOIN added USING (id) ORDER BY number"
    " RETURNING user_number, tokens, from_user),"
    " fresh AS (SELECT user_number, count(*) AS pending, sum(tokens) AS pending_tokens,"
    " count(*) FILTER (WHERE from_user) AS from_user, now() AS first_at, now() AS last_at"
    " FROM queued GROUP BY user_number),"
    f" bumped AS (INSERT INTO extraction AS kept (user_number, {', '.join(_COUNTS)}, due_at)"
    f" SELECT user_number, {', '.join(_COUNTS)}, {_due_at('fresh', 'now()')} FROM fresh ORDER BY user_number"
    " ON CONFLICT (user_number) DO UPDATE SET (pending, pending_tokens, from_user, last_at, due_at) ="
    f" (SELECT pending, pending_tokens, from_user, last_at, {_due_at('total', 'least(kept.due_at, now())')}"
    " FROM (SELECT kept.pending + excluded.pending AS pending,"
    " kept.pending_tokens + excluded.pending_tokens AS pending_tokens,"
    " kept.from_user + excluded.from_user AS from_user,"
    " kept.first_at AS first_at, greatest(kept.last_at, excluded.last_at) AS last_at) AS total))"
)

_LOCK = "SELECT FROM extraction WHERE user_number = ANY(%(owners)s) ORDER BY user_number FOR UPDATE"
# What is left of a batch that was made smaller was due before.
_RECOUNT = (
    "WITH left_over AS (SELECT user_number, count(*) AS pending, sum(tokens) AS pending_tokens,"  # noqa: S608 - constants
    " count(*) FILTER (WHERE from_user) AS from_user, min(added_at) AS first_at, max(added_at) AS last_at"
    " FROM to_extract WHERE user_number = ANY(%(owners)s) AND set_aside IS NULL GROUP BY user_number)"
    f" INSERT INTO extraction AS kept (user_number, {', '.join(_COUNTS)}, due_at)"
    f" SELECT user_number, {', '.join(_COUNTS)}, {_due_at('left_over', 'now()')} FROM left_over ORDER BY user_number"
    f" ON CONFLICT (user_number) DO UPDATE SET ({', '.join(_COUNTS)}, due_at) ="
    f" (SELECT {', '.join(f'excluded.{name}' for name in _COUNTS)},"
    " CASE WHEN kept.batch_limit IS NULL THEN excluded.due_at ELSE least(excluded.due_at, now()) END)"
)
_DROP_EMPTY = (
    "DELETE FROM extraction e WHERE user_number = ANY(%(owners)s) AND NOT EXISTS"
    " (SELECT FROM to_extract t WHERE t.user_number = e.user_number AND set_aside IS NULL)"
)


def recount(connection: Connection[TupleRow], owners: Collection[int]) -> None:
    """Count again what is pending of owners, by their numbers, in the transaction of the connection."""
    if not owners:
        return
    with connection.transaction():
        # The rows first: what was inserted by then is seen by the next statement, and what comes later is added.
        for statement in (_LOCK, _RECOUNT, _DROP_EMPTY):
            connection.execute(statement, {"owners": list(owners)})
