"""The wire protocol: message models, key names, id encoding and limits. Every service imports them from here.

Read tolerantly, write strictly: unknown fields are ignored, `tolerance` reads the fields of events as other programs
write them and `times` their times, and every response carries all six fields. JSON is written in ASCII, which
represents every id, lone surrogates included. docs/contract.md specifies the same in prose.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_serializer, model_serializer, model_validator

from keepsake_client.fields import (
    DEFAULT_LIMIT,
    MAX_DEADLINE_MS,
    MAX_ID_BYTES,
    MAX_LIMIT,
    MAX_MESSAGE_BYTES,
    MAX_NESTING,
    Days,
    Flag,
    Id,
    JSONObject,
    KeptId,
    Source,
    Speaker,
    Text,
    Timestamp,
    TraceParent,
    WireModel,
    check_length,
    clean,
    decode_user_id,
    encode_user_id,
    json_number,
    load_object,
    read_traceparent,
    validate,
)
from keepsake_client.requests import (
    CONTEXT_CHARS,
    MANAGING,
    MAX_CONTEXT_CHARS,
    REQUEST_TYPES,
    AddData,
    ContextData,
    LTMRequest,
    MemoryDeleteData,
    MemoryFilters,
    MemoryGetData,
    MemoryKind,
    MemoryListData,
    MemoryListFilters,
    MemoryUpdateData,
    ProfileGetData,
    ProfileUpdateData,
    RequestType,
    SearchData,
    SearchFilters,
    UserExportData,
    UserForgetData,
    UserImportData,
    UserListData,
    parse_request,
)
from keepsake_client.tolerance import DEFAULTS, MessageDefaults, read_event
from keepsake_client.turns import Candidate, Cut

__all__ = [
    "ADAPTER_FAILED_AFTER_S",
    "AI_RESPONSES_CHANNEL",
    "CONTEXT_CHARS",
    "COUNTERS",
    "DEFAULT_LIMIT",
    "MANAGING",
    "MAX_CONTEXT_CHARS",
    "MAX_DEADLINE_MS",
    "MAX_ID_BYTES",
    "MAX_LIMIT",
    "MAX_MESSAGE_BYTES",
    "MAX_NESTING",
    "MEMBERSHIP_KEY",
    "REJECTED_CHARS",
    "REJECTED_STREAM",
    "REMEMBER",
    "REQUESTS_QUEUE",
    "REQUEST_TYPES",
    "RESPONSES_CHANNEL",
    "STREAM_EVENT_FIELD",
    "STREAM_GROUP",
    "STREAM_MAX_LEN",
    "TRACES_STREAM",
    "TRACE_FIELD",
    "UPDATES_CHANNEL",
    "UPDATES_STREAM",
    "USER_INPUT_QUEUE",
    "AddData",
    "ContextData",
    "ContextParts",
    "Days",
    "Flag",
    "Id",
    "JSONObject",
    "KeptId",
    "LTMRequest",
    "LTMResponse",
    "Memory",
    "MemoryChange",
    "MemoryDeleteData",
    "MemoryFilters",
    "MemoryGetData",
    "MemoryKind",
    "MemoryListData",
    "MemoryListFilters",
    "MemoryUpdateData",
    "MemoryUpdateMessage",
    "ProfileChange",
    "ProfileGetData",
    "ProfileUpdateData",
    "RequestType",
    "SearchData",
    "SearchFilters",
    "Source",
    "Speaker",
    "Text",
    "Timestamp",
    "TraceParent",
    "TraceRecord",
    "UserExportData",
    "UserForgetData",
    "UserImportData",
    "UserListData",
    "UserSummary",
    "WireModel",
    "alive_key",
    "check_length",
    "clean",
    "conversation_key",
    "decode_user_id",
    "encode_user_id",
    "instances_key",
    "json_number",
    "load_object",
    "parse_request",
    "parse_update",
    "process_key",
    "read_traceparent",
    "validate",
]

# Names in Redis. Those of lists, channels and the stream of updates are defaults: settings can change them.
REQUESTS_QUEUE = "ltm_requests"
RESPONSES_CHANNEL = "ltm_responses"
UPDATES_CHANNEL = "memory_updates"
USER_INPUT_QUEUE = "user_input_queue"
AI_RESPONSES_CHANNEL = "ai_responses"
REJECTED_STREAM = "ltm:rejected"
UPDATES_STREAM = "memory_updates:log"
#: Approximate maximum length of the stream.
STREAM_MAX_LEN = 100_000
#: The field of a stream entry that holds the event, in the form it has on the channel.
STREAM_EVENT_FIELD = "event"
#: The field beside it with the event's arrival in seconds since 1970, where that was earlier than the entry's id says.
STREAM_ARRIVED_FIELD = "arrived_at"
#: The consumer group that reads the stream.
STREAM_GROUP = "indexers"
#: A stream of `TraceRecord`s, one for each message, request and reply that came to an end.
TRACES_STREAM = "ltm:trace"
#: The field of its entries that holds the record.
TRACE_FIELD = "trace"
#: A hash of counters for the operator, which `ltm status` shows; docs/contract.md lists them.
COUNTERS = "ltm:counters"
#: A sorted set of the adapters by their last heartbeat, in seconds since 1970 on Redis's clock.
MEMBERSHIP_KEY = "ltm:adapters"
#: An adapter without a heartbeat for this long has failed.
ADAPTER_FAILED_AFTER_S = 10.0

#: The field of an event's `meta` that is False where it is said and heard, but becomes no memory.
REMEMBER = "remember"

REJECTED_CHARS = 1_000


def conversation_key(user_id: str) -> str:
    """The Redis list that holds a user's conversation, newest message last."""
    return f"memory:conversation:{encode_user_id(user_id)}"


