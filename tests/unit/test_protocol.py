"""The wire protocol: parsing, validation errors, id encoding and serialization."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keepsake_client.errors import InvalidJSON, InvalidMessage, MessageTooLarge, RequestFailed, UnknownRequestType
from keepsake_client.protocol import (
    MAX_ID_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_NESTING,
    ContextData,
    LTMRequest,
    LTMResponse,
    Memory,
    MemoryUpdateMessage,
    ProfileUpdateData,
    SearchData,
    clean,
    conversation_key,
    decode_user_id,
    encode_user_id,
    parse_request,
    parse_update,
)

from adapters.ltm_responses import failure

MAX_CHARS = 32_768
SEARCH: dict[str, Any] = {"request_id": "r1", "type": "search", "user_id": "u1", "data": {"query": "tea?"}}
ADD: dict[str, Any] = {"request_id": "r1", "type": "add", "user_id": "u1", "data": {"content": "I like tea"}}
UPDATE: dict[str, Any] = {"user_id": "u1", "content": "I like tea", "source": "user", "timestamp": 1_712_345_678}

STRANGE_IDS = [
    "*",
    " u1 ",
    "u1",
    "anna lee",
    "annalee",
    "用户一",
    '{"ne": "x"}',
    "x" * 500,
    "'; drop table",
    "%2A",
    "%",
    "a\0b",
    "\ud800",
    "a\u2028b",
    "a\u00a0b",
    "\u202e",
    "\U0001f469\u200d\U0001f4bb",
]


def encoded(message: object) -> bytes:
    return json.dumps(message).encode()


def request(raw: object) -> LTMRequest:
    return parse_request(encoded(raw), MAX_CHARS)


def update(raw: object) -> MemoryUpdateMessage:
    return parse_update(encoded(raw), MAX_CHARS)


def without(message: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != name}


def strings_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)


def storable(value: object) -> bool:
    """Whether PostgreSQL can store the value: it has no NUL and no lone surrogates."""
    return all("\0" not in text and not re.search("[\ud800-\udfff]", text) for text in strings_in(value))


# Bad input: bytes

NOT_MESSAGES = {
    "nothing": (b"", "invalid_json"),
    "not JSON": (b"hello", "invalid_json"),
    "half of an object": (b'{"request_id": "r1", "type": "sear', "invalid_json"),
    "a string": (b'"hello"', "invalid_json"),
    "a list": (b"[1, 2]", "invalid_json"),
    "null": (b"null", "invalid_json"),
    "a number": (b"42", "invalid_json"),
    "invalid UTF-8": (b'{"user_id": "\xff\xfe"}', "invalid_json"),
    "UTF-16": ("{}".encode("utf-16"), "invalid_json"),
    "NaN": (b'{"user_id": "u1", "meta": {"x": NaN}}', "invalid_json"),
    "-Infinity": (b'{"user_id": "u1", "meta": {"x": -Infinity}}', "invalid_json"),
    "deep nesting": (b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
    "20 MB": (b'{"content": "' + b"x" * 20_000_000 + b'"}', "too_large"),
    "20 MB of brackets": (b"[" * 20_000_000, "too_large"),
    "an integer of 5,000 digits": (b'{"x": ' + b"9" * 5_000 + b"}", "invalid_json"),
}


@pytest.mark.parametrize(("raw", "code"), NOT_MESSAGES.values(), ids=NOT_MESSAGES)
def test_bytes_that_are_not_a_request_are_invalid(raw: bytes, code: str) -> None:
    """Given bytes that are not one JSON object within the size limit, I expect an error with the code for it."""
    with pytest.raises(InvalidMessage) as refused:
        parse_request(raw, MAX_CHARS)

    assert refused.value.code == code


@pytest.mark.parametrize(("raw", "code"), NOT_MESSAGES.values(), ids=NOT_MESSAGES)
def test_bytes_that_are_not_an_event_are_invalid(raw: bytes, code: str) -> None:
    """Given the same bytes on the channel of events, I expect the same."""
    with pytest.raises(InvalidMessage) as refused:
        parse_update(raw, MAX_CHARS)

    assert refused.value.code == code


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b'{"a": "\xff"}', "invalid_json: not UTF-8 at byte 7"),
        (b"[" * 100_000, f"invalid_json: nested deeper than {MAX_NESTING} levels"),
        (b"{", "invalid_json: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"[1]", "invalid_json: a JSON object is needed, not list"),
        (b"x" * 1_048_577, "too_large: the message has 1048577 bytes; 1048576 are allowed"),
    ],
    ids=["not UTF-8", "deep nesting", "not JSON", "a list", "too many bytes"],
)
def test_the_reason_tells_a_publisher_what_to_mend(raw: bytes, error: str) -> None:
    """Given bytes that are not a message, I expect the place or the size, and nothing of the contents, in the error."""
    with pytest.raises(InvalidMessage) as refused:
        parse_request(raw, MAX_CHARS)

    assert refused.value.wire == error


def test_nan_in_a_request_is_named() -> None:
    """Given a NaN, I expect the error to name it: Python's JSON encoder writes it by default."""
    with pytest.raises(InvalidJSON, match="NaN is no JSON number"):
        parse_request(encoded({**SEARCH, "data": {"query": "x", "x": float("nan")}}), MAX_CHARS)


# Bad input: requests

