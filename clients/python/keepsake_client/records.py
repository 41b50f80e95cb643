"""Records: what is kept of a user as JSON objects, one a line of the file that `ltm export` writes."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from keepsake_client.errors import InvalidMessage
from keepsake_client.fields import (
    JSONObject,
    KeptId,
    Source,
    Speaker,
    Text,
    Timestamp,
    WireModel,
    check_length,
    validate,
)
from keepsake_client.protocol import MemoryChange

#: Far from the largest `bigint`, so that the profile can still be updated.
Version = Annotated[int, Field(ge=1, lt=2**62)]


class MemoryRecord(WireModel):
    """One memory.

    Attributes:
        session_id: the conversation that it belongs to.
        request_id: of one that was added by request.
        meta: what its publisher sent as `meta`.
        expires_at: when it is to be deleted, in seconds since 1970.
        original: the content before it was corrected.
        history: of one that was corrected, every change, oldest first.
    """

    kind: Literal["memory"]
    content: Text
    source: Source
    timestamp: Timestamp
    session_id: KeptId | None = None
    message_id: KeptId | None = None
    request_id: KeptId | None = None
    agent_id: KeptId | None = None
    speaker: Speaker | None = None
    meta: JSONObject = Field(default_factory=dict)
    expires_at: Timestamp | None = None
    original: Text | None = None
    history: tuple[MemoryChange, ...] = ()


class ProfileRecord(WireModel):
    """A profile of the user: the user's own or, with `agent_id`, that of a character.

    Attributes:
        updated_at: in seconds since 1970.
    """

    kind: Literal["profile"]
    profile: JSONObject
    version: Version
    updated_at: Timestamp
    agent_id: KeptId | None = None


class ProfileChangeRecord(WireModel):
    """One change of such a profile: the patch that made it this version.

    Attributes:
        changed_at: in seconds since 1970.
    """

    kind: Literal["profile_change"]
    version: Version
    patch: JSONObject
    changed_at: Timestamp
    agent_id: KeptId | None = None


Record = MemoryRecord | ProfileRecord | ProfileChangeRecord
_BY_KIND: Final[dict[str, type[Record]]] = {
    "memory": MemoryRecord,
    "profile": ProfileRecord,
    "profile_change": ProfileChangeRecord,
}
#: What `kind` may be.
KINDS: Final = frozenset(_BY_KIND)


def parse_record(fields: dict[str, Any], max_content_chars: int, within: str = "") -> Record:
    """The record in `fields`.

    Args:
        within: where it is, for the error.

    Raises:
        InvalidMessage: it is none, or its content is too long.
    """
    model = _BY_KIND.get(str(fields.get("kind")))
    if model is None:
        raise InvalidMessage(f"{within or 'a record'}: kind must be one of {', '.join(_BY_KIND)}")
    record = validate(model, fields, within)
    if isinstance(record, MemoryRecord):
        check_length(f"{within}.content".lstrip("."), record.content, max_content_chars)
    return record
