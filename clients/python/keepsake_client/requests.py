"""The requests on `ltm_requests`: a model of the `data` of each type, and how a request is parsed."""

from __future__ import annotations

import json
import re
from datetime import UTC, tzinfo
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from keepsake_client.errors import InvalidMessage, UnknownRequestType
from keepsake_client.fields import (
    DEFAULT_LIMIT,
    MAX_ID_BYTES,
    MAX_LIMIT,
    AskedText,
    Days,
    Deadline,
    FilteredSource,
    Id,
    IdPrefix,
    JSONObject,
    KeptId,
    Limit,
    NotedTime,
    Speaker,
    Switch,
    Text,
    Timestamp,
    TraceParent,
    WireModel,
    check_length,
    checked_up_to,
    load_object,
    read_traceparent,
    readable_id,
    validate,
    whole,
)

RequestType = Literal[
    "search",
    "add",
    "profile_get",
    "profile_update",
    "memory_list",
    "memory_get",
    "memory_update",
    "memory_delete",
    "user_forget",
    "user_export",
    "user_import",
    "context",
    "user_list",
]
#: What a memory is: what was said or added, or a fact that an LLM found in what was said.
MemoryKind = Literal["message", "fact"]
#: Types that change, delete or hand out all that a user has, or tell who the users are; LTM_MANAGE_QUEUE keeps them
#: from the common list.
MANAGING: frozenset[RequestType] = frozenset(
    {"memory_update", "memory_delete", "user_forget", "user_export", "user_import", "user_list"}
)
#: Further users whose memories one search may rank.
MAX_ALSO = 8
#: Memories on one page of a list, by default.
PAGE = 50
#: Characters of a context: by default, and at most.
CONTEXT_CHARS, MAX_CONTEXT_CHARS = 4_000, 32_768
#: Characters of a text that a content is to have.
MAX_CONTAINS_CHARS = 500
#: Records in one `user_import`: more would make an indexer busy for longer than a message may wait for it.
MAX_RECORDS = 64

ReadableId = Annotated[str, BeforeValidator(readable_id)]
#: An opaque text of a response's `next_cursor`.
Cursor = Annotated[str, Field(max_length=200)]
#: Memories that one request deletes by their ids.
MAX_IDS = 1_000
PageLimit = Annotated[
    int, BeforeValidator(whole), AfterValidator(lambda limit: min(limit, MAX_LIMIT) if limit > 0 else PAGE)
]


ContextChars = Annotated[
    int,
    BeforeValidator(whole),
    AfterValidator(lambda chars: min(chars, MAX_CONTEXT_CHARS) if chars > 0 else None),
]
#: 0 or less counts as missing.
ContextTokens = Annotated[int, BeforeValidator(whole), AfterValidator(lambda tokens: tokens if tokens > 0 else None)]


class SearchFilters(WireModel):
    """Conditions on the memories that a search may return. An unknown one is an error: ignoring it returns too much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_id: ReadableId | None = None
    source: FilteredSource | None = None
    since: Timestamp | None = None
    until: Timestamp | None = None
    speaker: Speaker | None = None


class MemoryFilters(SearchFilters):
    """Conditions of a list or a deletion.

    Attributes:
        contains: a text that the content has, in any case.
    """

    contains: Annotated[Text, Field(max_length=MAX_CONTAINS_CHARS)] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every memory meets them."""
        return self == MemoryFilters()


class MemoryListFilters(MemoryFilters):
    """Conditions of a list.

    Attributes:
        kind: messages and what was added, facts, or facts that others have replaced.
    """

    kind: MemoryKind | Literal["superseded"] = "message"


class ScopedData(WireModel):
    """Base of `data` that says which of the user's memories it is about: the shared ones, and those of one character.

    Attributes:
        agent_id: the character.
        all_agents: those of all characters.
    """

    agent_id: KeptId | None = None
    all_agents: Switch = False
    deadline_ms: Deadline | None = None