BAD_REQUESTS = {
    "request_id missing": (without(SEARCH, "request_id"), "request_id: "),
    "request_id null": ({**SEARCH, "request_id": None}, "request_id: "),
    "request_id empty": ({**SEARCH, "request_id": ""}, "request_id: must not be blank"),
    "request_id a list": ({**SEARCH, "request_id": ["r1"]}, "request_id: "),
    "user_id missing": (without(SEARCH, "user_id"), "user_id: "),
    "user_id null": ({**SEARCH, "user_id": None}, "user_id: "),
    "user_id empty": ({**SEARCH, "user_id": ""}, "user_id: must not be blank"),
    "user_id blank": ({**SEARCH, "user_id": " \t\u3000"}, "user_id: must not be blank"),
    "user_id an object": ({**SEARCH, "user_id": {"ne": "x"}}, "user_id: "),
    "user_id true": ({**SEARCH, "user_id": True}, "user_id: "),
    "user_id 2.5": ({**SEARCH, "user_id": 2.5}, "user_id: "),
    "user_id too long": ({**SEARCH, "user_id": "x" * (MAX_ID_BYTES + 1)}, "user_id: is longer than"),
    "query missing": ({**SEARCH, "data": {}}, "data.query: "),
    "query null": ({**SEARCH, "data": {"query": None}}, "data.query: "),
    "query empty": ({**SEARCH, "data": {"query": ""}}, "data.query: must not be blank"),
    "query blank": ({**SEARCH, "data": {"query": " \n "}}, "data.query: must not be blank"),
    "query of NULs alone": ({**SEARCH, "data": {"query": "\0\0"}}, "data.query: must not be blank"),
    "query a list": ({**SEARCH, "data": {"query": ["tea"]}}, "data.query: "),
    "content missing": ({**ADD, "data": {}}, "data.content: "),
    "content null": ({**ADD, "data": {"content": None}}, "data.content: "),
    "content empty": ({**ADD, "data": {"content": ""}}, "data.content: must not be blank"),
    "content blank": ({**ADD, "data": {"content": "\u3000"}}, "data.content: must not be blank"),
    "metadata a list": ({**ADD, "data": {"content": "x", "metadata": []}}, "data.metadata: "),
    "limit 2.5": ({**SEARCH, "data": {"query": "x", "limit": 2.5}}, "data.limit: must be a whole number"),
    "limit true": ({**SEARCH, "data": {"query": "x", "limit": True}}, "data.limit: must be a whole number"),
    "limit five": ({**SEARCH, "data": {"query": "x", "limit": "five"}}, "data.limit: "),
    "limit a list": ({**SEARCH, "data": {"query": "x", "limit": [5]}}, "data.limit: "),
    "an unknown filter": (
        {**SEARCH, "data": {"query": "x", "filters": {"sesion_id": "s1"}}},
        "data.filters.sesion_id: ",
    ),
    "a filter for another user": (
        {**SEARCH, "data": {"query": "x", "filters": {"user_id": "u2"}}},
        "data.filters.user_id: ",
    ),
    "filters a list": ({**SEARCH, "data": {"query": "x", "filters": ["s1"]}}, "data.filters: "),
    "filter source unknown": (
        {**SEARCH, "data": {"query": "x", "filters": {"source": "mic"}}},
        "data.filters.source: ",
    ),
    "filter since in words": ({**SEARCH, "data": {"query": "x", "filters": {"since": "May"}}}, "data.filters.since: "),
    "filter session_id a wildcard object": (
        {**SEARCH, "data": {"query": "x", "filters": {"session_id": {"ne": "s1"}}}},
        "data.filters.session_id: ",
    ),
    "exclude_session a list": ({**SEARCH, "data": {"query": "x", "exclude_session": ["s1"]}}, "data.exclude_session: "),
    "min_score 2": ({**SEARCH, "data": {"query": "x", "min_score": 2}}, "data.min_score: "),
    "half-life 0": (
        {**SEARCH, "data": {"query": "x", "recency_half_life_days": 0}},
        "data.recency_half_life_days: ",
    ),
    "data a list": ({**SEARCH, "data": ["tea"]}, "data: "),
    "data a string": ({**SEARCH, "data": "tea"}, "data: "),
    "data missing where a query is needed": (without(SEARCH, "data"), "data.query: "),
    "deep nesting": (
        {**ADD, "data": {"content": "x", "metadata": json.loads("[" * 500 + "]" * 500)}},
        "data: nested deeper than",
    ),
    "nested a level too deep": (
        {**ADD, "data": {"content": "x", "metadata": {"x": json.loads("[" * MAX_NESTING + "]" * MAX_NESTING)}}},
        "nested deeper than",
    ),
    "a number past all floats": ('{"request_id": "r1", "type": "add", "user_id": "u1", "data": {"x": 1e999}}', "data"),
    "updates a list": ({**ADD, "type": "profile_update", "data": {"updates": ["x"]}}, "data.updates: "),
    "expected_version -1": (
        {**ADD, "type": "profile_update", "data": {"updates": {}, "expected_version": -1}},
        "data.",
    ),
    "expected_version 1.5": (
        {**ADD, "type": "profile_update", "data": {"updates": {}, "expected_version": 1.5}},
        "data.expected_version: must be a whole number",
    ),
    "deadline_ms soon": ({**SEARCH, "data": {"query": "x", "deadline_ms": "soon"}}, "data.deadline_ms: "),
    "deadline_ms true": ({**SEARCH, "data": {"query": "x", "deadline_ms": True}}, "data.deadline_ms: must be a number"),
}


