"""Lists of users by a prefix of their ids, in pages by keyset, with what is kept of each."""

from __future__ import annotations

from typing import Any, Final

from keepsake_client.protocol import UserSummary, decode_user_id, encode_user_id
from psycopg import Connection
from psycopg.rows import TupleRow

#: Memories of one user that are counted, of each kind: the first page has to be there at once beside any user.
MAX_COUNTED: Final = 10_000
#: Characters of one user that are named.
MAX_AGENTS: Final = 20
#: Sorts behind every encoded id that begins alike: no id has this character, which is not printable.
_LAST: Final = "\U0010ffff"

# Ids are distinct in each of the two tables before they are merged: both are read in the order of an index, and no
# further than the page goes.
_IDS = (
    '(SELECT DISTINCT user_id COLLATE "C" AS user_id FROM {table} WHERE user_id COLLATE "C" >= %(prefix)s'
    ' AND user_id COLLATE "C" > %(after)s AND user_id COLLATE "C" < %(last)s'
    ' ORDER BY user_id COLLATE "C" LIMIT %(limit)s)'
)
_OWNERS = "users o WHERE o.user_id COLLATE \"C\" = page.user_id AND o.kind = '{kind}'"
# A count that ends is an index's alone; one without an end takes a second for a million memories.
_COUNT = (
    "(SELECT count(*) FROM (SELECT FROM (SELECT number FROM {owners}) AS own,"
    " LATERAL (SELECT FROM memories WHERE user_number = own.number LIMIT %(counted)s) AS m"
    " LIMIT %(counted)s) AS counted)"
)
_USERS = (
    f"WITH page AS (SELECT user_id FROM ({_IDS.format(table='users')} UNION {_IDS.format(table='profiles')}) AS ids"  # noqa: S608 - constants
    ' ORDER BY user_id COLLATE "C" LIMIT %(limit)s)'
    " SELECT user_id, "
    + ", ".join(_COUNT.format(owners=_OWNERS.format(kind=kind)) for kind in ("message", "fact", "superseded"))
    + ", (SELECT extract(epoch FROM max(latest.said_at))::float8 FROM (SELECT number FROM "
    + _OWNERS.format(kind="message")
    + ") AS own, LATERAL (SELECT said_at FROM memories WHERE user_number = own.number"
    " ORDER BY said_at DESC, number DESC LIMIT 1) AS latest),"
    " ARRAY(SELECT DISTINCT agent_id FROM users o WHERE o.user_id COLLATE \"C\" = page.user_id AND agent_id <> ''"
    " ORDER BY agent_id LIMIT %(agents)s)"
    ' FROM page ORDER BY user_id COLLATE "C"'
)


def is_place(cursor: str, prefix: str) -> bool:
    """Whether a cursor is an encoded id that begins with a prefix."""
    try:
        user_id = decode_user_id(cursor)
    except UnicodeDecodeError:
        return False
    return user_id.startswith(prefix) and encode_user_id(user_id) == cursor


def read_users(connection: Connection[TupleRow], prefix: str, after: str, limit: int) -> list[UserSummary]:
    """The first users whose ids begin with `prefix`, behind another one, in the order of their encoded ids.

    Args:
        prefix: of the ids as they were given.
        after: an encoded id, or "".
    """
    begin = encode_user_id(prefix)
    values: dict[str, Any] = {"prefix": begin, "last": begin + _LAST, "after": after, "limit": limit}
    counted = MAX_COUNTED + 1  # one more tells that there are more
    rows = connection.execute(_USERS, {**values, "counted": counted, "agents": MAX_AGENTS}).fetchall()
    return [_summary(*row) for row in rows]


def _summary(
    user: str, memories: int, facts: int, superseded: int, last_at: float | None, agents: list[str]
) -> UserSummary:
    counts = (memories, facts, superseded)
    memories, facts, superseded = (min(count, MAX_COUNTED) for count in counts)
    return UserSummary(
        user_id=decode_user_id(user),
        memories=memories,
        facts=facts,
        superseded=superseded,
        at_least=max(counts) > MAX_COUNTED,
        last_at=last_at,
        agents=[decode_user_id(agent) for agent in agents],
    )
