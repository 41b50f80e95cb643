"""The wire protocol: message models, key names, id encoding and limits. Every service imports them from here.

Read tolerantly, write strictly: unknown fields are ignored, `tolerance` reads the fields of events as other programs
write them and `times` their times, and every response carries all six fields. JSON is written in ASCII, which
represents every id, lone surrogates included. docs/contract.md specifies the same in prose.
"""

from __future__ import annotations

import json
import math
import re
import time
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar
from urllib.parse import quote, unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    model_validator,
)

from keepsake_client.errors import InvalidJSON, InvalidMessage, MessageTooLarge, UnknownRequestType
from keepsake_client.times import parse_timestamp
from keepsake_client.tolerance import AI_SOURCES, DEFAULTS, MessageDefaults, as_text, read_event

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

DEFAULT_LIMIT = 5
MAX_LIMIT = 100
MAX_MESSAGE_BYTES = 1_048_576
MAX_NESTING = 64
MAX_ID_BYTES = 2_600  # of the encoded form; a key of PostgreSQL's btree has at most 2,704 bytes
MAX_DEADLINE_MS = 600_000
REJECTED_CHARS = 1_000

RequestType = Literal["search", "add", "profile_get", "profile_update"]
REQUEST_TYPES: tuple[RequestType, ...] = ("search", "add", "profile_get", "profile_update")
Source = Literal["user", "ai"]


def encode_user_id(user_id: str) -> str:
    """Percent-encoding of a user id, injective and total, without white space, wildcards or control characters.

    Letters of every script stay readable; the other characters are percent-encoded UTF-8 (RFC 3986, section 2.1), lone
    surrogates included. `decode_user_id` is its inverse.
    """
    return "".join(
        quote(char, safe="", errors="surrogatepass")
        if char in "%*" or char.isspace() or not char.isprintable()
        else char
        for char in user_id
    )


def decode_user_id(encoded: str) -> str:
    """The inverse of `encode_user_id`."""
    return unquote(encoded, errors="surrogatepass")


def conversation_key(user_id: str) -> str:
    """The Redis list that holds a user's conversation, newest message last."""
    return f"memory:conversation:{encode_user_id(user_id)}"


def alive_key(name: str) -> str:
    """The Redis key of the heartbeat of the process `name`."""
    return f"ltm:alive:{name}"


def process_key(name: str) -> str:
    """The Redis key of what the process `name` states about itself; it outlives the heartbeat."""
    return f"ltm:process:{name}"


def clean(value: Any) -> Any:
    """Clean a JSON value so that PostgreSQL can store it: NUL characters are removed, lone surrogates become U+FFFD.

    Raises:
        ValueError: the value is nested deeper than `MAX_NESTING`, or contains NaN, an infinite number or no JSON type.
    """
    return _clean(value, 0)


def _clean(value: Any, depth: int) -> Any:
    if depth > MAX_NESTING:
        raise ValueError(f"nested deeper than {MAX_NESTING} levels")
    match value:
        case str():
            return value.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case float() if not math.isfinite(value):
            raise ValueError("a number out of range")
        case dict():
            return {_clean(key, depth + 1): _clean(item, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item, depth + 1) for item in value]
        case None | bool() | int() | float():
            return value
    raise ValueError(f"{type(value).__name__} is not a JSON type")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _readable_id(value: Any) -> Any:
    # Ids that are database keys often arrive as JSON numbers.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _short_enough(text: str) -> str:
    if len(encode_user_id(text).encode()) > MAX_ID_BYTES:
        raise ValueError(f"is longer than {MAX_ID_BYTES} bytes")
    return text


def _noted_time(value: Any) -> float | None:
    try:
        return parse_timestamp(value)
    except ValueError:
        return None


