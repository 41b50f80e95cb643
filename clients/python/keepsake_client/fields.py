"""Field types of the wire, the base of its models, and how JSON is read, for protocol.py and requests.py."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, tzinfo
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self, TypeVar
from urllib.parse import quote, unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from keepsake_client.errors import InvalidJSON, InvalidMessage, MessageTooLarge
from keepsake_client.times import parse_timestamp
from keepsake_client.tolerance import AI_SOURCES, MAX_KEPT_CHARS, MAX_TTL_DAYS, as_text

DEFAULT_LIMIT = 5
MAX_LIMIT = 100
MAX_MESSAGE_BYTES = 1_048_576
MAX_NESTING = 64
MAX_ID_BYTES = 2_600  # of the encoded form; a key of PostgreSQL's btree has at most 2,704 bytes
MAX_DEADLINE_MS = 600_000

Source = Literal["user", "ai"]

#: W3C Trace Context, version 00, the only one there is: trace-id, parent-id and flags; neither id is all zeros.
_TRACEPARENT = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


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


def readable_id(value: Any) -> Any:
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


def read_traceparent(value: Any) -> str | None:
    """A traceparent of W3C Trace Context; None for anything else, which must cost no message."""
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else None


def whole(value: Any) -> Any:
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


def _switch(value: Any) -> bool:
    # Of a request: a `dry_run` that is not understood must not delete.
    if (flag := _flag(value)) is None:
        raise ValueError("must be true or false")
    return bool(flag)


def _days(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number of days")
    return value


Id = Annotated[str, BeforeValidator(readable_id), AfterValidator(_not_blank), AfterValidator(_short_enough)]
#: The beginning of an id, or "".
IdPrefix = Annotated[str, BeforeValidator(readable_id), AfterValidator(_short_enough)]
# An id that is stored and not echoed in a response: cleaned like a text.
KeptId = Annotated[
    str,
    BeforeValidator(readable_id),
    BeforeValidator(clean),
    AfterValidator(_not_blank),
    AfterValidator(_short_enough),
]
Text = Annotated[str, BeforeValidator(clean), AfterValidator(_not_blank)]
JSONObject = Annotated[dict[str, Any], AfterValidator(clean)]
AskedText = Annotated[Text, BeforeValidator(_query)]
FilteredSource = Annotated[Source, BeforeValidator(_filtered_source)]
Limit = Annotated[int, BeforeValidator(whole), AfterValidator(_limit)]
Deadline = Annotated[int, BeforeValidator(_milliseconds), AfterValidator(_deadline)]
#: A text without a zone is read by the zone that is the context of the validation.
Timestamp = Annotated[float, BeforeValidator(_timestamp)]
#: True or false, also as a text or as 1 and 0; anything else counts as absent.
Flag = Annotated[bool | None, BeforeValidator(_flag)]
#: The same of a request, whose asker can be told of anything else.
Switch = Annotated[bool, BeforeValidator(_switch)]
#: A time that is for information alone: one that cannot be read makes no request invalid.
NotedTime = Annotated[float | None, BeforeValidator(_noted_time)]
#: The span that a message belongs to, of OpenTelemetry or another tracer; one that is malformed counts as absent.
TraceParent = Annotated[str | None, BeforeValidator(read_traceparent)]
#: Days after which a memory expires.
Days = Annotated[float, BeforeValidator(_days), Field(gt=0, le=MAX_TTL_DAYS)]


def checked_up_to(length: int) -> BeforeValidator:
    """A validator that cuts a list of more than `length` items to one more, before each is validated.

    A message has room for half a million, and each that is wrong takes time; one too many is refused all the same.
    """
    return BeforeValidator(lambda items: items[: length + 1] if isinstance(items, list | tuple) else items)


def json_number(seconds: float) -> int | float:
    """`seconds`, as an integer where it is whole: the form that the contract's examples have."""
    return int(seconds) if seconds.is_integer() else seconds


class WireModel(BaseModel):
    """Base of the wire models: frozen, unknown fields ignored, null equivalent to an absent optional field."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    _required: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls._required = frozenset(name for name, field in cls.model_fields.items() if field.is_required())

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict) or None not in data.values():
            return data
        return {name: value for name, value in data.items() if value is not None or name in cls._required}


class Speaker(WireModel):
    """Who of several people said something: an id that stays, the name that others call them by, or both."""

    id: KeptId | None = None
    name: Annotated[Text, Field(max_length=MAX_KEPT_CHARS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"name": data}
        if not isinstance(data, dict | Speaker):
            raise ValueError("must be a name, or an object with a name or an id")
        return data

    @model_validator(mode="after")
    def _says_who(self) -> Self:
        if self.id is None and self.name is None:
            raise ValueError("a speaker has a name or an id")
        return self

    @property
    def key(self) -> str | None:
        """What tells this speaker from another: the id or, without one, the name."""
        return self.name if self.id is None else self.id


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
        problems.append(f"{field}: {in_json_terms(problem)}")
    return "; ".join(dict.fromkeys(problems))


def in_json_terms(problem: Mapping[str, Any]) -> str:
    """What is wrong with a field, without Python's words: its sender may be written in any language."""
    if problem["type"] == "too_long":
        unit = "characters" if isinstance(problem["input"], str) else "items"
        return f"must have at most {problem['ctx']['max_length']} {unit}"
    if problem["type"] == "too_short":
        return f"must have at least {problem['ctx']['min_length']} item"
    return str(problem["msg"]).removeprefix("Value error, ").replace("valid tuple", "valid list")


def check_length(name: str, text: str, max_chars: int) -> None:
    """Raise `MessageTooLarge` for a text with more characters than allowed."""
    if len(text) > max_chars:
        raise MessageTooLarge(f"{name} has {len(text)} characters; {max_chars} are allowed")