@pytest.mark.parametrize("value", ["yes", "maybe", "tru", "", 2, -1, 0.5, [], {}, [True]])
@pytest.mark.parametrize(
    ("kind", "data", "field"),
    [
        ("memory_delete", {"filters": {"source": "user"}}, "dry_run"),
        ("memory_delete", {"filters": {"source": "user"}}, "all_agents"),
        ("user_forget", {}, "dry_run"),
        ("user_import", {"records": []}, "restore_deleted"),
        ("search", {"query": "tea"}, "all_agents"),
    ],
)
def test_a_switch_that_is_not_understood_is_refused(kind: str, data: dict[str, Any], field: str, value: object) -> None:
    """Given a `dry_run` or the like that is neither true nor false, I expect an error, and nothing to be deleted."""
    with pytest.raises(InvalidMessage, match=rf"^data\.{field}: must be true or false$"):
        request({**SEARCH, "type": kind, "data": {**data, field: value}})


@pytest.mark.parametrize(
    ("value", "read"), [(True, True), ("TRUE", True), (1, True), (False, False), ("false", False), ("0", False)]
)
def test_a_switch_is_read_in_its_spellings(value: object, read: bool) -> None:
    """Given true or false as other languages write them, I expect them read; given null, I expect the default."""
    forget = {**SEARCH, "type": "user_forget"}

    assert request({**forget, "data": {"dry_run": value}}).data == {"dry_run": read}
    assert request({**forget, "data": {"dry_run": None}}).data == {}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"also": "u2"}, "data.also: Input should be a valid list"),
        ({"also": ["u"] * 9}, "data.also: must have at most 8 items"),
        ({"speaker": []}, "data.speaker: must be a name, or an object with a name or an id"),
        ({"speaker": 7}, "data.speaker: must be a name, or an object with a name or an id"),
        ({"speaker": "x" * 201}, "data.speaker.name: must have at most 200 characters"),
    ],
)
def test_errors_name_what_json_has(data: dict[str, Any], reason: str) -> None:
    """Given a field of the wrong kind, I expect an error without the words of Python's types."""
    with pytest.raises(InvalidMessage) as refused:
        request({**SEARCH, "data": {"query": "tea", **data}})

    assert str(refused.value) == reason


def test_days_are_a_number() -> None:
    """Given `true` as the days after which a memory expires, I expect an error, not a memory of one day."""
    with pytest.raises(InvalidMessage, match=r"^data\.ttl_days: must be a number of days$"):
        request({**SEARCH, "type": "add", "data": {"content": "tea", "ttl_days": True}})


@pytest.mark.parametrize(("raw", "reason"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_an_invalid_request_is_refused_with_its_field(raw: dict[str, Any] | str, reason: str) -> None:
    """Given a request with one thing wrong, I expect an error that names the field."""
    with pytest.raises(InvalidMessage) as refused:
        parse_request(raw.encode() if isinstance(raw, str) else encoded(raw), MAX_CHARS)

    assert reason in str(refused.value)


def test_every_invalid_field_is_named_by_its_path() -> None:
    """Given several things wrong, I expect all of them in one error, each field by its path from the message."""
    with pytest.raises(InvalidMessage) as refused:
        request({**SEARCH, "data": {"query": " ", "limit": True, "filters": {"since": "May"}}})

    assert str(refused.value) == (
        "data.query: must not be blank; data.limit: must be a whole number; "
        "data.filters.since: must be a time, such as 1712345678 or 2024-04-05T12:00:00Z"
    )

    with pytest.raises(InvalidMessage) as refused:
        update({**UPDATE, "user_id": [], "content": ""})

    assert str(refused.value) == "user_id: Input should be a valid string; content: must not be blank"


@pytest.mark.parametrize("kind", ["forget", "SEARCH", "", None, 1, ["search"], {"search": 1}, "x" * 5_000])
def test_an_unknown_type_is_refused_with_the_four(kind: object) -> None:
    """Given a type that is none of the four, I expect an error that names the four."""
    with pytest.raises(UnknownRequestType, match="search, add, profile_get, profile_update"):
        request({**SEARCH, "type": kind})


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("forget", '"forget"'),
        ("x" * 79, f'"{"x" * 79}'),
        ("x" * 5_000, f'"{"x" * 79}'),
        (["hush"], "missing or not a string"),
    ],
    ids=["short", "a quote too long", "long", "a list"],
)
def test_an_unknown_type_is_shown_in_at_most_80_characters(kind: object, shown: str) -> None:
    """Given an unknown type, I expect its first 80 characters as JSON, and nothing of one that is not a string."""
    with pytest.raises(UnknownRequestType) as refused:
        request({**SEARCH, "type": kind})

    assert str(refused.value).startswith(f"type is {shown}; it must be one of ")


def test_a_missing_type_is_refused_with_the_four() -> None:
    """Given no type at all, I expect the same."""
    with pytest.raises(UnknownRequestType, match="search, add, profile_get, profile_update"):
        request(without(SEARCH, "type"))


@pytest.mark.parametrize(("kind", "field"), [("search", "query"), ("add", "content")])
def test_too_long_a_text_is_refused_with_both_lengths(kind: str, field: str) -> None:
    """Given a text over the limit, I expect `too_large` with its length and the limit."""
    raw = encoded({**SEARCH, "type": kind, "data": {field: "x" * 101}})

    with pytest.raises(MessageTooLarge, match=f"data.{field} has 101 characters; 100 are allowed"):
        parse_request(raw, 100)