def alive_key(name: str) -> str:
    """The Redis key of the heartbeat of the process `name`."""
    return f"ltm:alive:{name}"


def instances_key(name: str) -> str:
    """The Redis key of the sorted set of the processes of one name, `host:pid`, by last heartbeat on Redis's clock."""
    return f"ltm:instances:{name}"


def process_key(name: str) -> str:
    """The Redis key of what the process `name` states about itself; it outlives the heartbeat."""
    return f"ltm:process:{name}"


_OPTIONAL_EVENT_FIELDS = ("task_id", "require_ai_response", "agent_id", "speaker", "ttl_days", "traceparent")


class MemoryUpdateMessage(WireModel):
    """An event: one message of a user or the AI, as published on `memory_updates`.

    Attributes:
        require_ai_response: whether the publisher wants a reply to it; None where it does not say.
        agent_id: the character of the AI that it belongs to; None where it is shared.
        speaker: who of several people said it.
        ttl_days: its memory expires so many days after `timestamp`.
        traceparent: the span that published it, for tracing alone; no part of its identity, and of no memory.
    """

    user_id: Id
    content: Text
    source: Source
    timestamp: Timestamp = Field(default_factory=time.time)
    meta: JSONObject = Field(default_factory=dict)
    message_id: KeptId | None = None
    task_id: KeptId | None = None
    require_ai_response: Flag = None
    agent_id: KeptId | None = None
    speaker: Speaker | None = None
    ttl_days: Days | None = None
    traceparent: TraceParent = None

    @property
    def session_id(self) -> str | None:
        """`meta.session_id` as text, where the publisher set one."""
        session = self.meta.get("session_id")
        return None if session is None else str(session)

    @property
    def is_remembered(self) -> bool:
        """Whether it becomes a memory: unless `meta.remember` is false."""
        return self.meta.get(REMEMBER) is not False

    def is_same_event(self, message_id: object, source: str, content: str) -> bool:
        """Whether these are of this event. Its publisher may have given another message the same message_id."""
        return (self.message_id, self.source, self.content) == (message_id, source, content)

    def to_wire(self, *, logged: bool = False, timestamp: str | None = None) -> str:
        """The event as JSON, in the form it has on the channel, in the stream and in a stored conversation.

        Args:
            logged: the event is in the stream too, so the adapters skip it on the channel.
            timestamp: the time as its publisher wrote it, in place of seconds: its reader knows the time zone.
        """
        absent = {name for name in _OPTIONAL_EVENT_FIELDS if getattr(self, name) is None}
        fields = self.model_dump(exclude=absent)
        if timestamp is not None:
            fields["timestamp"] = timestamp
        return json.dumps({**fields, "logged": True} if logged else fields)

    @field_serializer("timestamp")
    def _timestamp_as_number(self, seconds: float) -> int | float:
        return json_number(seconds)


