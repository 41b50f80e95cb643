"""Ids that hold the user: Mem0's routes name a memory by its id alone, and the wire needs its user too."""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from dataclasses import dataclass
from typing import Final, Self

from keepsake_client.errors import InvalidMessage

from services.gateway.access import Caller

_UUID: Final = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_EVENT: Final = re.compile(r"(?P<base>[0-9a-f]{32})\.(?P<count>[1-9][0-9]{0,2})\.(?P<at_ms>[0-9]{1,15})\.(?P<user>.*)")


@dataclass(frozen=True)
class MemoryId:
    """The id of a memory in Mem0's answers: `<uuid>.<user id in base64url>`."""

    uuid: str
    user: str

    def __str__(self) -> str:
        return f"{self.uuid}.{_packed(self.user)}"

    @classmethod
    def read(cls, text: str, caller: Caller) -> Self:
        """The id that a request names: one of an answer, or a bare UUID from a caller whose key is bound to a user.

        Raises:
            InvalidMessage: it is neither.
            NotPermitted: it is of a user that the caller may not ask about.
        """
        named, dot, packed = text.partition(".")
        if not _UUID.fullmatch(named.lower()):
            raise InvalidMessage("memory_id is none that an answer has given: `<uuid>.<user id in base64url>`")
        if not dot and caller.user is None:
            raise InvalidMessage(
                "memory_id does not say whose memory it is: send the whole id of the answer, `<uuid>.<user id in"
                " base64url>`, or use a key that is bound to the user"
            )
        return cls(str(uuid.UUID(named)), caller.user_of(_unpacked(packed, "memory_id") if dot else None))


@dataclass(frozen=True)
class EventId:
    """What Mem0 calls an event: one `add`, here with what finds the memories of its messages again.

    Args:
        base: each message's message_id is this, a hyphen and its number.
        count: how many messages it has.
        at_ms: the time of the first, in milliseconds since 1970; each other one is dated a millisecond later.
    """

    base: str
    count: int
    at_ms: int
    user: str

    def __str__(self) -> str:
        return f"{self.base}.{self.count}.{self.at_ms}.{_packed(self.user)}"

    @classmethod
    def read(cls, text: str, caller: Caller) -> Self:
        """The id that a request names.

        Raises:
            InvalidMessage: it is none.
            NotPermitted: it is of a user that the caller may not ask about.
        """
        if (found := _EVENT.fullmatch(text)) is None:
            raise InvalidMessage("event_id is none that an add has answered")
        user = caller.user_of(_unpacked(found["user"], "event_id"))
        return cls(found["base"], int(found["count"]), int(found["at_ms"]), user)

    @property
    def message_ids(self) -> tuple[str, ...]:
        """Those of its messages, in their order."""
        return tuple(f"{self.base}-{number}" for number in range(self.count))

    def timestamp(self, number: int) -> float:
        """When the message of this number is dated, in seconds since 1970."""
        return (self.at_ms + number) / 1_000


def _packed(user: str) -> str:
    # Lone surrogates are characters of ids, too.
    return base64.urlsafe_b64encode(user.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def _unpacked(packed: str, field: str) -> str:
    """The user in an id; exactly one text stands for each user."""
    try:
        user = base64.b64decode(packed + "=" * (-len(packed) % 4), b"-_", validate=True).decode(
            "utf-8", "surrogatepass"
        )
    except (binascii.Error, ValueError):
        user = ""
    if not user or _packed(user) != packed:
        raise InvalidMessage(f"{field} holds no user: it was changed on its way")
    return user
