"""Tolerant reading: events and requests as other programs write them, and what they are read as."""

from __future__ import annotations

import json
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keepsake_client.errors import InvalidMessage, NoText
from keepsake_client.protocol import (
    MAX_DEADLINE_MS,
    LTMRequest,
    MemoryUpdateMessage,
    parse_request,
    parse_update,
)
from keepsake_client.times import parse_timestamp
from keepsake_client.tolerance import DEFAULTS, MessageDefaults

ARRIVED = 1_795_937_400.0
UPDATE: dict[str, Any] = {"user_id": "u1", "content": "I like tea", "source": "user", "timestamp": 1_712_345_678}
SEARCH: dict[str, Any] = {"request_id": "r1", "type": "search", "user_id": "u1"}


def update(defaults: MessageDefaults = DEFAULTS, **fields: Any) -> MemoryUpdateMessage:
    """The event with these fields in place of its own; ... leaves one out."""
    event = {name: value for name, value in {**UPDATE, **fields}.items() if value is not ...}
    return parse_update(json.dumps(event).encode(), 1_000, defaults, arrived_at=ARRIVED)


def search(**data: Any) -> dict[str, Any]:
    raw = {**SEARCH, "data": {"query": "tea?", **data}}
    return parse_request(json.dumps(raw).encode(), 1_000).data


# Sources


@pytest.mark.parametrize(
    ("sent", "source", "kept"),
    [
        ("conversation", "user", "conversation"),
        ("asr", "user", "asr"),
        ("human", "user", "human"),
        ("none", "user", "none"),
        ("assistant", "ai", "assistant"),
        ("bot", "ai", "bot"),
        ("model", "ai", "model"),
        ("system", "ai", "system"),
        ("Assistant", "ai", "Assistant"),
        (" BOT\n", "ai", " BOT\n"),
        ("AI", "ai", None),
        ("User", "user", None),
        ("user", "user", None),
        ("ai", "ai", None),
        ("", "user", None),
        (None, "user", None),
        (..., "user", None),
        (7, "user", 7),
        (0.5, "user", 0.5),
        (True, "user", True),
        ([], "user", "[]"),
        ({"name": "mic"}, "user", '{"name": "mic"}'),
    ],
)
def test_any_source_is_the_user_or_the_ai(sent: object, source: str, kept: object) -> None:
    """Given any value as `source`, I expect the speaker that it means, and the value in `meta.source`."""
    event = update(source=sent)

    assert (event.source, event.meta) == (source, {} if kept is None else {"source": kept})


def test_a_source_does_not_overwrite_what_the_publisher_keeps_there() -> None:
    """Given a word as source and a `meta.source` of the publisher's own, I expect both kept."""
    event = update(source="asr", meta={"source": "stream 7"})

    assert event.meta == {"source": "stream 7", "sent_source": "asr"}


@pytest.mark.parametrize(("role", "source"), [("user", "user"), ("assistant", "ai"), ("system", "ai")])
def test_the_role_of_openai_and_mem0_is_the_source(role: str, source: str) -> None:
    """Given `role` and no `source`, I expect it read as the source; beside a source, I expect it ignored."""
    assert update(source=..., role=role).source == source
    assert update(source="user", role=role).source == "user"


# Meta and ids


@pytest.mark.parametrize("meta", [[1, "a"], "a note", 7, False, [{"session_id": "s1"}]])
def test_meta_that_is_no_object_is_kept_as_its_value(meta: object) -> None:
    """Given any JSON as meta, I expect it under `meta.value`."""
    assert update(meta=meta).meta == {"value": meta}


@pytest.mark.parametrize("name", ["message_id", "task_id"])
@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (7, "7"),
        (1.5, "1.5"),
        (10**40, str(10**40)),
        ("", None),
        (" \0", None),
        (True, None),
        ({}, None),
        (["m1"], None),
    ],
)
def test_an_optional_id_is_a_text_or_missing(name: str, sent: object, read: str | None) -> None:
    """Given a number as an id, I expect its digits; given what is no id, the event as without it."""
    event = update(message_id=sent) if name == "message_id" else update(task_id=sent)

    assert getattr(event, name) == read


@pytest.mark.parametrize("user_id", [..., None, "", "  "])
def test_an_event_without_a_user_is_anonymous(user_id: object) -> None:
    """Given no user_id, I expect the user that is set for such messages."""
    assert update(user_id=user_id).user_id == "anonymous"
    assert update(MessageDefaults(anonymous_user="访客"), user_id=user_id).user_id == "访客"


# Contents


@pytest.mark.parametrize(
    "fields",
    [
        {"content": ..., "text": "I like tea"},
        {"content": None, "message": "I like tea"},
        {"content": "", "text": " ", "message": "I like tea"},
        {"content": [{"type": "text", "text": "I like tea"}, {"type": "image_url", "image_url": {"url": "x"}}]},
        {"content": {"type": "text", "text": "I like tea"}},
        {"content": "I like tea", "text": "something else"},
        {"content": "I like tea", "type": "audio", "input_file": "a.wav"},
    ],
)
def test_what_was_said_is_found_where_other_programs_put_it(fields: dict[str, Any]) -> None:
    """Given the text under another name, or in parts, I expect it as the content; `content` first."""
    assert update(**fields).content == "I like tea"