#: Fields of a memory that only facts have.
_OF_FACTS = ("when", "about")


class Memory(WireModel):
    """One memory in a response.

    `memory` repeats `content`, and `created_at` the timestamp, in ISO 8601: some clients read one, some the other.

    Attributes:
        user_id: whose it is; a search may be of several.
        agent_id: the character that it belongs to; None where it is shared.
        speaker: who of several people said it, where that is known.
        kind: what was said or added, or a fact that an LLM found in what was said.
        when: of a fact, the day, month, year or interval that it is about, where one is known, as ISO 8601 writes it.
        about: of a fact, `user`, `ai` or the name of whom it is about.
    """

    id: str
    content: str
    memory: str = ""
    score: float | None = None
    source: Source = "user"
    timestamp: float
    created_at: str = ""
    updated_at: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)
    user_id: str = ""
    agent_id: str | None = None
    speaker: Speaker | None = None
    kind: MemoryKind = "message"
    when: str | None = None
    about: str | None = None

    @model_validator(mode="after")
    def _repeat(self) -> Self:
        object.__setattr__(self, "memory", self.content)
        with suppress(ValueError, OverflowError, OSError):  # a time beyond the calendar, of another program
            object.__setattr__(self, "created_at", datetime.fromtimestamp(self.timestamp, UTC).isoformat())
        object.__setattr__(self, "updated_at", self.updated_at or self.created_at)
        return self

    @field_serializer("timestamp")
    def _timestamp_as_number(self, seconds: float) -> int | float:
        return json_number(seconds)

    @model_serializer(mode="wrap")
    def _without_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        return {name: value for name, value in fields.items() if value is not None or name not in _OF_FACTS}


class ContextParts(WireModel):
    """What a context contains, as JSON.

    Attributes:
        profile: values by name.
        memories: as `context.quoted` has them, best first.
        recap: the same with `sessions_ago`, 1 for the last session.
    """

    profile: dict[str, Any] = Field(default_factory=dict)
    memories: list[dict[str, Any]] = Field(default_factory=list)
    recap: list[dict[str, Any]] = Field(default_factory=list)


class MemoryChange(WireModel):
    """One entry of a memory's history.

    Attributes:
        event: `ADD`, `UPDATE` or `DELETE`; of a fact also `CONFIRM` where it was said again, `SUPERSEDE`, and
            `RESTORE` where what replaced it was deleted.
        changed_at: in ISO 8601.
    """

    event: str
    old_content: str | None = None
    new_content: str | None = None
    changed_at: str | None = None


class ProfileChange(WireModel):
    """One change of a profile.

    Attributes:
        version: that it made.
        changed_at: in seconds since 1970.
        source: who made it.
        patch: a JSON Merge Patch (RFC 7386).
        evidence: of an extraction, the ids of the memories by whose words it was made.
    """

    version: int
    changed_at: float
    source: Literal["service", "extraction"]
    patch: dict[str, Any]
    evidence: list[str] = Field(default_factory=list)


class UserSummary(WireModel):
    """A user in a list of users.

    Attributes:
        memories, facts, superseded: how many there are, of all characters.
        at_least: there are more than one of these numbers says.
        last_at: when the last message was said, in seconds since 1970; None where there is none.
        agents: the characters that something is kept of, the first twenty.
    """

    user_id: str
    memories: int = 0
    facts: int = 0
    superseded: int = 0
    at_least: bool = False
    last_at: float | None = None
    agents: list[str] = Field(default_factory=list)


_OPTIONAL_FIELDS = (
    "profile_version",
    "profile_updated_at",
    "profile_history",
    "partial",
    "timings",
    "next_cursor",
    "count",
    "known",
    "deleted",
    "history",
    "records",
    "users",
    "context",
    "context_parts",
    "candidates",
    "cut",
    "traceparent",
)


