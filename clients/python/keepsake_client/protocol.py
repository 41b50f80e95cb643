"""The wire: what other people's services send and receive. The one source of its shapes, names and limits.

Read tolerantly, write strictly: unknown fields are ignored, several forms of a timestamp are understood, and every
response carries all six fields. docs/contract.md says the same in prose.
"""

from __future__ import annotations

import json
import math
import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar
from urllib.parse import quote, unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)

from keepsake_client.errors import InvalidJSON, InvalidMessage, MessageTooLarge, UnknownRequestType

# Names on the wire; those of other people's lists and channels can be changed by settings.
REQUESTS_QUEUE = "ltm_requests"
RESPONSES_CHANNEL = "ltm_responses"
UPDATES_CHANNEL = "memory_updates"
USER_INPUT_QUEUE = "user_input_queue"
AI_RESPONSES_CHANNEL = "ai_responses"
REJECTED_STREAM = "ltm:rejected"
UPDATES_STREAM = "memory_updates:log"
#: The field of an entry of the log that holds the event, in the form it has on the channel.
STREAM_EVENT_FIELD = "event"
#: The group of consumers that reads the log.
STREAM_GROUP = "indexers"
#: A hash of what happened how often, for the operator: `rejected`, `log_trimmed_unread`,
#: `backlog_over`, `searches_expired`, `searches_partial`. `ltm status` shows them.
COUNTERS = "ltm:counters"

MAX_LIMIT = 100
MAX_MESSAGE_BYTES = 1_048_576
MAX_NESTING = 64
MAX_ID_BYTES = 2_600  # of the encoded form; PostgreSQL's btree takes keys up to 2,704 bytes
REJECTED_CHARS = 1_000

RequestType = Literal["search", "add", "profile_get", "profile_update"]
REQUEST_TYPES: tuple[RequestType, ...] = ("search", "add", "profile_get", "profile_update")
Source = Literal["user", "ai"]