def _whole(value: Any) -> Any:
    """A whole number, which some languages write as 3.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool | float) or (isinstance(value, str) and not value.isascii()):
        raise ValueError("must be a whole number")
    return value


def _limit(limit: int) -> int:
    return min(limit, MAX_LIMIT) if limit > 0 else DEFAULT_LIMIT


def _milliseconds(value: Any) -> Any:
    """A number of milliseconds, also one with a fraction."""
    if isinstance(value, bool) or (isinstance(value, str) and not value.isascii()):
        raise ValueError("must be a number of milliseconds")
    return math.ceil(value) if isinstance(value, float) and math.isfinite(value) else value


def _deadline(ms: int) -> int | None:
    return min(ms, MAX_DEADLINE_MS) if ms > 0 else None


def _query(value: Any) -> Any:
    return value if isinstance(value, bool) else as_text(value) or value


def _filtered_source(value: Any) -> Any:
    word = value.strip().casefold() if isinstance(value, str) else value
    if word == "human":
        return "user"
    return "ai" if isinstance(word, str) and word in AI_SOURCES else word


def _timestamp(value: Any, info: ValidationInfo) -> float:
    if type(value) is float and 0 <= value < 1e11:  # seconds, as an event has them when it is validated
        return value
    return parse_timestamp(value, info.context if isinstance(info.context, tzinfo) else UTC)


def _flag(value: Any) -> Any:
    # An optional field of other publishers: what is no truth value must not cost the event.
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    return {"true": True, "1": True, "false": False, "0": False}.get(word)


Id = Annotated[str, BeforeValidator(_readable_id), AfterValidator(_not_blank), AfterValidator(_short_enough)]
# An id that is stored and not echoed in a response: cleaned like a text.
KeptId = Annotated[
    str,
    BeforeValidator(_readable_id),
    BeforeValidator(clean),
    AfterValidator(_not_blank),
    AfterValidator(_short_enough),
]
Text = Annotated[str, BeforeValidator(clean), AfterValidator(_not_blank)]
JSONObject = Annotated[dict[str, Any], AfterValidator(clean)]
AskedText = Annotated[Text, BeforeValidator(_query)]
Limit = Annotated[int, BeforeValidator(_whole), AfterValidator(_limit)]
Deadline = Annotated[int, BeforeValidator(_milliseconds), AfterValidator(_deadline)]
#: A text without a zone is read by the zone that is the context of the validation.
Timestamp = Annotated[float, BeforeValidator(_timestamp)]
#: True or false, also as a text or as 1 and 0; anything else counts as absent.
Flag = Annotated[bool | None, BeforeValidator(_flag)]
#: A time that is for information alone: one that cannot be read makes no request invalid.
NotedTime = Annotated[float | None, BeforeValidator(_noted_time)]


def json_number(seconds: float) -> int | float:
    """`seconds`, as an integer where it is whole: the form that the contract's examples have."""
    return int(seconds) if seconds.is_integer() else seconds


class WireModel(BaseModel):
    """Base of the wire models: frozen, unknown fields ignored, null equivalent to an absent optional field."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict) or None not in data.values():
            return data
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in data.items() if value is not None or name in required}


class MemoryUpdateMessage(WireModel):
    """An event: one message of a user or the AI, as published on `memory_updates`.

    Attributes:
        require_ai_response: whether the publisher wants a reply to it; None where it does not say.
    """

    user_id: Id
    content: Text
    source: Source
    timestamp: Timestamp = Field(default_factory=time.time)
    meta: JSONObject = Field(default_factory=dict)
    message_id: KeptId | None = None
    task_id: KeptId | None = None
    require_ai_response: Flag = None

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
        absent = {name for name in ("task_id", "require_ai_response") if getattr(self, name) is None}
        fields = self.model_dump(exclude=absent)
        if timestamp is not None:
            fields["timestamp"] = timestamp
        return json.dumps({**fields, "logged": True} if logged else fields)

    @field_serializer("timestamp")
    def _timestamp_as_number(self, seconds: float) -> int | float:
        return json_number(seconds)


class SearchFilters(WireModel):
    """Conditions on the memories that a search may return. An unknown one is an error: ignoring it returns too much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_id: Annotated[str, BeforeValidator(_readable_id)] | None = None
    source: Annotated[Source, BeforeValidator(_filtered_source)] | None = None
    since: Timestamp | None = None
    until: Timestamp | None = None