def test_a_text_of_exactly_the_limit_is_valid() -> None:
    """Given a text as long as allowed, in characters and not in bytes, I expect it to be valid."""
    text = "茶" * 100

    assert parse_request(encoded({**SEARCH, "data": {"query": text}}), 100).data["query"] == text


def test_a_request_without_a_text_has_no_length_to_check() -> None:
    """Given the least limit and a request that has no text, I expect it to be valid."""
    assert parse_request(encoded({**SEARCH, "type": "profile_get", "data": {}}), 0).type == "profile_get"


def test_errors_never_quote_values() -> None:
    """Given an invalid value, I expect the error not to quote it: errors go to logs and streams."""
    with pytest.raises(InvalidMessage) as refused:
        request({**SEARCH, "user_id": {"secret": "hush"}, "data": {"query": ["hush"], "limit": "hush"}})

    assert "hush" not in str(refused.value)

    with pytest.raises(InvalidMessage) as refused:
        update({**UPDATE, "user_id": {"hush": "hush"}, "content": {"hush": "hush"}})

    assert "hush" not in str(refused.value)


def test_an_invalid_request_has_the_ids_for_its_response() -> None:
    """Given a request with readable ids and something else wrong, I expect both ids on the error."""
    with pytest.raises(InvalidMessage) as refused:
        request({**SEARCH, "data": []})

    assert (refused.value.request_id, refused.value.user_id) == ("r1", "u1")


def test_an_invalid_request_has_its_integer_ids_as_text() -> None:
    """Given integer ids and something else wrong, I expect their digits on the error, as in any response."""
    with pytest.raises(InvalidMessage) as refused:
        request({**SEARCH, "request_id": 7, "user_id": 42, "data": []})

    assert (refused.value.request_id, refused.value.user_id) == ("7", "42")


def test_the_ids_for_a_response_are_those_of_the_request_itself() -> None:
    """Given ids inside `data` that come before the request's own, I expect the request's own on the error."""
    inner = {"request_id": "r9", "user_id": "u9"}
    with pytest.raises(InvalidMessage) as refused:
        request({"data": inner, "type": "search", "request_id": "r1", "user_id": "u1"})

    assert (refused.value.request_id, refused.value.user_id) == ("r1", "u1")


CUT_SHORT = {
    "cut short": b'{"request_id": "r1", "user_id": "u1", "type": "sea',
    "invalid UTF-8": b'{"request_id": "r1", "user_id": "u1", "data": {"query": "\xff"}}',
    "NaN": b'{"request_id": "r1", "user_id": "u1", "data": NaN}',
    "nested deep": b'{"request_id": "r1", "user_id": "u1", "data": ' + b"[" * 100_000,
    "20 MB, ids first": b'{"request_id": "r1", "user_id": "u1", "data": "' + b"x" * 20_000_000 + b'"}',
    "20 MB, ids last": b'{"data": "' + b"x" * 20_000_000 + b'", "request_id": "r1", "user_id": "u1"}',
    "unreadable ids first": b'{"request_id": "\xff", "user_id": "\\x", "data": "'
    + b"x" * 10_000
    + b'", "request_id": "r1", "user_id": "u1"',
}


@pytest.mark.parametrize("raw", CUT_SHORT.values(), ids=CUT_SHORT)
def test_ids_are_found_in_bytes_that_are_not_json(raw: bytes) -> None:
    """Given bytes that are not JSON but contain ids, I expect the ids, so that the sender gets a response."""
    with pytest.raises(InvalidMessage) as refused:
        parse_request(raw, MAX_CHARS)

    assert (refused.value.request_id, refused.value.user_id) == ("r1", "u1")


@pytest.mark.parametrize(
    ("before", "after", "found"), [(8_192, 9_000, "r1"), (8_193, 9_000, None), (9_000, 9_000, None)]
)
def test_ids_are_searched_in_the_first_and_last_8_kib(before: int, after: int, found: str | None) -> None:
    """Given an id that ends at a distance from the start of bytes that are not JSON, I expect it where the distance is
    at most 8 KiB: the search takes no longer in 20 MB."""
    request_id = b'"request_id": "r1"'
    raw = b" " * (before - len(request_id)) + request_id + b" " * after

    with pytest.raises(InvalidJSON) as refused:
        parse_request(raw, MAX_CHARS)

    assert refused.value.request_id == found


def test_ids_quoted_inside_a_text_are_ignored() -> None:
    """Given broken JSON whose text quotes a request, I expect the quoted id not to be taken for the sender's."""
    with pytest.raises(InvalidMessage) as refused:
        parse_request(b'{"content": "he sent {\\"request_id\\": \\"r9\\"}"', MAX_CHARS)

    assert refused.value.request_id is None


# Bad input: events

BAD_UPDATES = {
    "user_id an object": ({**UPDATE, "user_id": {"ne": "x"}}, "user_id: "),
    "user_id true": ({**UPDATE, "user_id": True}, "user_id: "),
    "content missing": (without(UPDATE, "content"), "content: "),
    "content null": ({**UPDATE, "content": None}, "content: "),
    "content empty": ({**UPDATE, "content": ""}, "content: must not be blank"),
    "content blank": ({**UPDATE, "content": "\n"}, "content: must not be blank"),
    "content an object": ({**UPDATE, "content": {}}, "content: "),
    "meta nested deep": ({**UPDATE, "meta": {"x": json.loads("[" * 500 + "]" * 500)}}, "meta: nested deeper than"),
}


