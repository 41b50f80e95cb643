"""The outbox of extraction: messages that wait to be read by the LLM, by owner, and the leases of those who read them.

An owner is leased to one reader at a time, which keeps the order of the messages. A lease that its reader outlives is
taken by another; what either of them found is then stored once, because a commit takes exactly its batch from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.extraction.batch import Message
from services.long_term_memory.postgres.pending import BATCH_MESSAGES, TOKENS, recount

#: The key of the advisory lock of the process that takes leases: "extract" in ASCII.
LEASES_LOCK: Final = 0x65_78747261_6374
#: How often no usable answer is had on a message alone until it is set aside.
MAX_TRIES: Final = 3
#: How often a batch may end in nothing, as with its process, until it is made smaller: each time may have cost a call.
MAX_ABANDONED: Final = 3
#: A batch is made smaller after so many calls that the provider did not answer in a row: it may be too long for it.
WAITS_UNTIL_SMALLER: Final = 3
#: Of the reason for which a message is set aside.
MAX_REASON_CHARS: Final = 200
#: How long an owner is left alone after a call that failed, at first; twice as long each time, up to the longest.
PAUSE_S: Final = 60
MAX_PAUSE_S: Final = 600
#: How long one whose budget is used up is left alone: a larger budget is then noticed, and midnight too.
OVER_BUDGET_PAUSE_S: Final = 3_600

# An array, so that the owners are chosen once: a join may choose anew for each row, beyond the limit.
_LEASE = (
    "UPDATE extraction SET lease_token = gen_random_uuid(), lease_until = now() + %(lease_s)s * interval '1 s'"
    " WHERE user_number = ANY(ARRAY(SELECT user_number FROM extraction WHERE due_at <= now()"
    " AND (not_before IS NULL OR not_before <= now()) AND (lease_until IS NULL OR lease_until <= now())"
    " ORDER BY due_at LIMIT greatest(%(capacity)s - (SELECT count(*) FROM extraction WHERE lease_until > now()), 0)"
    " FOR UPDATE SKIP LOCKED)) RETURNING user_number, lease_token::text"
)
_BEGIN = (
    "UPDATE extraction SET lease_until = now() + %(lease_s)s * interval '1 s', abandoned = abandoned + 1"
    " WHERE user_number = %(owner)s AND lease_token = %(token)s RETURNING coalesce(batch_limit, %(most)s), abandoned"
)
# Without what a call began with: an attempt that has ended, however, was not abandoned.
_RELEASE = (
    "UPDATE extraction SET lease_token = NULL, lease_until = NULL, abandoned = 0,"
    " not_before = now() + %(pause_s)s::float8 * interval '1 s'"
    " WHERE user_number = %(owner)s AND lease_token = %(token)s"
)
_SMALLER = "UPDATE extraction SET batch_limit = greatest(%(size)s / 2, 1) WHERE user_number = %(owner)s"
_FAILED_ALONE = (
    "UPDATE to_extract SET tries = tries + 1,"
    " set_aside = CASE WHEN tries + 1 >= %(tries)s OR %(at_once)s THEN %(reason)s END"
    " WHERE memory_number = %(number)s AND revision = %(revision)s AND set_aside IS NULL"
    " RETURNING set_aside IS NOT NULL"
)


class Lease(NamedTuple):
    """The right to read an owner's messages; of another token, it is another's."""

    user_number: int
    token: str


class Begun(NamedTuple):
    """An attempt that has begun.

    Args:
        limit: messages of its batch at most.
        abandoned: how many attempts in a row have ended in nothing, with this one.
    """

    limit: int
    abandoned: int


def lease_due(connection: Connection[TupleRow], capacity: int, lease_s: float) -> list[Lease]:
    """Take leases of owners who are due, the one first that is due for the longest.

    Args:
        capacity: how many leases there may be at a time.
        lease_s: how long they hold.
    """
    with connection.transaction():
        held = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (LEASES_LOCK,)).fetchone()
        if held != (True,):
            return []
        rows = connection.execute(_LEASE, {"capacity": capacity, "lease_s": lease_s}).fetchall()
    return [Lease(*row) for row in rows]


def begin(connection: Connection[TupleRow], lease: Lease, lease_s: float) -> Begun | None:
    """Begin an attempt, whose lease then holds for as long again; None where it is another's by now."""
    values = {"owner": lease.user_number, "token": lease.token, "lease_s": lease_s, "most": BATCH_MESSAGES}
    row = connection.execute(_BEGIN, values).fetchone()
    return None if row is None else Begun(*row)