class SearchData(WireModel):
    """`data` of a search."""

    query: AskedText
    limit: Limit = DEFAULT_LIMIT
    min_score: Annotated[float, Field(le=1), AfterValidator(lambda score: max(score, 0.0))] | None = None
    filters: SearchFilters = SearchFilters()
    exclude_session: Annotated[str, BeforeValidator(_readable_id)] | None = None
    recency_half_life_days: Annotated[float, Field(gt=0, le=36_500)] | None = None
    explain: bool = False
    timings: bool = False
    deadline_ms: Deadline | None = None


class AddData(WireModel):
    """`data` of an add."""

    content: AskedText
    metadata: JSONObject = Field(default_factory=dict)
    deadline_ms: Deadline | None = None


class ProfileGetData(WireModel):
    """`data` of a profile_get."""

    deadline_ms: Deadline | None = None


class ProfileUpdateData(WireModel):
    """`data` of a profile_update: `{"updates": {...}}`, or the fields of `updates` directly."""

    updates: JSONObject
    expected_version: Annotated[int, BeforeValidator(_whole), Field(ge=0)] | None = None
    deadline_ms: Deadline | None = None

    @model_validator(mode="before")
    @classmethod
    def _updates_themselves(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "updates" in data:
            return {**data, "updates": {}} if isinstance(data, dict) and data["updates"] is None else data
        options = {key: data[key] for key in ("expected_version", "deadline_ms") if key in data}
        return {"updates": {key: value for key, value in data.items() if key not in options}, **options}


RequestData = SearchData | AddData | ProfileGetData | ProfileUpdateData
_DATA_BY_TYPE: dict[RequestType, type[RequestData]] = {
    "search": SearchData,
    "add": AddData,
    "profile_get": ProfileGetData,
    "profile_update": ProfileUpdateData,
}


class LTMRequest(WireModel):
    """One request from the list `ltm_requests`; `data` has the shape of its type's model."""

    request_id: Id
    type: RequestType
    user_id: Id
    data: JSONObject = Field(default_factory=dict)
    pushed_at: NotedTime = None


class Memory(WireModel):
    """One memory in a response.

    `memory` repeats `content`, and `created_at` the timestamp, in ISO 8601: some clients read one, some the other.
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


_OPTIONAL_FIELDS = ("profile_version", "profile_updated_at", "partial", "timings")


class LTMResponse(WireModel):
    """One response on `ltm_responses`: six fields always, the optional ones only where they are set.

    Attributes:
        profile_version, profile_updated_at: of responses with a profile; the time in seconds since 1970.
        partial: true where a search had no time to embed its query and ranked by words alone.
        timings: where the search asked for it; `*_at` in seconds since 1970, `*_ms` in milliseconds.
    """

    request_id: str
    user_id: str
    success: bool
    memories: list[Memory] = Field(default_factory=list)
    user_profile: dict[str, Any] = Field(default_factory=dict)
    error: str | None = None
    profile_version: int | None = None
    profile_updated_at: float | None = None
    partial: bool | None = None
    timings: dict[str, float] | None = None

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
        type: of a request.
        outcome: `ok`, or the code of the error; of a reply, that of its search, such as `timeout`.
        times: seconds since 1970 by stage. Of a message: said, logged, dispatched, started, indexed; of a request:
            pushed, taken, queued, started, answered; of a reply: asked, searched, replied. `logged` is by the clock of
            Redis, each other one by that of the process which did it.
        ms: milliseconds by stage of a search: embed_ms, database_ms, rank_ms.
        deadline_ms: how long the asker said that it would wait.
        partial: the search had no time to embed its query.
        memories: how many were found, or used for the reply.
        tries: how often a message was run, where that is more than once.
    """

    kind: Literal["message", "request", "reply"]
    process: str = ""
    host: str = ""
    user: str = ""
    message_id: str | None = None
    request_id: str | None = None
    task_id: str | None = None
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


M = TypeVar("M", bound=WireModel)


def validate(model: type[M], fields: dict[str, Any], within: str = "", zone: tzinfo = UTC) -> M:
    """Validate the fields of a wire model, and return the model's instance.

    Args:
        fields: the fields as they were read from JSON.
        within: the field of the message that `fields` is the value of, for the error.
        zone: that of times which name none.

    Raises:
        InvalidMessage: names every invalid field, never a value: values are contents.
    """
    try:
        return model.model_validate(fields, context=zone)
    except ValidationError as error:
        raise InvalidMessage(_reasons(error, within)) from None


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


def parse_request(raw: bytes, max_content_chars: int, zone: tzinfo = UTC) -> LTMRequest:
    """The request in `raw`; its `data` holds the given fields as their type's model validated them.

    Args:
        zone: that of times which name none.

    Raises:
        InvalidMessage: and its subclasses, with the request_id and user_id to respond to where they can be read.
    """
    request_id = user_id = None
    try:
        payload = load_object(raw)
        request_id, user_id = (_peeked_id(payload.get(name)) for name in ("request_id", "user_id"))
        if (kind := payload.get("type")) not in REQUEST_TYPES:
            shown = json.dumps(kind)[:80] if isinstance(kind, str) else "missing or not a string"
            raise UnknownRequestType(f"type is {shown}; it must be one of {', '.join(REQUEST_TYPES)}")
        request = validate(LTMRequest, payload)
        data = validate(_DATA_BY_TYPE[request.type], request.data, within="data", zone=zone)
        for name in ("content", "query"):
            check_length(f"data.{name}", getattr(data, name, ""), max_content_chars)
    except InvalidMessage as error:
        error.request_id = request_id or _peek(raw, b"request_id")
        error.user_id = user_id or _peek(raw, b"user_id")
        raise
    return request.model_copy(update={"data": data.model_dump(exclude_unset=True)})


def load_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`.

    Raises:
        InvalidMessage: it is none, or too large.
    """
    if len(raw) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"the message has {len(raw)} bytes; {MAX_MESSAGE_BYTES} are allowed")
    try:
        payload = json.loads(raw.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidJSON(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise InvalidJSON(f"nested deeper than {MAX_NESTING} levels") from None
    except ValueError as error:
        raise InvalidJSON(f"not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise InvalidJSON(f"a JSON object is needed, not {type(payload).__name__}")
    return payload


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _reasons(error: ValidationError, within: str) -> str:
    problems = []
    for problem in error.errors():
        field = ".".join(str(part) for part in ([within] if within else []) + list(problem["loc"]))
        problems.append(f"{field}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(dict.fromkeys(problems))


def check_length(name: str, text: str, max_chars: int) -> None:
    """Raise `MessageTooLarge` for a text with more characters than allowed."""
    if len(text) > max_chars:
        raise MessageTooLarge(f"{name} has {len(text)} characters; {max_chars} are allowed")


def _peeked_id(value: Any) -> str | None:
    value = _readable_id(value)
    return value if isinstance(value, str) and value.strip() else None


def _peek(raw: bytes, name: bytes) -> str | None:
    """An id found by pattern in bytes that are not JSON, so that their sender gets an error response."""
    window = 8_192
    for part in (raw[:window], raw[-window:]):
        if found := re.search(rb'(?<!\\)"' + name + rb'"\s*:\s*"((?:[^"\\]|\\.){1,512})"', part):
            try:
                return _peeked_id(json.loads(b'"' + found[1] + b'"'))
            except ValueError:
                continue
    return None