@pytest.mark.parametrize(("raw", "reason"), BAD_UPDATES.values(), ids=BAD_UPDATES)
def test_an_invalid_event_is_refused_with_its_field(raw: dict[str, Any], reason: str) -> None:
    """Given an event with one thing wrong, I expect an error that names the field."""
    with pytest.raises(InvalidMessage) as refused:
        update(raw)

    assert reason in str(refused.value)


def test_too_long_an_event_is_refused_with_both_lengths() -> None:
    """Given content over the limit, I expect `too_large` with its length and the limit."""
    with pytest.raises(MessageTooLarge, match="content has 101 characters; 100 are allowed"):
        parse_update(encoded({**UPDATE, "content": "x" * 101}), 100)


def test_nul_and_lone_surrogates_are_cleaned_out_of_events() -> None:
    """Given a NUL and half of an emoji, I expect the first removed and U+FFFD for the other."""
    cleaned = update({**UPDATE, "content": "t\0ea \ud83c", "meta": {"\0k": ["\udf75"]}})

    assert (cleaned.content, cleaned.meta) == ("tea \ufffd", {"k": ["\ufffd"]})


def test_nul_and_lone_surrogates_are_cleaned_out_of_requests() -> None:
    """Given them in a request, I expect the same of all of its data."""
    assert request({**ADD, "data": {"content": "t\0ea \ud83c"}}).data == {"content": "tea \ufffd"}


def test_a_whole_emoji_survives_cleaning() -> None:
    """Given a surrogate pair, which JSON writes for one emoji, I expect the emoji."""
    assert parse_update(b'{"user_id": "u", "source": "ai", "content": "\\ud83c\\udf75"}', 10).content == "🍵"


def test_the_ids_of_an_event_can_be_stored() -> None:
    """Given a NUL and a lone surrogate in an event's other ids, I expect them cleaned: they are stored as they are."""
    cleaned = update({**UPDATE, "message_id": "m\0\ud800", "task_id": "t\0\ud800"})

    assert storable([cleaned.message_id, cleaned.task_id])


# Tolerant reading

NOON = datetime(2024, 4, 5, 12, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("raw", [without(UPDATE, "timestamp"), {**UPDATE, "timestamp": None}], ids=["missing", "null"])
def test_a_missing_timestamp_is_the_time_of_arrival(raw: dict[str, Any]) -> None:
    """Given no timestamp, I expect the time of arrival."""
    before = time.time()

    assert before <= update(raw).timestamp <= time.time()


@pytest.mark.parametrize("raw", [without(UPDATE, "meta"), {**UPDATE, "meta": None}], ids=["missing", "null"])
def test_meta_may_be_left_out(raw: dict[str, Any]) -> None:
    """Given no meta, I expect an empty one."""
    assert update(raw).meta == {}


def test_unknown_fields_of_events_are_ignored() -> None:
    """Given the fields that other publishers add, I expect the same event as without them."""
    assert update({**UPDATE, "event_type": "said"}) == update(UPDATE)


NO_FLAGS: list[Any] = [None, "", "maybe", 2, 0.5, [], {}, [False]]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        *[(true, True) for true in (True, "True", "1", 1)],
        *[(false, False) for false in (False, " false", "0", 0)],
        *[(nothing, None) for nothing in NO_FLAGS],
    ],
)
def test_whether_a_reply_is_wanted_costs_no_event(value: Any, wanted: bool | None) -> None:
    """Given true or false in the forms that publishers use, I expect it; given anything else, the event without it."""
    assert update({**UPDATE, "require_ai_response": value}).require_ai_response is wanted


def test_an_event_that_does_not_say_whether_a_reply_is_wanted_is_written_without_the_field() -> None:
    """Given an event without `require_ai_response`, I expect none in what is written; given false, false."""
    assert "require_ai_response" not in json.loads(update(UPDATE).to_wire())
    assert json.loads(update({**UPDATE, "require_ai_response": False}).to_wire())["require_ai_response"] is False


def test_unknown_fields_of_requests_are_ignored() -> None:
    """Given an unknown field, I expect the same request as without it."""
    assert request({**SEARCH, "priority": "high"}) == request(SEARCH)


def test_the_ids_that_publishers_add_are_kept() -> None:
    """Given a message_id and a task_id, I expect both on the event."""
    event = update({**UPDATE, "message_id": "m1", "task_id": "t1"})

    assert (event.message_id, event.task_id) == ("m1", "t1")


@pytest.mark.parametrize("field", ["message_id", "task_id"])
def test_an_optional_id_may_be_null(field: str) -> None:
    """Given null for an optional id, I expect the same as without it."""
    assert getattr(update({**UPDATE, field: None}), field) is None


def test_an_integer_user_id_is_its_digits() -> None:
    """Given a JSON number for an id, as database keys often come, I expect its digits."""
    assert update({**UPDATE, "user_id": 42}).user_id == "42"


def test_an_integer_user_id_of_a_request_is_its_digits() -> None:
    """Given the same in a request, I expect the same user."""
    assert request({**SEARCH, "user_id": 42}).user_id == "42"