def release(connection: Connection[TupleRow], lease: Lease, pause_s: float | None = None) -> None:
    """End a lease, unless it is another's by now.

    Args:
        pause_s: how long the owner is left alone; None for not at all.
    """
    connection.execute(_RELEASE, {"owner": lease.user_number, "token": lease.token, "pause_s": pause_s})


def fail(
    connection: Connection[TupleRow],
    lease: Lease,
    batch: Sequence[Message],
    reason: str,
    *,
    final: bool = False,
    pause_s: float | None = None,
) -> int:
    """Note that there is no usable answer on a batch, and end the lease: the next batch is half of it.

    A message that fails alone is set aside in the end, and what is behind it may be read in one batch again.

    Args:
        reason: without contents.
        final: whether it fails however often it is tried.
        pause_s: how long the owner is left alone; None for not at all.

    Returns:
        How many messages were set aside.
    """
    owner = lease.user_number
    with connection.transaction():
        if len(batch) > 1:
            connection.execute(_SMALLER, {"owner": owner, "size": len(batch)})
            release(connection, lease, pause_s)
            return 0
        (message,) = batch
        values: dict[str, Any] = {"number": message.number, "revision": message.revision, "tries": MAX_TRIES}
        values |= {"at_once": final, "reason": reason[:MAX_REASON_CHARS]}
        row = connection.execute(_FAILED_ALONE, values).fetchone()
        set_aside = row == (True,)
        if set_aside:
            recount(connection, [owner])
            connection.execute("UPDATE extraction SET batch_limit = NULL WHERE user_number = %s", (owner,))
        release(connection, lease, pause_s)
        return int(set_aside)


def wait_for_provider(connection: Connection[TupleRow], lease: Lease, size: int) -> None:
    """End a lease whose call was not answered, and leave the owner alone, so that others are asked for first.

    Args:
        size: of the batch.
    """
    with connection.transaction():
        row = connection.execute(
            "UPDATE extraction SET waits = waits + 1 WHERE user_number = %s AND lease_token = %s RETURNING waits", lease
        ).fetchone()
        if row is None:
            return
        (waits,) = row
        if waits % WAITS_UNTIL_SMALLER == 0:
            connection.execute(_SMALLER, {"owner": lease.user_number, "size": size})
        release(connection, lease, min(PAUSE_S * 2.0 ** (min(waits, 10) - 1), MAX_PAUSE_S))


def end(connection: Connection[TupleRow], lease: Lease) -> None:
    """End an attempt that was committed, in the transaction of the connection; a lease that is another's stays that."""
    recount(connection, [lease.user_number])
    # Where a smaller batch was needed, the next one may be twice as large.
    connection.execute(
        "UPDATE extraction SET waits = 0, abandoned = 0,"
        " batch_limit = CASE WHEN batch_limit * 2 < %s THEN batch_limit * 2 END WHERE user_number = %s",
        (BATCH_MESSAGES, lease.user_number),
    )
    release(connection, lease)


def add_again(connection: Connection[TupleRow], memory_number: int) -> None:
    """Let a message whose content was corrected be read once more, in the transaction of the connection."""
    row = connection.execute(
        "INSERT INTO to_extract (memory_number, user_number, tokens, from_user)"  # noqa: S608 - constants
        f" SELECT m.number, user_number, {TOKENS}, source = 'user'"
        " FROM memories m JOIN users u ON u.number = user_number WHERE m.number = %s AND kind = 'message'"
        " ON CONFLICT (memory_number) DO UPDATE SET revision = excluded.revision, tokens = excluded.tokens, tries = 0,"
        " set_aside = NULL RETURNING user_number",
        (memory_number,),
    ).fetchone()
    if row:
        recount(connection, row)


def remove_messages(connection: Connection[TupleRow], memory_numbers: list[int]) -> None:
    """Take deleted messages out, in the transaction of the connection."""
    removed = connection.execute(
        "DELETE FROM to_extract WHERE memory_number = ANY(%s) RETURNING user_number", (memory_numbers,)
    ).fetchall()
    recount(connection, {owner for (owner,) in removed})