class SearchData(ScopedData):
    """`data` of a search.

    Attributes:
        also: further users, whose memories are ranked as one with the user's.
        speaker: who asks.
        include_superseded: whether facts that others have replaced are among the results.
    """

    query: AskedText
    limit: Limit = DEFAULT_LIMIT
    min_score: Annotated[float, Field(le=1), AfterValidator(lambda score: max(score, 0.0))] | None = None
    filters: SearchFilters = SearchFilters()
    exclude_session: ReadableId | None = None
    recency_half_life_days: Annotated[float, Field(gt=0, le=36_500)] | None = None
    also: Annotated[tuple[Id, ...], Field(max_length=MAX_ALSO), checked_up_to(MAX_ALSO)] = ()
    speaker: Speaker | None = None
    include_superseded: Switch = False
    explain: bool = False
    timings: bool = False


class ContextData(SearchData):
    """`data` of a context: that of the search for the memories in it, and how much it may be.

    Attributes:
        session_id: the session that goes on, which the recap leaves out.
        max_chars: of its text; by default `CONTEXT_CHARS` or, where `max_tokens` bounds it, `MAX_CONTEXT_CHARS`.
        max_tokens: of its text, counted roughly.
    """

    session_id: ReadableId | None = None
    max_chars: ContextChars | None = None
    max_tokens: ContextTokens | None = None

    @property
    def text_chars(self) -> int:
        """The most characters of the text."""
        return self.max_chars or (CONTEXT_CHARS if self.max_tokens is None else MAX_CONTEXT_CHARS)


class AddData(WireModel):
    """`data` of an add."""

    content: AskedText
    metadata: JSONObject = Field(default_factory=dict)
    agent_id: KeptId | None = None
    speaker: Speaker | None = None
    ttl_days: Days | None = None
    deadline_ms: Deadline | None = None


class ProfileGetData(WireModel):
    """`data` of a profile_get.

    Attributes:
        agent_id: the character whose profile of the user it is; the user's own where it is missing.
        history: adds a page of the changes that made it.
        cursor: the `next_cursor` of the page before.
    """

    agent_id: KeptId | None = None
    history: Switch = False
    cursor: Cursor | None = None
    deadline_ms: Deadline | None = None