class LTMResponse(WireModel):
    """One response on `ltm_responses`: six fields always, the optional ones only where they are set.

    Attributes:
        profile_version, profile_updated_at: of responses with a profile; the time in seconds since 1970.
        profile_history: of a profile_get that asked for it, the changes of the profile, newest first.
        partial: true where a search had no time to embed its query and ranked by words alone; of a context, also where
            profile and recap are missing for want of time.
        timings: where the search asked for it; `*_at` in seconds since 1970, `*_ms` in milliseconds.
        next_cursor: of a page that is not the last one.
        count: how many memories were deleted or imported; with `dry_run`, would be deleted.
        known, deleted: of a user_import, how many were there, and how many stay deleted.
        history: of a memory_get, every change of the memory, oldest first.
        records: of a user_export.
        users: of a user_list, in the order of their ids.
        context, context_parts: of a context, the text and what it contains.
        candidates, cut: of a search or context that asks for an explanation, the best memories that were ranked,
            returned or not, and where the results end.
        traceparent: the request's.
    """

    request_id: str
    user_id: str
    success: bool
    memories: list[Memory] = Field(default_factory=list)
    user_profile: dict[str, Any] = Field(default_factory=dict)
    error: str | None = None
    profile_version: int | None = None
    profile_updated_at: float | None = None
    profile_history: list[ProfileChange] | None = None
    partial: bool | None = None
    timings: dict[str, float] | None = None
    next_cursor: str | None = None
    count: int | None = None
    known: int | None = None
    deleted: int | None = None
    history: list[MemoryChange] | None = None
    records: list[dict[str, Any]] | None = None
    users: list[UserSummary] | None = None
    context: str | None = None
    context_parts: ContextParts | None = None
    candidates: list[Candidate] | None = None
    cut: Cut | None = None
    traceparent: TraceParent = None

    def to_wire(self) -> str:
        """The response as JSON."""
        absent = {name for name in _OPTIONAL_FIELDS if getattr(self, name) is None}
        return json.dumps(self.model_dump(exclude=absent))


class TraceRecord(WireModel):
    """What happened to one message, request or reply: ids, times and outcome, no contents.

    Attributes:
        kind: a message that was indexed, a request that was answered, or a reply that was published.
        process, host: what wrote the record.
        user: the user id or, with LTM_LOG_USER_IDS=false, its hash.
        reply_to: of a message of the AI, the message_id of the message that it answers, as its `meta` says.
        type: of a request.
        outcome: `ok`, or the code of the error; of a reply, that of its search, such as `timeout`.
        times: seconds since 1970 by stage. Of a message: said, logged, dispatched, started, indexed; of a request:
            pushed, taken, queued, started, answered; of a reply: asked, searched, replied. `logged` is by the clock of
            Redis, each other one by that of the process which did it.
        ms: milliseconds by stage of a search or context: embed_ms, database_ms, rank_ms, context_ms.
        deadline_ms: how long the asker said that it would wait.
        partial: the search had no time to embed its query.
        memories: how many were found, or used for the reply; of a message, 0 where it is not to be remembered.
        tries: how often a message was run, where that is more than once.
    """

    kind: Literal["message", "request", "reply"]
    process: str = ""
    host: str = ""
    user: str = ""
    message_id: str | None = None
    request_id: str | None = None
    task_id: str | None = None
    reply_to: str | None = None
    type: str | None = None
    outcome: str = "ok"
    times: dict[str, float] = Field(default_factory=dict)
    ms: dict[str, float] = Field(default_factory=dict)
    deadline_ms: int | None = None
    partial: bool = False
    memories: int | None = None
    tries: int | None = None

    @property
    def late_ms(self) -> float | None:
        """By how many milliseconds an answer came after its deadline; None where it did not."""
        asked, answered = self.times.get("pushed", self.times.get("taken")), self.times.get("answered")
        if asked is None or answered is None or self.deadline_ms is None:
            return None
        late_ms = (answered - asked) * 1000 - self.deadline_ms
        return late_ms if late_ms > 0 else None


def parse_update(
    raw: bytes,
    max_content_chars: int,
    defaults: MessageDefaults = DEFAULTS,
    *,
    arrived_at: float | None = None,
) -> MemoryUpdateMessage:
    """The event in `raw`.

    Args:
        arrived_at: when it arrived, in seconds since 1970; now where it is None. It dates an event without a time.

    Raises:
        InvalidMessage: and its subclasses, with the reason; `NoText` where it is a recording or file without a text.
    """
    fields = load_object(raw)
    read_event(fields, time.time() if arrived_at is None else arrived_at, defaults)
    update = validate(MemoryUpdateMessage, fields)
    check_length("content", update.content, max_content_chars)
    return update
