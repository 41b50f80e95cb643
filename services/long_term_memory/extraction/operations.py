"""What an operator sees and does of extraction, on the database itself: for `ltm extract`; imports little."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import psycopg
from keepsake_client.fields import decode_user_id, encode_user_id
from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.pending import BATCH_MESSAGES, BATCH_TOKENS, TOKENS, recount
from services.long_term_memory.postgres.pool import check_connects, database_errors
from services.long_term_memory.postgres.preconditions import applied_steps, step_files
from services.runtime.errors import StackError
from services.runtime.settings import Settings

#: Tokens of a call beside its messages: the prompt's 620, slots, facts that may be concerned, four messages before.
CALL_TOKENS = 900
#: Tokens of answers for one of the messages: 25,000 for 1,000 messages of the test data, which have 50,000.
ANSWER_SHARE = 0.5

_WAITING = (
    "SELECT user_id, agent_id, pending, first_at, greatest(due_at, not_before) FROM extraction"
    " JOIN users ON number = user_number WHERE pending > 0 ORDER BY first_at"
)
_SET_ASIDE = (
    "SELECT u.user_id, u.agent_id, m.id::text, m.said_at, t.set_aside, m.content FROM to_extract t"
    " JOIN memories m ON m.number = t.memory_number JOIN users u ON u.number = t.user_number"
    " WHERE t.set_aside IS NOT NULL ORDER BY t.added_at, t.memory_number"
)
_RETRY = (
    "UPDATE to_extract SET set_aside = NULL, tries = 0 WHERE set_aside IS NOT NULL"
    " AND (%(user)s::text IS NULL OR user_number IN (SELECT number FROM users WHERE user_id = %(user)s))"
    " RETURNING user_number"
)
_RESUME = (
    "UPDATE extraction_state SET paused = false, state = 'working', reason = NULL, since = now(), waits_until = NULL,"
    " failures = 0, refused_batch = NULL"
)
# What failed for the reason that is over now.
_END_PAUSES = "UPDATE extraction SET not_before = NULL WHERE not_before IS NOT NULL"
#: Of memories: that they were said, and not added by a request.
SAID = "NOT payload ? 'request_id'"
_OF_USER = "(SELECT number FROM users WHERE user_id = %(user)s AND kind = ANY(%(kinds)s))"


@dataclass(frozen=True)
class Waiting:
    """Messages of one owner that wait.

    Args:
        user_id: of the user.
        agent_id: of the character, None for what is shared.
        oldest: since when the oldest waits.
        due_at: when they will be read; None while none of them is the user's.
    """

    user_id: str
    agent_id: str | None
    messages: int
    oldest: datetime
    due_at: datetime | None


@dataclass(frozen=True)
class SetAside:
    """A message that no usable answer was had for, with the reason."""

    user_id: str
    agent_id: str | None
    memory_id: str
    said_at: datetime
    reason: str
    content: str


@dataclass(frozen=True)
class Cost:
    """What a rebuild costs, as an estimate.

    Args:
        facts: that are deleted, superseded ones too.
        messages: that are read again.
        tokens: of prompts and answers.
    """

    facts: int
    messages: int
    calls: int
    tokens: int


class Operations:
    """The operator's view of one database.

    Args:
        connection: in autocommit mode.
    """

    def __init__(self, connection: Connection[TupleRow]) -> None:
        self.connection = connection

    def waiting(self) -> list[Waiting]:
        """Whose messages wait, the oldest first."""
        rows = self.connection.execute(_WAITING).fetchall()
        return [Waiting(decode_user_id(user), decode_user_id(agent) or None, *row) for user, agent, *row in rows]

    def set_aside(self) -> list[SetAside]:
        """The messages that no usable answer was had for, the oldest first."""
        rows = self.connection.execute(_SET_ASIDE).fetchall()
        return [SetAside(decode_user_id(user), decode_user_id(agent) or None, *row) for user, agent, *row in rows]

    def retry(self, user_id: str | None) -> int:
        """Have messages that were set aside read again; how many there were.

        Args:
            user_id: whose; None for all.
        """
        user = None if user_id is None else encode_user_id(user_id)
        with self.connection.transaction():
            owners = [owner for (owner,) in self.connection.execute(_RETRY, {"user": user}).fetchall()]
            recount(self.connection, set(owners))
        return len(owners)

    def pause(self) -> None:
        """Have no batch read from now on."""
        self.connection.execute(
            "INSERT INTO extraction_state (paused) VALUES (true) ON CONFLICT (one) DO UPDATE SET paused = true,"
            " since = CASE WHEN extraction_state.paused THEN extraction_state.since ELSE now() END"
        )

    def resume(self) -> None:
        """Have batches read again, at once: after a pause, and where the provider's refusals had stopped it."""
        with self.connection.transaction():
            self.connection.execute(_END_PAUSES)
            self.connection.execute(_RESUME)

    def cost(self, user_id: str) -> Cost:
        """What it costs to have all messages of a user read again, of all characters."""
        values = {"user": encode_user_id(user_id), "kinds": ["fact", "superseded"]}
        (facts,) = self.connection.execute(
            f"SELECT count(*) FROM memories WHERE user_number IN {_OF_USER}",  # noqa: S608 - constants
            values,
        ).fetchone() or (0,)
        owners = self.connection.execute(
            f"SELECT count(*), sum({TOKENS}) FROM memories WHERE user_number IN {_OF_USER} AND {SAID}"  # noqa: S608 - constants
            " GROUP BY user_number",
            {**values, "kinds": ["message"]},
        ).fetchall()
        calls = sum(math.ceil(max(messages / BATCH_MESSAGES, tokens / BATCH_TOKENS)) for messages, tokens in owners)
        spent = sum(int(tokens * (1 + ANSWER_SHARE)) for _, tokens in owners) + calls * CALL_TOKENS
        return Cost(facts, sum(messages for messages, _ in owners), calls, spent)


@contextmanager
def open_operations(settings: Settings) -> Iterator[Operations]:
    """The operations on the configured database.

    Raises:
        StackError: a release without extraction made the tables.
        CannotStart, Unavailable: the database cannot be used, or does not answer.
    """
    url = settings.database_url.get_secret_value()
    check_connects(url)
    with database_errors(), psycopg.connect(url, autocommit=True) as connection:
        migrated = connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL").fetchone()
        steps = len(step_files())
        if migrated != (True,) or applied_steps(connection, steps) < steps:
            raise StackError("the database is not of this release yet: start the stack once, which migrates it")
        yield Operations(connection)