class ProfileUpdateData(WireModel):
    """`data` of a profile_update: `{"updates": {...}}`, or the fields of `updates` directly."""

    updates: JSONObject
    expected_version: Annotated[int, BeforeValidator(whole), Field(ge=0)] | None = None
    agent_id: KeptId | None = None
    deadline_ms: Deadline | None = None

    @model_validator(mode="before")
    @classmethod
    def _updates_themselves(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "updates" in data:
            return {**data, "updates": {}} if isinstance(data, dict) and data["updates"] is None else data
        # Without `updates`, an `agent_id` is a field of the profile, as in all earlier versions.
        options = {key: data[key] for key in ("expected_version", "deadline_ms") if key in data}
        return {"updates": {key: value for key, value in data.items() if key not in options}, **options}


class MemoryListData(ScopedData):
    """`data` of a memory_list.

    Attributes:
        order: by the time at which they were said.
        cursor: the `next_cursor` of the page before.
    """

    filters: MemoryListFilters = MemoryListFilters()
    order: Literal["newest", "oldest"] = "newest"
    limit: PageLimit = PAGE
    cursor: Cursor | None = None


class MemoryGetData(WireModel):
    """`data` of a memory_get."""

    id: Id
    deadline_ms: Deadline | None = None


class MemoryUpdateData(WireModel):
    """`data` of a memory_update: a new content, a JSON Merge Patch of the metadata, or both."""

    id: Id
    content: AskedText | None = None
    metadata: JSONObject | None = None
    deadline_ms: Deadline | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.content is None and self.metadata is None:
            raise ValueError("content or metadata is needed")
        return self


class MemoryDeleteData(ScopedData):
    """`data` of a memory_delete: `ids`, or `filters` that select something.

    Attributes:
        dry_run: counts what would be deleted, and deletes nothing.
    """

    ids: Annotated[tuple[Id, ...], Field(min_length=1, max_length=MAX_IDS), checked_up_to(MAX_IDS)] | None = None
    filters: MemoryFilters | None = None
    dry_run: Switch = False

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if (self.ids is None) == (self.filters is None):
            raise ValueError("either ids or filters are needed")
        if self.filters is not None and self.filters.is_empty:
            raise ValueError("filters select everything; user_forget deletes all that a user has")
        return self


class UserForgetData(WireModel):
    """`data` of a user_forget."""

    dry_run: Switch = False
    deadline_ms: Deadline | None = None


class UserExportData(WireModel):
    """`data` of a user_export: a page of all that is kept of a user."""

    limit: PageLimit = PAGE
    cursor: Cursor | None = None
    deadline_ms: Deadline | None = None


class UserImportData(WireModel):
    """`data` of a user_import.

    Attributes:
        records: as `user_export` gives them; each is validated when it is imported.
        restore_deleted: brings back what was deleted, too.
    """

    records: Annotated[list[JSONObject], Field(max_length=MAX_RECORDS)]
    restore_deleted: Switch = False
    deadline_ms: Deadline | None = None


class UserListData(WireModel):
    """`data` of a user_list.

    Attributes:
        prefix: what the ids begin with; "" for all users.
        cursor: the `next_cursor` of the page before, of the same prefix.
    """

    prefix: IdPrefix = ""
    limit: PageLimit = PAGE
    cursor: Annotated[str, Field(max_length=MAX_ID_BYTES)] | None = None
    deadline_ms: Deadline | None = None


_DATA_BY_TYPE: dict[RequestType, type[WireModel]] = {
    "search": SearchData,
    "add": AddData,
    "profile_get": ProfileGetData,
    "profile_update": ProfileUpdateData,
    "memory_list": MemoryListData,
    "memory_get": MemoryGetData,
    "memory_update": MemoryUpdateData,
    "memory_delete": MemoryDeleteData,
    "user_forget": UserForgetData,
    "user_export": UserExportData,
    "user_import": UserImportData,
    "context": ContextData,
    "user_list": UserListData,
}
REQUEST_TYPES: tuple[RequestType, ...] = tuple(_DATA_BY_TYPE)


class LTMRequest(WireModel):
    """One request from the list `ltm_requests`; `data` has the shape of its type's model."""

    request_id: Id
    type: RequestType
    user_id: Id
    data: JSONObject = Field(default_factory=dict)
    pushed_at: NotedTime = None
    traceparent: TraceParent = None

    def to_fields(self) -> dict[str, Any]:
        """The fields as JSON has them; `traceparent` only where there is one."""
        return self.model_dump(exclude={"traceparent"} if self.traceparent is None else None)


def parse_request(raw: bytes, max_content_chars: int, zone: tzinfo = UTC) -> LTMRequest:
    """The request in `raw`; its `data` holds the given fields as their type's model validated them.

    Args:
        zone: that of times which name none.

    Raises:
        InvalidMessage: and its subclasses, with the request_id, user_id and traceparent to respond to where they can
            be read.
    """
    request_id = user_id = traceparent = None
    try:
        payload = load_object(raw)
        request_id, user_id = (_peeked_id(payload.get(name)) for name in ("request_id", "user_id"))
        traceparent = read_traceparent(payload.get("traceparent"))
        if (kind := payload.get("type")) not in REQUEST_TYPES:
            shown = json.dumps(kind)[:80] if isinstance(kind, str) else "missing or not a string"
            raise UnknownRequestType(f"type is {shown}; it must be one of {', '.join(REQUEST_TYPES)}")
        request = validate(LTMRequest, payload)
        data = validate(_DATA_BY_TYPE[request.type], request.data, within="data", zone=zone)
        for name in ("content", "query"):
            check_length(f"data.{name}", getattr(data, name, None) or "", max_content_chars)
    except InvalidMessage as error:
        error.request_id = request_id or peek_id(raw, b"request_id")
        error.user_id = user_id or peek_id(raw, b"user_id")
        error.traceparent = traceparent
        raise
    return request.model_copy(update={"data": data.model_dump(exclude_unset=True)})


def _peeked_id(value: Any) -> str | None:
    value = readable_id(value)
    return value if isinstance(value, str) and value.strip() else None


def peek_id(raw: bytes, name: bytes) -> str | None:
    """An id found by pattern in bytes that are not JSON, so that their sender gets an error response."""
    window = 8_192
    for part in (raw[:window], raw[-window:]):
        if found := re.search(rb'(?<!\\)"' + name + rb'"\s*:\s*"((?:[^"\\]|\\.){1,512})"', part):
            try:
                return _peeked_id(json.loads(b'"' + found[1] + b'"'))
            except ValueError:
                continue
    return None
