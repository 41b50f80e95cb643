"""Facts that follow the messages they were found in: which go with them, and what becomes of those they replaced."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.history import insert_history

_FACTS = (
    "SELECT fact_number FROM fact_evidence e WHERE fact_number = ANY(ARRAY("
    "SELECT fact_number FROM fact_evidence WHERE memory_number = ANY(%(numbers)s)))"
    " GROUP BY fact_number HAVING bool_and(memory_number = ANY(%(numbers)s)"
    " OR NOT EXISTS (SELECT FROM memories WHERE number = e.memory_number))"
)
_SUPERSEDED = (
    "SELECT fact_number, superseded_by FROM superseded_facts"
    " WHERE superseded_by = ANY(%(facts)s) OR fact_number = ANY(%(facts)s)"
)
_ADD_OWNERS = (
    "INSERT INTO users (user_id, agent_id, kind) SELECT DISTINCT user_id, agent_id, 'fact' FROM users"
    " JOIN memories ON user_number = users.number WHERE memories.number = ANY(%s) ON CONFLICT DO NOTHING"
)
_MAKE_CURRENT = (
    "UPDATE memories SET user_number = facts.number FROM users old JOIN users facts USING (user_id, agent_id)"
    " WHERE memories.number = ANY(%s) AND old.number = user_number AND facts.kind = 'fact'"
    " RETURNING id::text, content"
)


def facts_found_in(connection: Connection[TupleRow], numbers: Sequence[int]) -> list[int]:
    """The facts, current or superseded, that no other messages say than these."""
    return [fact for (fact,) in connection.execute(_FACTS, {"numbers": list(numbers)}).fetchall()]


def remove_evidence_rows(connection: Connection[TupleRow], numbers: Sequence[int]) -> None:
    """Delete the evidence that messages are, and that of facts, by their numbers."""
    connection.execute("DELETE FROM fact_evidence WHERE memory_number = ANY(%s)", (list(numbers),))
    connection.execute("DELETE FROM fact_evidence WHERE fact_number = ANY(%s)", (list(numbers),))


def release_superseded(connection: Connection[TupleRow], facts: Sequence[int]) -> None:
    """Of what facts superseded that are deleted: superseded by what superseded those, or current again.

    The user has taken back what had replaced it.
    """
    replaced_by: dict[int, int] = dict(connection.execute(_SUPERSEDED, {"facts": list(facts)}).fetchall())
    gone = set(facts)
    current: list[int] = []
    for fact in sorted(replaced_by.keys() - gone):
        successor, passed = replaced_by[fact], set[int]()
        while successor in gone and successor in replaced_by and successor not in passed:
            passed.add(successor)
            successor = replaced_by[successor]
        if successor in gone:
            current.append(fact)
        else:
            connection.execute(
                "UPDATE superseded_facts SET superseded_by = %s WHERE fact_number = %s", (successor, fact)
            )
    connection.execute("DELETE FROM superseded_facts WHERE fact_number = ANY(%s)", ([*gone, *current],))
    if current:
        connection.execute(_ADD_OWNERS, (current,))
        restored = connection.execute(_MAKE_CURRENT, (current,)).fetchall()
        with connection.cursor() as cursor:
            insert_history(
                cursor,
                [
                    {"memory_id": fact, "old_memory": content, "new_memory": content, "event": "RESTORE"}
                    for fact, content in restored
                ],
            )
