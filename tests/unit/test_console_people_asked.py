"""What a page of a person shows, as its URL says; timelines and lists of facts."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import LTMResponse, Memory

from services.gateway.access import ALL_RIGHTS, OPEN, Caller, NotPermitted
from services.gateway.console.people.asked import Asked, Scope, person_url
from services.gateway.console.people.facts import FactKind, FactPages
from services.gateway.console.people.timeline import by_session

SHANGHAI = ZoneInfo("Asia/Shanghai")


def read_back(url: str, caller: Caller = OPEN) -> Asked | None:
    return Asked.read(dict(parse_qsl(urlsplit(url).query)), caller)


@given(st.text(min_size=1), st.one_of(st.just(Scope()), st.just(Scope(None, False))), st.text().map(str.strip))
def test_what_is_asked_survives_the_url(user_id: str, scope: Scope, query: str) -> None:
    """Given any id, also one with lone surrogates, I expect its page's URL to be read as the same again."""
    query = query.encode("utf-8", "replace").decode()
    asked = Asked(user_id, "facts", scope, "superseded", query, {"contains": "a & b", "speaker": "Anna"})

    assert read_back(asked.url()) == asked


def test_an_id_that_a_form_would_change_is_encoded() -> None:
    """Given an id with a line break, which a browser's form sends as two characters, I expect it encoded."""
    assert person_url("a b/ü") == "/console/people?user=a+b%2F%C3%BC"
    assert person_url("a\nb") == "/console/people?id=a%250Ab"


def test_an_encoded_id_that_is_none_is_refused() -> None:
    """Given bytes that are no text, I expect that to be said, not a fault."""
    with pytest.raises(InvalidMessage, match="id: "):
        Asked.read({"id": "%ff"}, OPEN)


def test_a_key_for_one_user_needs_no_id_and_takes_no_other() -> None:
    """Given a key for u1, I expect u1 without an id, and u2 refused."""
    caller = Caller("k", ALL_RIGHTS, user="u1")

    asked = Asked.read({}, caller)

    assert asked is not None
    assert asked.user_id == "u1"
    for query in ({"user": "u2"}, {"id": "u2"}):
        with pytest.raises(NotPermitted):
            Asked.read(query, caller)


def test_a_key_for_one_character_sees_that_one() -> None:
    """Given a key for mira, I expect mira's scope by default, and every other one refused."""
    caller = Caller("k", ALL_RIGHTS, agent="mira")

    asked = Asked.read({"user": "u1"}, caller)

    assert asked is not None
    assert asked.scope == Scope("mira", False)
    for scope in ("all", "agent:bob"):
        with pytest.raises(NotPermitted):
            Asked.read({"user": "u1", "scope": scope}, caller)


def test_days_are_those_of_the_viewer() -> None:
    """Given a first and a last day, I expect the whole of both, in the viewer's zone."""
    asked = Asked("u1", filters={"since": "2024-05-01", "until": "2024-05-02", "source": "ai"})

    assert asked.conditions(SHANGHAI) == {
        "since": "2024-05-01T00:00:00+08:00",
        "until": "2024-05-02T23:59:59.999999+08:00",
        "source": "ai",
    }


def test_a_day_that_is_none_is_refused() -> None:
    """Given no day, I expect an error that names the filter."""
    with pytest.raises(InvalidMessage, match="since"):
        Asked("u1", filters={"since": "yesterday"}).conditions(SHANGHAI)


def memory(timestamp: float, session: str | None = None, **fields: Any) -> Memory:
    metadata = {} if session is None else {"session_id": session}
    return Memory(id=f"m{timestamp}", content="x", timestamp=timestamp, metadata=metadata, **fields)


def test_memories_are_grouped_by_session_and_without_one_by_day() -> None:
    """Given two sessions at once and memories of two days without one, I expect four groups, newest first."""
    day = 86_400
    memories = [memory(9 * day, "a"), memory(8.9 * day, "b"), memory(8.8 * day, "a"), memory(5 * day), memory(4 * day)]

    groups = by_session(memories, SHANGHAI)

    assert [(group.session_id, len(group.memories)) for group in groups] == [("a", 2), ("b", 1), (None, 1), (None, 1)]
    assert groups[0].is_continued_by(by_session([memory(1, "a")], SHANGHAI)[0])
    assert not groups[2].is_continued_by(groups[3])


def test_a_time_beyond_the_calendar_has_no_day() -> None:
    """Given a memory of the year 300,000, I expect it in a group without a day."""
    assert by_session([memory(1e13)], SHANGHAI)[0].day is None


def test_facts_and_superseded_ones_are_one_list() -> None:
    """Given pages of both lists, I expect every fact once, newest first, and the end known."""
    times: dict[FactKind, list[int]] = {"fact": list(range(200, 0, -2)), "superseded": list(range(151, 1, -2))}

    async def fetch(kind: FactKind, cursor: str | None) -> LTMResponse:
        begin, size = int(cursor or 0), 7
        page = [memory(at) for at in times[kind][begin : begin + size]]
        follows = str(begin + size) if begin + size < len(times[kind]) else None
        return LTMResponse(request_id="r", user_id="u", success=True, memories=page, next_cursor=follows)

    async def read_all() -> list[tuple[FactKind, float]]:
        pages, found = FactPages(fetch), []
        while pages.has_more:
            found += [(kind, fact.timestamp) for kind, fact in await pages.next()]
        return found

    found = asyncio.run(read_all())

    assert [at for _, at in found] == sorted((at for ats in times.values() for at in ats), reverse=True)
    assert [at for kind, at in found if kind == "superseded"] == times["superseded"]
