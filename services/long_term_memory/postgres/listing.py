"""Lists of memories in the order of time, in pages by keyset: each begins behind the last memory of the one before."""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Final, Literal

from keepsake_client.errors import InvalidMessage
from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.conditions import Conditions
from services.long_term_memory.postgres.facts import ABOUT_FACTS
from services.long_term_memory.postgres.scope import OWNERS, Scope

Order = Literal["newest", "oldest"]

_DIRECTIONS: Final = {"newest": ("DESC", "<"), "oldest": ("ASC", ">")}
# Of each owner, as many as the page holds at most, in the order of the index memories_by_time.
_PAGE = (
    "SELECT m.said_at, m.number, m.id::text, m.payload, m.content, m.source,"  # noqa: S608 - constants
    f" extract(epoch FROM m.said_at)::float8, users.user_id, users.agent_id, {ABOUT_FACTS.format(memory='m')}"
    f" FROM (SELECT number, user_hash, user_id, agent_id, kind FROM users WHERE {OWNERS}) AS users, LATERAL ("
    "SELECT said_at, number, user_hash, id, payload, content, source FROM memories"
    " WHERE user_number = users.number AND user_hash = users.user_hash"
    "{conditions}{after} ORDER BY said_at {direction}, number {direction} LIMIT %(limit)s) AS m"
    " ORDER BY m.said_at {direction}, m.number {direction} LIMIT %(limit)s"
)
#: The order, the time in microseconds since 1970, and the number.
_CURSOR = struct.Struct(">?qq")
_CHECK_BYTES: Final = 4
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a memory in a list."""

    order: Order
    said_at: datetime
    number: int

    @property
    def cursor(self) -> str:
        """The place as an opaque text."""
        packed = _CURSOR.pack(self.order == "newest", (self.said_at - _EPOCH) // timedelta(microseconds=1), self.number)
        return base64.urlsafe_b64encode(packed + _check(packed)).decode()

    @classmethod
    def of(cls, cursor: str, order: Order) -> Place:
        """The place that a cursor says.

        Raises:
            InvalidMessage: it is no cursor of a list of this order.
        """
        try:
            raw = base64.b64decode(cursor.encode(), b"-_", validate=True)
            packed, check = raw[: _CURSOR.size], raw[_CURSOR.size :]
            newest, microseconds, number = _CURSOR.unpack(packed)
            place = cls("newest" if newest else "oldest", _EPOCH + timedelta(microseconds=microseconds), number)
        except (UnicodeEncodeError, binascii.Error, struct.error, OverflowError):
            raise InvalidMessage("data.cursor: is no cursor") from None
        if check != _check(packed):
            raise InvalidMessage("data.cursor: is no cursor")
        if place.order != order:
            raise InvalidMessage("data.cursor: is of a list in the other order")
        return place


def read_page(
    connection: Connection[TupleRow],
    scope: Scope,
    conditions: Conditions,
    order: Order,
    limit: int,
    after: Place | None,
) -> list[tuple[Place, tuple[Any, ...]]]:
    """The first memories of a scope behind a place, in one statement, each with its place.

    Returns:
        Of each memory, the arguments of `stored_memory`.
    """
    direction, beyond = _DIRECTIONS[order]
    statement = (
        _PAGE.replace("{conditions}", conditions.sql("memories"))
        .replace("{after}", f" AND (said_at, number) {beyond} (%(said_at)s, %(number)s)" if after else "")
        .replace("{direction}", direction)
    )
    place = {"said_at": after.said_at, "number": after.number} if after else {}
    rows = connection.execute(statement, {**scope.values, **conditions.values, **place, "limit": limit}).fetchall()
    return [(Place(order, said_at, number), tuple(memory)) for said_at, number, *memory in rows]


def _check(packed: bytes) -> bytes:
    return blake2b(packed, digest_size=_CHECK_BYTES, person=b"cursor").digest()
