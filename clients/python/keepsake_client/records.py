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

_DATE: Final = r"\d{4}(-\d\d(-\d\d)?)?"
_WHEN: Final = rf"^{_DATE}(/{_DATE})?$"
#: Far from the largest `bigint`, so that the profile can still be updated.
Version = Annotated[int, Field(ge=1, lt=2**62)]


class MemoryRecord(WireModel):
    """One memory.

    Attributes:
        id: by which facts and profiles name it.
        session_id: the conversation that it belongs to.
        request_id: of one that was added by request.
        meta: what its publisher sent as `meta`.
        expires_at: when it is to be deleted, in seconds since 1970.
        original: the content before it was corrected.
        history: of one that was corrected, every change, oldest first.
    """

    kind: Literal["memory"]
    id: KeptId | None = None
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


class FactRecord(WireModel):
    """One fact that was found in messages.

    Attributes:
        about: `user`, `ai`, or the name of whom it is about.
        when: the date or span that it is about: YYYY-MM-DD, YYYY-MM, YYYY, or two of them as A/B.
        timestamp: of the last message that says it.
        evidence: ids of the messages that say it.
        superseded_by: the id of the fact that replaced it, at `superseded_at`.
        history: of one that was changed, every change, oldest first.
    """

    kind: Literal["fact"]
    id: KeptId
    content: Text
    fact_kind: Literal["state", "event", "plan", "promise"]
    about: Text
    when: Annotated[str, Field(pattern=_WHEN)] | None = None
    source: Source
    timestamp: Timestamp
    session_id: KeptId | None = None
    agent_id: KeptId | None = None
    speaker: Speaker | None = None
    meta: JSONObject = Field(default_factory=dict)
    evidence: tuple[KeptId, ...]
    superseded_by: KeptId | None = None
    superseded_at: Timestamp | None = None
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
        source: who made it, where that was not a service.
    """

    kind: Literal["profile_change"]
    version: Version
    patch: JSONObject
    changed_at: Timestamp
    agent_id: KeptId | None = None
    source: Literal["service", "extraction"] | None = None


Record = MemoryRecord | FactRecord | ProfileRecord | ProfileChangeRecord
_BY_KIND: Final[dict[str, type[Record]]] = {
    "memory": MemoryRecord,
    "fact": FactRecord,
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
    if isinstance(record, MemoryRecord | FactRecord):
        check_length(f"{within}.content".lstrip("."), record.content, max_content_chars)
    return record