@pytest.mark.parametrize(("sent", "content"), [(42, "42"), (3.5, "3.5"), (0, "0")])
def test_a_number_that_was_said_is_a_text(sent: float, content: str) -> None:
    """Given a number as content, I expect its digits."""
    assert update(content=sent).content == content


@pytest.mark.parametrize(
    "media",
    [
        {"type": "audio"},
        {"type": "image", "content": ""},
        {"input_file": "a.wav"},
        {"content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]},
    ],
)
def test_a_recording_without_a_text_is_told_from_a_bad_event(media: dict[str, Any]) -> None:
    """Given an event that says that it is no text, I expect `NoText`, which is counted and not rejected."""
    with pytest.raises(NoText):
        update(**{"content": ..., **media})


@pytest.mark.parametrize("content", [..., None, "", " \0", [], True, {"a": 1}])
def test_a_text_without_a_content_is_invalid(content: object) -> None:
    """Given an event that does not say so and has no content, I expect it refused, as its publisher has a fault."""
    with pytest.raises(InvalidMessage, match=r"^content: ") as refused:
        update(content=content)

    assert not isinstance(refused.value, NoText)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("source", "role", "timestamp", "meta", "message_id", "task_id", "type"), json_values),
    )
)
def test_no_optional_field_costs_the_message(fields: dict[str, Any]) -> None:
    """Given any JSON in the optional fields, I expect the event."""
    event = update(**fields)

    assert (event.user_id, event.content) == ("u1", "I like tea")


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("user_id", "source", "timestamp", "meta", "message_id", "content"), json_values),
    )
)
def test_an_event_is_read_the_same_from_the_stream(fields: dict[str, Any]) -> None:
    """Given an event as an adapter writes it to the stream, I expect it unchanged when it is read there, later."""
    try:
        event = update(**fields)
    except InvalidMessage:
        return

    assert parse_update(event.to_wire().encode(), 1_000, arrived_at=ARRIVED + 3_600) == event


# Requests


@pytest.mark.parametrize(
    ("data", "read"),
    [
        ({"limit": 0}, {"limit": 5}),
        ({"limit": 200}, {"limit": 100}),
        ({"limit": 3.0}, {"limit": 3}),
        ({"deadline_ms": 600.0}, {"deadline_ms": 600}),
        ({"deadline_ms": 599.2}, {"deadline_ms": 600}),
        ({"deadline_ms": "600"}, {"deadline_ms": 600}),
        ({"deadline_ms": 0}, {"deadline_ms": None}),
        ({"deadline_ms": -40}, {"deadline_ms": None}),
        ({"deadline_ms": 10**9}, {"deadline_ms": MAX_DEADLINE_MS}),
        ({"min_score": -1}, {"min_score": 0.0}),
        ({"min_score": "0.5"}, {"min_score": 0.5}),
        ({"query": 42}, {"query": "42"}),
        ({"filters": {"source": "assistant"}}, {"filters": {"source": "ai"}}),
        ({"filters": {"source": "Human"}}, {"filters": {"source": "user"}}),
        ({"filters": {"since": "2023年4月21日"}}, {"filters": {"since": parse_timestamp("2023-04-21")}}),
        ({"filters": {"since": 0}}, {"filters": {"since": 0.0}}),
        ({"filters": {"until": "9999-12-31"}}, {"filters": {"until": parse_timestamp("9999-12-31")}}),
    ],
    ids=str,
)
def test_a_search_is_read_as_what_it_can_mean(data: dict[str, Any], read: dict[str, Any]) -> None:
    """Given a number of another type or out of range, I expect the nearest that is meant."""
    assert search(**data) == {"query": "tea?", **read}


def test_the_times_of_a_search_are_read_by_the_setting() -> None:
    """Given LTM_TIMEZONE, I expect filters without a zone read by it, and others by their own."""
    filters = {"since": "2024-04-05T20:00:00", "until": "2024-04-05T13:00:00Z"}
    raw = json.dumps({**SEARCH, "data": {"query": "tea?", "filters": filters}}).encode()

    asked = parse_request(raw, 1_000, ZoneInfo("Asia/Shanghai"))

    assert asked.data["filters"]["until"] - asked.data["filters"]["since"] == 3_600


@pytest.mark.parametrize("data", [{"updates": None}, {"updates": {}}, {}, None], ids=str)
def test_null_updates_change_nothing(data: object) -> None:
    """Given updates of null, I expect an empty patch."""
    raw: dict[str, Any] = {**SEARCH, "type": "profile_update", "data": data}

    asked: LTMRequest = parse_request(json.dumps(raw).encode(), 1_000)

    assert asked.data == {"updates": {}}


def test_a_version_may_be_a_whole_float() -> None:
    """Given 3.0 as the version that is expected, I expect 3."""
    raw = {**SEARCH, "type": "profile_update", "data": {"updates": {"a": 1}, "expected_version": 3.0}}

    assert parse_request(json.dumps(raw).encode(), 1_000).data["expected_version"] == 3
