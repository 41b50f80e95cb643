"""The budget of extraction: tokens of a day (UTC) in all and of a user, reserved before a call, settled after it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final, Literal

from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.extraction.batch import Usage

#: The number of the row of all users together; those of users begin with 1.
ALL_USERS: Final = 0
#: Usage is kept so long, in days: two months of a bill.
KEPT_DAYS: Final = 62

_TODAY = "(now() AT TIME ZONE 'UTC')::date"
_ADD_ROWS = (
    f"INSERT INTO extraction_usage (day, user_number) VALUES ({_TODAY}, %(all)s), ({_TODAY}, %(user)s)"  # noqa: S608 - constants
    " ON CONFLICT DO NOTHING RETURNING user_number"
)
# In this order, which all take, and locked until the reservation is committed.
_USED = (
    "SELECT day, user_number, prompt_tokens + completion_tokens + reserved FROM extraction_usage"  # noqa: S608 - constants
    f" WHERE day = {_TODAY} AND user_number IN (%(all)s, %(user)s) ORDER BY user_number FOR UPDATE"
)
_RESERVE = (
    "UPDATE extraction_usage SET reserved = reserved + %(tokens)s"
    " WHERE day = %(day)s AND user_number IN (%(all)s, %(user)s)"
)
_LOCK = (
    "SELECT FROM extraction_usage WHERE day = %(day)s AND user_number IN (%(all)s, %(user)s)"
    " ORDER BY user_number FOR UPDATE"
)
_SETTLE = (
    "UPDATE extraction_usage SET reserved = greatest(reserved - %(reserved)s, 0), calls = calls + 1,"
    " prompt_tokens = prompt_tokens + %(prompt)s, completion_tokens = completion_tokens + %(completion)s"
    " WHERE day = %(day)s AND user_number IN (%(all)s, %(user)s)"
)

# A user has a row for all characters: that of the first of the owners of messages.
_USER = (
    "SELECT min(number) FROM users WHERE kind = 'message' AND user_id = (SELECT user_id FROM users WHERE number = %s)"
)

#: Whose budget is used up for today, or is too small for a batch on any day.
Over = Literal["all", "user", "never"]


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens that a call may take, of a user's budget and that of all, on the day on which it begins.

    Args:
        user_number: of the user's row.
    """

    day: date
    user_number: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens of a day.

    Args:
        per_day: of all users together.
        per_user: of each, with all characters.
    """

    per_day: int
    per_user: int

    def reserve(self, connection: Connection[TupleRow], owner: int, tokens: int) -> Reservation | Over:
        """Reserve what a call may take, in the transaction of the connection.

        What a call that never ends has reserved stays reserved on that day: it may have been paid.

        Args:
            owner: of the messages.
        """
        if tokens > min(self.per_day, self.per_user):
            return "never"
        row = connection.execute(_USER, (owner,)).fetchone()
        user = owner if row is None or row[0] is None else int(row[0])
        values = {"all": ALL_USERS, "user": user, "tokens": tokens}
        new = connection.execute(_ADD_ROWS, values).fetchall()
        if (ALL_USERS,) in new:  # the first call of the day
            connection.execute(f"DELETE FROM extraction_usage WHERE day < {_TODAY} - %s", (KEPT_DAYS,))  # noqa: S608
        rows = connection.execute(_USED, values).fetchall()
        used = {number: total for _, number, total in rows}
        if used[ALL_USERS] + tokens > self.per_day:
            return "all"
        if used[user] + tokens > self.per_user:
            return "user"
        day = rows[0][0]
        connection.execute(_RESERVE, {**values, "day": day})
        return Reservation(day, user, tokens)


def settle(connection: Connection[TupleRow], reservation: Reservation, usage: Usage | None) -> None:
    """Put what a call took in the place of what was reserved.

    Args:
        usage: None where the provider did not serve the call.
    """
    prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    values = {"day": reservation.day, "all": ALL_USERS, "user": reservation.user_number}
    changes = {"reserved": reservation.tokens, "prompt": prompt}
    with connection.transaction():
        connection.execute(_LOCK, values)
        connection.execute(_SETTLE, {**values, **changes, "completion": completion})
