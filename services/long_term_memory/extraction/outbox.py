"""The outbox of extraction: messages that wait to be read by the LLM, by user."""

from __future__ import annotations

from psycopg import Connection
from psycopg.rows import TupleRow


def add_again(connection: Connection[TupleRow], memory_number: int) -> None:
    """Let a message whose content was corrected be read once more, in the transaction of the connection."""
    raise NotImplementedError


def remove_messages(connection: Connection[TupleRow], memory_numbers: list[int]) -> None:
    """Take deleted messages out, in the transaction of the connection."""
    raise NotImplementedError