def test_an_integer_session_is_its_digits() -> None:
    """Given a session_id that is a number, I expect its digits, so that sessions compare."""
    assert update({**UPDATE, "meta": {"session_id": 7}}).session_id == "7"


@pytest.mark.parametrize(
    ("sent", "limit"),
    [
        ("5", 5),
        (1, 1),
        (100, 100),
        (3.0, 3),
        (0, 5),
        (-1, 5),
        ("0", 5),
        (-0.0, 5),
        (101, 100),
        (200, 100),
        (10**400, 100),
    ],
)
def test_a_limit_is_read_as_what_it_can_mean(sent: object, limit: int) -> None:
    """Given a limit from 1 to 100, in any type, I expect it; the default for 0 or less, and 100 for more."""
    asked = request({**SEARCH, "data": {"query": "x", "limit": sent}})

    assert SearchData.model_validate(asked.data).limit == limit


@pytest.mark.parametrize(
    ("sent", "chars"),
    [("500", 500), (500.0, 500), (1, 1), (0, 4_000), (-5, 4_000), (None, 4_000), (32_768, 32_768), (10**9, 32_768)],
)
def test_the_size_of_a_context_is_read_as_what_it_can_mean(sent: object, chars: int) -> None:
    """Given a number of characters, in any type, I expect it; the default for 0 or less, and the most for more."""
    asked = request({**SEARCH, "type": "context", "data": {"query": "x", "max_chars": sent}})

    assert ContextData.model_validate(asked.data).text_chars == chars


@pytest.mark.parametrize(("sent", "tokens"), [("500", 500), (500.0, 500), (1, 1), (0, None), (-5, None), (None, None)])
def test_the_tokens_of_a_context_are_read_as_what_they_can_mean(sent: object, tokens: int | None) -> None:
    """Given a number of tokens, in any type, I expect it; 0 or less counts as missing."""
    asked = request({**SEARCH, "type": "context", "data": {"query": "x", "max_tokens": sent}})

    assert ContextData.model_validate(asked.data).max_tokens == tokens


def test_tokens_alone_bound_a_context() -> None:
    """Given tokens and no characters, I expect no bound of characters below the largest; given both, both."""
    alone, both = ContextData(query="x", max_tokens=9_000), ContextData(query="x", max_tokens=9_000, max_chars=500)

    assert (alone.text_chars, both.text_chars) == (32_768, 500)


@pytest.mark.parametrize("name", ["max_chars", "max_tokens"])
@pytest.mark.parametrize("value", [True, 2.5, "many", [1], {}])
def test_a_size_that_is_no_number_is_refused(name: str, value: object) -> None:
    """Given anything but a whole number, I expect an error that names the field."""
    with pytest.raises(InvalidMessage, match=f"data.{name}: "):
        request({**SEARCH, "type": "context", "data": {"query": "x", name: value}})


def test_the_default_limit_of_a_search_is_five() -> None:
    """Given no limit, I expect 5."""
    assert SearchData.model_validate(request(SEARCH).data).limit == 5


@pytest.mark.parametrize(("kind", "validated"), [("profile_get", {}), ("profile_update", {"updates": {}})])
@pytest.mark.parametrize("data", [{}, None])
def test_data_may_be_empty_where_nothing_is_needed(kind: str, validated: object, data: object) -> None:
    """Given a profile request without data, I expect it to be valid."""
    assert request({**SEARCH, "type": kind, "data": data}).data == validated


def test_data_may_be_the_updates_directly() -> None:
    """Given the updates without their envelope, I expect the same as with it."""
    data = ProfileUpdateData.model_validate({"name": "Lin", "age": None, "expected_version": 3, "deadline_ms": 500})

    assert data == ProfileUpdateData(updates={"name": "Lin", "age": None}, expected_version=3, deadline_ms=500)


def test_updates_in_their_envelope() -> None:
    """Given the envelope, I expect the fields beside it not to be updates."""
    data = ProfileUpdateData.model_validate({"updates": {"name": "Lin"}, "name": "Eve"})

    assert data.updates == {"name": "Lin"}


@pytest.mark.parametrize("user_id", STRANGE_IDS)
def test_strange_user_ids_are_just_ids(user_id: str) -> None:
    """Given an id that looks like a wildcard, a query or an attack, I expect it to come through unchanged."""
    assert request({**SEARCH, "user_id": user_id}).user_id == user_id


# Ids

any_text = st.text(st.characters() | st.characters(categories=["Cs"]) | st.sampled_from(" \0\t\n%*\u2028\u00a0'\"{}"))


@given(any_text)
@example("%2A")
@example("\ud83d\ude00")
@example("%ED%A0%80")
def test_encoding_an_id_has_an_inverse(user_id: str) -> None:
    """Given any text at all, I expect its encoding to decode to it: the encoding is total and one-to-one."""
    assert decode_user_id(encode_user_id(user_id)) == user_id


@given(any_text, any_text)
def test_distinct_ids_have_distinct_encodings(one: str, other: str) -> None:
    """Given two ids, I expect one encoding only if they are one."""
    assert (encode_user_id(one) == encode_user_id(other)) == (one == other)


def test_strange_ids_are_distinct_users() -> None:
    """Given ids that Mem0 or a database would confuse, I expect as many encodings."""
    assert len({encode_user_id(user_id) for user_id in STRANGE_IDS}) == len(STRANGE_IDS)