def encode_user_id(user_id: str) -> str:
    """The one-to-one, total encoding of a user id into text without white space, wildcards or control characters.

    Letters of every script stay readable; the rest is percent-encoded UTF-8 (RFC 3986, section 2.1), lone surrogates
    included. `decode_user_id` is its inverse.
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
    """The Redis key that a process called `name` keeps alive while it works."""
    return f"ltm:alive:{name}"


def clean(value: Any, depth: int = 0) -> Any:
    """A JSON value that PostgreSQL can hold: without NUL, lone surrogates and infinite numbers.

    Raises:
        ValueError: nested deeper than `MAX_NESTING`, or a number that JSON does not have.
    """
    if depth > MAX_NESTING:
        raise ValueError(f"nested deeper than {MAX_NESTING} levels")
    match value:
        case str():
            return value.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case float() if not math.isfinite(value):
            raise ValueError("a number out of range")
        case dict():
            return {clean(key, depth + 1): clean(item, depth + 1) for key, item in value.items()}
        case list():
            return [clean(item, depth + 1) for item in value]
    return value


def parse_timestamp(value: Any) -> float:
    """Seconds since 1970 from int or float seconds, milliseconds, or ISO 8601 (without a zone: UTC).

    Raises:
        ValueError: it is none of these, or not within the years 1 to 9999.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("timestamp must be seconds, milliseconds or ISO 8601")
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            value = float(value)  # "1712345678" is common out there
        else:
            return _in_range((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    # Seconds pass 10^11 in the year 5138; milliseconds passed it in 1973. The bound comes first: JSON has integers that
    # no float can hold.
    return _in_range(value / 1000 if 1e11 <= abs(value) < 1e18 else value)


def _in_range(seconds: float) -> float:
    if not -6.2e10 < seconds < 2.5e11:  # NaN fails this too
        raise ValueError("timestamp out of range")
    return float(seconds)


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


def _limit(value: Any) -> Any:
    if isinstance(value, bool | float) or (isinstance(value, str) and not value.isascii()):
        raise ValueError("must be a whole number")
    return value


Id = Annotated[str, BeforeValidator(_readable_id), AfterValidator(_not_blank), AfterValidator(_short_enough)]
# Other people's ids that are only kept: cleaned like a text, because they are never answered with.
KeptId = Annotated[
    str,
    BeforeValidator(_readable_id),
    BeforeValidator(clean),
    AfterValidator(_not_blank),
    AfterValidator(_short_enough),
]
Text = Annotated[str, BeforeValidator(clean), AfterValidator(_not_blank)]
JSONObject = Annotated[dict[str, Any], AfterValidator(clean)]
Limit = Annotated[int, BeforeValidator(_limit), Field(ge=1, le=MAX_LIMIT)]
Deadline = Annotated[int, BeforeValidator(_limit), Field(ge=1, le=600_000)]
Timestamp = Annotated[float, BeforeValidator(parse_timestamp)]


def json_number(seconds: float) -> int | float:
    """Whole seconds leave as integers, as the contract's examples show them."""
    return int(seconds) if seconds.is_integer() else seconds


class WireModel(BaseModel):
    """A frozen model of something on the wire; unknown fields are ignored, and null means what leaving out means."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in data.items() if value is not None or name in required}


class MemoryUpdateMessage(WireModel):
    """One thing that a user or the AI said, as published on `memory_updates`."""

    user_id: Id
    content: Text
    source: Source
    timestamp: Timestamp = Field(default_factory=time.time)
    meta: JSONObject = Field(default_factory=dict)
    message_id: KeptId | None = None
    task_id: KeptId | None = None

    @property
    def session_id(self) -> str | None:
        """`meta.session_id` as text, where the publisher gave one."""
        session = self.meta.get("session_id")
        return None if session is None else str(session)

    @field_serializer("timestamp")
    def _timestamp_as_number(self, seconds: float) -> int | float:
        return json_number(seconds)


class SearchFilters(WireModel):
    """Which memories a search may return; a filter nobody knows is refused, for ignoring it would return too much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_id: Annotated[str, BeforeValidator(_readable_id)] | None = None
    source: Source | None = None
    since: Timestamp | None = None
    until: Timestamp | None = None


class SearchData(WireModel):
    """`data` of a search."""

    query: Text
    limit: Limit = 5
    min_score: Annotated[float, Field(ge=0, le=1)] | None = None
    filters: SearchFilters = SearchFilters()
    exclude_session: Annotated[str, BeforeValidator(_readable_id)] | None = None
    recency_half_life_days: Annotated[float, Field(gt=0, le=36_500)] | None = None
    explain: bool = False
    timings: bool = False
    deadline_ms: Deadline | None = None


class AddData(WireModel):
    """`data` of an add."""

    content: Text
    metadata: JSONObject = Field(default_factory=dict)
    deadline_ms: Deadline | None = None


class ProfileGetData(WireModel):
    """`data` of a profile_get: nothing is needed."""

    deadline_ms: Deadline | None = None


class ProfileUpdateData(WireModel):
    """`data` of a profile_update: `{"updates": {...}}`, or the updates themselves."""

    updates: JSONObject
    expected_version: Annotated[int, BeforeValidator(_limit), Field(ge=0)] | None = None
    deadline_ms: Deadline | None = None

    @model_validator(mode="before")
    @classmethod
    def _updates_themselves(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "updates" in data:
            return data
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
    """One request from the list `ltm_requests`; what its `data` holds is for its type's model to say."""

    request_id: Id
    type: RequestType
    user_id: Id
    data: JSONObject = Field(default_factory=dict)


class Memory(WireModel):
    """One memory in a response. `memory` repeats `content`, because clients of both kinds exist."""

    id: str
    content: str
    memory: str = ""
    score: float | None = None
    source: Source = "user"
    timestamp: float
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _repeat_content(self) -> Self:
        object.__setattr__(self, "memory", self.content)
        return self

    @field_serializer("timestamp")
    def _timestamp_as_number(self, seconds: float) -> int | float:
        return json_number(seconds)


_SOMETIMES = ("profile_version", "profile_updated_at", "partial", "timings")


class LTMResponse(WireModel):
    """One response on `ltm_responses`: six fields always, and some only where they have something to say.

    The profile's version and time come with profiles; `partial` with a search that ran out of time and looked at words
    alone; `timings` with one that asked for them: moments in seconds since 1970, durations in ms.
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
        absent = {name for name in _SOMETIMES if getattr(self, name) is None}
        # ASCII-only JSON carries every id there is, lone surrogates included.
        return json.dumps(self.model_dump(exclude=absent))


M = TypeVar("M", bound=WireModel)


def parse_as(model: type[M], raw: bytes) -> M:
    """The message in `raw`, in the shape of `model`; its lengths are for the caller to judge.

    Raises:
        InvalidMessage: and its subclasses, saying what is wrong.
    """
    return _validated(model, _load_object(raw))


def parse_update(raw: bytes, max_content_chars: int) -> MemoryUpdateMessage:
    """The event in `raw`.

    Raises:
        InvalidMessage: and its subclasses, saying what is wrong.
    """
    update = parse_as(MemoryUpdateMessage, raw)
    _check_length("content", update.content, max_content_chars)
    return update


def parse_request(raw: bytes, max_content_chars: int) -> LTMRequest:
    """The request in `raw`; its `data` holds the given fields as their type's model validated them.

    Raises:
        InvalidMessage: and its subclasses, with the request_id and user_id to answer where they can be read.
    """
    request_id = user_id = None
    try:
        payload = _load_object(raw)
        request_id, user_id = (_peeked_id(payload.get(name)) for name in ("request_id", "user_id"))
        if (kind := payload.get("type")) not in REQUEST_TYPES:
            shown = json.dumps(kind)[:80] if isinstance(kind, str) else "missing or not a string"
            raise UnknownRequestType(f"type is {shown}; it must be one of {', '.join(REQUEST_TYPES)}")
        request = _validated(LTMRequest, payload)
        data = _validated(_DATA_BY_TYPE[request.type], request.data, within="data")
        for name in ("content", "query"):
            _check_length(f"data.{name}", getattr(data, name, ""), max_content_chars)
    except InvalidMessage as error:
        error.request_id = request_id or _peek(raw, b"request_id")
        error.user_id = user_id or _peek(raw, b"user_id")
        raise
    return request.model_copy(update={"data": data.model_dump(exclude_unset=True)})


def _load_object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"the message has {len(raw)} bytes; {MAX_MESSAGE_BYTES} are allowed")
    try:
        payload = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
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


def _validated(model: type[M], payload: dict[str, Any], within: str = "") -> M:
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        raise InvalidMessage(_in_words(error, within)) from None


def _in_words(error: ValidationError, within: str) -> str:
    """Every problem of a validation error with its field, never with the value: values are other people's words."""
    problems = []
    for problem in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in ([within] if within else []) + list(problem["loc"]))
        text = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{field}: {text}" if field else text)
    return "; ".join(dict.fromkeys(problems))


def _check_length(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise MessageTooLarge(f"{name} has {len(text)} characters; {most} are allowed")


def _peeked_id(value: Any) -> str | None:
    value = _readable_id(value)
    return value if isinstance(value, str) and value.strip() else None


def _peek(raw: bytes, name: bytes) -> str | None:
    """A top-looking id in bytes that are no JSON, so that their sender hears about it instead of waiting."""
    window = 8_192
    for part in (raw[:window], raw[-window:]) if len(raw) > window else (raw,):
        if found := re.search(rb'(?<!\\)"' + name + rb'"\s*:\s*"((?:[^"\\]|\\.){1,512})"', part):
            try:
                return _peeked_id(json.loads(b'"' + found[1] + b'"'))
            except ValueError:
                continue
    return None
