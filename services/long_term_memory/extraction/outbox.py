"""The outbox of extraction: messages that wait to be read by the LLM, by user."""

from __future__ import annotations

from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.pending import TOKENS, recount


def add_again(connection: Connection[TupleRow], memory_number: int) -> None:
    """Let a message whose content was corrected be read once more, in the transaction of the connection."""
    owners = connection.execute(
        "INSERT INTO to_extract (memory_number, user_number, tokens, from_user)"  # noqa: S608 - constants
        f" SELECT number, user_number, {TOKENS}, source = 'user' FROM memories WHERE number = %s"
        " ON CONFLICT (memory_number) DO UPDATE SET revision = DEFAULT, tries = 0, set_aside = NULL"
        " RETURNING user_number",
        (memory_number,),
    ).fetchall()
    recount(connection, [number for (number,) in owners])


def remove_messages(connection: Connection[TupleRow], memory_numbers: list[int]) -> None:
    """Take deleted messages out, in the transaction of the connection."""
    owners = connection.execute(
        "DELETE FROM to_extract WHERE memory_number = ANY(%s) RETURNING user_number", (memory_numbers,)
    ).fetchall()
    recount(connection, {number for (number,) in owners})