@given(any_text)
def test_encoded_ids_hold_no_white_space(user_id: str) -> None:
    """Given any id, I expect nothing in it that Mem0 would trim or refuse."""
    assert not any(char.isspace() for char in encode_user_id(user_id))


@given(any_text)
@example("*")
def test_encoded_ids_hold_no_wildcard(user_id: str) -> None:
    """Given any id, I expect no `*`, which Mem0 takes for every user."""
    assert "*" not in encode_user_id(user_id)


@given(any_text)
def test_encoded_ids_can_be_stored(user_id: str) -> None:
    """Given any id, I expect an encoding that PostgreSQL stores and that is readable."""
    assert storable(encode_user_id(user_id))
    assert encode_user_id(user_id).isprintable()


def test_letters_of_every_script_stay_readable() -> None:
    """Given ordinary ids, I expect their encoding to be themselves."""
    assert [encode_user_id(user_id) for user_id in ("u1", "用户一", "a@b.c", "Зоя")] == ["u1", "用户一", "a@b.c", "Зоя"]


def test_conversations_of_strange_users_are_apart() -> None:
    """Given ids that differ in white space, I expect different Redis keys."""
    assert conversation_key(" u1 ") != conversation_key("u1")


# Properties of parsing

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.just("search") | st.just("add"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["request_id", "user_id", "type", "data", "query", "content", "limit", "updates", "meta"])
            | any_text,
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
near_requests = st.fixed_dictionaries(
    {"request_id": st.just("r1") | json_values, "user_id": st.just("u1") | json_values},
    optional={
        "type": st.sampled_from(["search", "context", "add", "profile_get", "profile_update"]) | json_values,
        "data": st.fixed_dictionaries(
            {},
            optional={
                "query": any_text | json_values,
                "content": any_text | json_values,
                "metadata": json_values,
                "limit": st.integers() | json_values,
                "max_chars": st.integers() | json_values,
                "max_tokens": st.integers() | json_values,
                "updates": json_values,
                "expected_version": st.integers() | json_values,
                "deadline_ms": st.integers() | json_values,
            },
        )
        | json_values,
    },
)
near_updates = st.fixed_dictionaries(
    {
        "user_id": any_text | json_values,
        "content": any_text | json_values,
        "source": st.sampled_from(["user", "ai"]) | json_values,
    },
    optional={
        "timestamp": st.integers() | st.floats() | st.text() | json_values,
        "meta": st.dictionaries(any_text, json_values, max_size=3) | json_values,
        "message_id": any_text | json_values,
        "task_id": any_text | json_values,
    },
)


@given(st.binary() | st.binary().map(lambda noise: b'{"request_id": "' + noise))
@example(b'{"request_id": "\x00\x00"')
@example(b'{"request_id": "\\ud800"')
def test_any_bytes_are_a_request_or_an_invalid_message(raw: bytes) -> None:
    """Given any bytes, I expect a request or InvalidMessage, and no other error that would end a loop."""
    with suppress(InvalidMessage):
        parse_request(raw, MAX_CHARS)


@given(st.binary())
def test_any_bytes_are_an_event_or_an_invalid_message(raw: bytes) -> None:
    """Given any bytes on the channel, I expect the same."""
    with suppress(InvalidMessage):
        parse_update(raw, MAX_CHARS)


@given(near_requests | json_values)
def test_any_json_is_a_storable_request_or_an_invalid_message(value: object) -> None:
    """Given any JSON, I expect InvalidMessage, or a request whose data PostgreSQL can store."""
    try:
        asked = request(value)
    except InvalidMessage:
        return

    assert storable(asked.data)


@given(near_updates | json_values)
@example({**UPDATE, "timestamp": 10**400})
def test_any_json_is_a_storable_event_or_an_invalid_message(value: object) -> None:
    """Given any JSON on the channel, I expect InvalidMessage or an event that PostgreSQL can store."""
    try:
        event = update(value)
    except InvalidMessage:
        return

    assert storable([event.content, event.meta])


@given(near_requests | json_values)
def test_an_error_can_always_be_sent(value: object) -> None:
    """Given an invalid request with a readable id, I expect a response that is JSON."""
    refused = InvalidMessage("nothing")
    try:
        request(value)
    except InvalidMessage as error:
        refused = error

    response = failure(refused.request_id or "", refused.user_id or "", refused)

    assert json.loads(response.to_wire())["error"] == refused.wire


@given(json_values)
def test_cleaning_twice_is_cleaning_once(value: object) -> None:
    """Given any JSON value that can be cleaned, I expect nothing left to clean."""
    try:
        once = clean(value)
    except ValueError:
        return

    assert clean(once) == once


def test_a_message_of_exactly_the_limit_is_parsed() -> None:
    """Given a message with as many bytes as allowed, I expect it to be read."""
    raw = encoded(SEARCH)
    padded = raw[:-1] + b" " * (MAX_MESSAGE_BYTES - len(raw)) + b"}"

    assert parse_request(padded, MAX_CHARS) == request(SEARCH)


# Errors of responses


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("conflict: at version 2", "conflict"),
        ("too_large: content: 101 characters", "too_large"),
        ("conflict", "internal"),
        ("Conflict: at version 2", "internal"),
        ("my secret: hush", "internal"),
        (f"{'x' * 64}: long", "x" * 64),
        (f"{'x' * 65}: too long", "internal"),
        (": no code", "internal"),
        ("", "internal"),
    ],
    ids=lambda text: text[:24],
)
def test_the_code_of_a_failed_request_is_what_precedes_the_first_colon(error: str, code: str) -> None:
    """Given the `error` of a response, I expect its code where it has the form of one, and `internal` otherwise: a
    reason may quote contents, and codes are logged."""
    failed = RequestFailed(error)

    assert (failed.code, str(failed), failed.wire) == (code, error, error)


# Strict writing

SIX = {"request_id", "user_id", "success", "memories", "user_profile", "error"}


def test_every_response_carries_the_six_fields() -> None:
    """Given an empty response, I expect the six fields and no others."""
    wire = json.loads(LTMResponse(request_id="r1", user_id="u1", success=True).to_wire())

    assert wire == {
        "request_id": "r1",
        "user_id": "u1",
        "success": True,
        "memories": [],
        "user_profile": {},
        "error": None,
    }


def test_a_profile_response_has_its_version_too() -> None:
    """Given a profile's version and time, I expect them beside the six."""
    response = LTMResponse(request_id="r1", user_id="u1", success=True, profile_version=0, profile_updated_at=1.5)

    assert set(json.loads(response.to_wire())) == SIX | {"profile_version", "profile_updated_at"}


def test_a_memory_repeats_its_content() -> None:
    """Given a memory, I expect its content under both names: clients read either."""
    memory = Memory(id="m1", content="I like tea", memory="something else", timestamp=NOON)

    assert (memory.content, memory.memory) == ("I like tea", "I like tea")


def test_a_memory_carries_all_its_fields() -> None:
    """Given a memory with the least that one can have, I expect every field on the wire."""
    response = LTMResponse(
        request_id="r1", user_id="u1", success=True, memories=[Memory(id="m1", content="x", timestamp=NOON)]
    )

    (memory,) = json.loads(response.to_wire())["memories"]

    assert set(memory) == {
        *("id", "content", "memory", "score", "source", "timestamp", "created_at", "updated_at", "metadata"),
        *("user_id", "agent_id", "speaker", "kind"),
    }


def test_a_fact_says_what_it_is_about() -> None:
    """Given a fact in a response, I expect its date and whom it is about on the wire, and the same when it is read."""
    fact = Memory(id="f1", content="Ann moves", timestamp=NOON, kind="fact", when="2024-05", about="Ann")
    response = LTMResponse(request_id="r1", user_id="u1", success=True, memories=[fact])

    sent = json.loads(response.to_wire())["memories"][0]

    assert {name: sent[name] for name in ("kind", "when", "about")} == {
        "kind": "fact",
        "when": "2024-05",
        "about": "Ann",
    }
    assert Memory.model_validate(sent) == fact


def test_whole_seconds_are_written_as_integers() -> None:
    """Given a whole second, I expect it written as the contract's example writes it."""
    assert '"timestamp": 1712345678' in json.dumps(update(UPDATE).model_dump())


@given(any_text)
def test_a_response_carries_any_id_back(request_id: str) -> None:
    """Given any id, lone surrogates included, I expect the response to have exactly that one."""
    wire = LTMResponse(request_id=request_id, user_id="u1", success=True).to_wire().encode()

    assert json.loads(wire)["request_id"] == request_id


def test_a_correction_of_the_metadata_alone_is_read() -> None:
    """Given a memory_update without a content, I expect it read, and one that changes nothing to be refused."""
    request = {"request_id": "r1", "user_id": "u1", "type": "memory_update"}

    assert parse_request(encoded({**request, "data": {"id": 7, "metadata": {"a": None}}}), MAX_CHARS).data == {
        "id": "7",
        "metadata": {"a": None},
    }
    with pytest.raises(InvalidMessage, match="content or metadata"):
        parse_request(encoded({**request, "data": {"id": "7"}}), MAX_CHARS)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"filters": {}},
        {"filters": {"session_id": None}},
        {"filters": {"everything": True}},
        {"ids": []},
        {"ids": ["1"] * 1_001},
        {"ids": ["1"], "filters": {"source": "ai"}},
        {"filters": {"contains": " "}},
        {"filters": {"since": "whenever"}},
        {"ids": ["1"], "dry_run": "yes"},
        {"ids": ["1"], "dry_run": {}},
    ],
)
def test_a_deletion_that_does_not_say_what_is_refused(data: dict[str, Any]) -> None:
    """Given a deletion of nothing, of everything, or in two ways, I expect an error: what it means is not guessed."""
    request = {"request_id": "r1", "user_id": "u1", "type": "memory_delete", "data": data}

    with pytest.raises(InvalidMessage):
        parse_request(encoded(request), MAX_CHARS)


@pytest.mark.parametrize("dry_run", ["yes", "on", [], {}, 2, 0.5])
def test_a_dry_run_that_cannot_be_read_forgets_nobody(dry_run: object) -> None:
    """Given a user_forget whose `dry_run` is no truth value, I expect an error: taken for absent, it would forget."""
    request = {"request_id": "r1", "user_id": "u1", "type": "user_forget"}

    with pytest.raises(InvalidMessage, match=r"data\.dry_run: must be true or false"):
        parse_request(encoded({**request, "data": {"dry_run": dry_run}}), MAX_CHARS)
    for said, read in ((None, None), ("TRUE", True), (0, False)):
        assert parse_request(encoded({**request, "data": {"dry_run": said}}), MAX_CHARS).data.get("dry_run") is read
