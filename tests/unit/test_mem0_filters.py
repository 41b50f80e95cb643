"""Mem0's filters: which memories meet them, what of them the wire tests, and what is refused in words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC
from types import SimpleNamespace
from typing import Any, cast

import pytest
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import Memory

from services.gateway.access import ALL_RIGHTS, Caller, NotPermitted
from services.gateway.app import Gateway
from services.gateway.mem0_api.filters import parse_filters
from services.gateway.mem0_api.selection import Selection

ANYONE = Caller("any", ALL_RIGHTS)


def memory(**changed: Any) -> Memory:
    """A memory of u1, said to luna in session s1 at noon of the 5th of April 2024."""
    fields = {
        "id": "5d1c0000-0000-8000-8000-000000000001",
        "content": "My cat is called Mochi",
        "timestamp": 1_712_318_400,
        "user_id": "u1",
        "agent_id": "luna",
        "metadata": {"session_id": "s1", "topic": "pets", "stars": 4, "tags": ["cat", "name"], "read": True},
    }
    return Memory.model_validate({**fields, **changed})


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"user_id": "u1"},
        {"AND": [{"user_id": "u1"}, {"run_id": "s1"}]},
        {"OR": [{"user_id": "u2"}, {"agent_id": {"in": ["mars", "luna"]}}]},
        {"NOT": {"run_id": "s2"}},
        {"NOT": [{"run_id": "s2"}, {"agent_id": "mars"}]},
        {"run_id": "*"},
        {"app_id": {"ne": "shop"}},  # one without a value is not equal, too
        {"created_at": {"gte": "2024-04-05", "lt": "2024-04-06"}},
        {"timestamp": {"gt": 1_712_318_399}},
        {"updated_at": {"lte": "2024-04-05T12:00:00Z"}},
        {"keywords": {"icontains": "MOCHI"}},
        {"keywords": {"contains": "Mochi"}},
        {"categories": {"in": ["message"]}},
        {"metadata": {"topic": "pets", "stars": {"gte": 4}}},
        {"metadata": {"tags": {"contains": "cat"}}},
        {"metadata": {"missing": None}},
        {"memory_ids": ["5D1C0000-0000-8000-8000-000000000001.dTE"]},
    ],
)
def test_a_memory_meets_a_filter(filters: dict[str, Any]) -> None:
    """Given a filter that is true of a memory, I expect it to be met."""
    assert parse_filters(filters, UTC).meets(memory())


@pytest.mark.parametrize(
    "filters",
    [
        {"user_id": "u2"},
        {"AND": [{"user_id": "u1"}, {"run_id": "s2"}]},
        {"NOT": [{"run_id": "s1"}, {"agent_id": "mars"}]},  # none of them may hold
        {"app_id": "*"},
        {"app_id": "shop"},
        {"created_at": {"gt": "2024-04-05T12:00:00Z"}},
        {"keywords": {"contains": "MOCHI"}},
        {"categories": {"in": ["fact"]}},
        {"metadata": {"stars": "4"}},
        {"metadata": {"read": 1}},  # in JSON, true is no number
        {"metadata": {"topic": {"gt": 3}}},
        {"metadata": {"missing": {"gt": 3}}},
        {"memory_ids": []},
    ],
)
def test_a_memory_does_not_meet_a_filter(filters: dict[str, Any]) -> None:
    """Given a filter that is not true of a memory, I expect it not to be met."""
    assert not parse_filters(filters, UTC).meets(memory())


def test_a_field_of_one_s_own_is_of_the_metadata_where_the_server_has_it_so() -> None:
    """Given a filter in the way of Mem0's open source server, I expect its unknown field to be one of the metadata."""
    assert parse_filters({"topic": "pets"}, UTC, any_field=True).meets(memory())
    with pytest.raises(InvalidMessage, match=r"'topic' is no field; .*\"metadata\": \{\"topic\""):
        parse_filters({"topic": "pets"}, UTC)


@pytest.mark.parametrize(
    ("filters", "wire"),
    [
        ({"AND": [{"user_id": "u1"}, {"run_id": "s1"}]}, {"session_id": "s1"}),
        ({"created_at": {"gt": 5, "gte": 9, "lt": 20}, "timestamp": {"lte": 15}}, {"since": 9, "until": 15}),
        ({"keywords": {"icontains": "cat"}}, {"contains": "cat"}),
        ({"keywords": {"icontains": "x" * 501}}, {}),  # longer than the wire takes
        ({"keywords": {"icontains": " "}}, {}),
        ({"keywords": "*"}, {}),
        (
            {"created_at": {"lte": "9999-12-31"}},
            {"until": 1e11 - 1},
        ),  # as it is, the wire would take it for milliseconds
        ({"created_at": {"gte": "9999-12-31"}}, {"since": 1e11 - 1}),
        ({"categories": {"in": ["fact"]}}, {"kind": "fact"}),
        ({"categories": {"contains": "preference"}}, {"kind": "fact"}),
        ({"categories": {"ne": "message"}}, {"kind": "fact"}),
        ({"categories": {"ne": "fact"}}, {}),
        ({"OR": [{"run_id": "s1"}, {"created_at": {"gt": 5}}]}, {}),
        ({"NOT": [{"run_id": "s1"}]}, {}),
        ({"run_id": {"ne": "s1"}, "metadata": {"topic": "pets"}}, {}),
    ],
)
def test_what_every_memory_must_meet_is_pushed_down(filters: dict[str, Any], wire: dict[str, Any]) -> None:
    """Given a filter, I expect of the wire's filters those that every memory which meets it meets, and no other."""
    assert parse_filters(filters, UTC).wire() == wire


@pytest.mark.parametrize(
    ("filters", "alone"),
    [
        ({"AND": [{"user_id": "u1"}, {"run_id": "s1"}, {"created_at": {"gte": 5}}]}, True),
        ({"user_id": "u1", "created_at": {"gt": 5}}, False),  # the wire has "or then"
        ({"user_id": "u1", "agent_id": "luna"}, False),  # the wire has the shared ones, too
        ({"user_id": "u1", "NOT": {"run_id": "s1"}}, False),
    ],
)
def test_a_search_looks_at_more_where_the_wire_does_not_test_all(filters: dict[str, Any], alone: bool) -> None:
    """Given a filter, I expect to be told whether a search of the wire tests all of it."""
    assert parse_filters(filters, UTC).is_wire_alone() is alone


def nested(levels: int) -> dict[str, Any]:
    """A filter so many levels deep."""
    filters: dict[str, Any] = {"user_id": "u1"}
    for _ in range(levels):
        filters = {"AND": [filters]}
    return filters


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ("u1", "an object of conditions"),
        ({"user_id": ["u1", 5.5]}, "'user_id': must be a text"),
        ({"user_id": {"gt": "u1"}}, "'user_id' does not know the operator 'gt'"),
        ({"user_id": {"$eq": "u1"}}, "'\\$eq' is no operator"),
        ({"user_id": {"in": "u1"}}, "takes a list"),
        ({"user_id": {"in": ["u1"] * 101}}, "at most 100 values"),
        ({"created_at": {"gte": "soon"}}, "'created_at': must be a time"),
        ({"created_at": {"gte": 10**400}}, "'created_at'"),
        ({"AND": []}, "AND takes a list"),
        ({"OR": {"user_id": "u1"}}, "OR takes a list"),
        ({"metadata": "pets"}, "metadata takes an object"),
        ({"run_id": {}}, "'run_id' takes a value"),
        ({"metadata": {"topic": {}}}, "'metadata.topic' takes a value"),
        ({"metadata": {"topic": {"eq": [1]}}}, "'metadata.topic': must be a text, a number"),
        ({"AND": [{"run_id": "s1"}] * 101}, "more than 100 conditions"),
        (nested(1_000), "nested deeper than 16 levels"),
    ],
)
def test_what_cannot_be_tested_is_refused_and_named(filters: Any, words: str) -> None:
    """Given a filter that is none, I expect an error that names the part."""
    with pytest.raises(InvalidMessage, match=words):
        parse_filters(filters, UTC)


@pytest.mark.parametrize(
    "filters",
    [
        {"categories": {"in": ["message", "fact"]}},
        {"categories": {"ne": "preference"}},
        {"categories": "*"},
        {"NOT": {"categories": "message"}},
        {"OR": [{"categories": "fact"}, {"run_id": "s1"}]},
    ],
)
def test_a_list_that_would_leave_out_facts_is_refused(filters: dict[str, Any]) -> None:
    """Given a filter that messages and facts meet, I expect it to be refused: a list of the wire is of either."""
    with pytest.raises(InvalidMessage, match="a list is of messages or of facts"):
        parse_filters(filters, UTC).check_one_kind()


@pytest.mark.parametrize(
    "filters", [{}, {"categories": "message"}, {"categories": {"nin": ["fact"]}}, {"categories": "name"}]
)
def test_a_list_of_one_kind_is_not_refused(filters: dict[str, Any]) -> None:
    """Given a filter that messages alone or facts alone meet, or that does not say, I expect it to be taken."""
    parse_filters(filters, UTC).check_one_kind()


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"user_id": "*"},
        {"user_id": None},
        {"agent_id": "luna"},
        {"run_id": "s1"},
        {"OR": [{"user_id": "u1"}, {"user_id": "u2"}]},
        {"NOT": {"user_id": "u1"}},
        {"user_id": {"in": []}},
    ],
)
def test_a_filter_without_a_user_selects_nothing(filters: dict[str, Any]) -> None:
    """Given a filter that requires no user, I expect the question for one, and never the memories of all."""
    with pytest.raises(InvalidMessage, match="whose memories"):
        Selection.of(parse_filters(filters, UTC), ANYONE)


def test_a_key_of_one_user_needs_none_in_the_filter() -> None:
    """Given a key that is bound to a user, I expect that user's memories, also by the wildcard, and no other's."""
    bound = Caller("bound", ALL_RIGHTS, user="u1")

    assert Selection.of(parse_filters({}, UTC), bound).users == ("u1",)
    assert Selection.of(parse_filters({"user_id": "*"}, UTC), bound).users == ("u1",)
    for other in ({"user_id": "u2"}, {"user_id": {"in": ["u1", "u2"]}}):
        with pytest.raises(NotPermitted):
            Selection.of(parse_filters(other, UTC), bound)


def test_several_users_are_those_of_a_search_alone() -> None:
    """Given a filter of several users, I expect all of them for a search, as many as the wire takes, and none else."""
    selection = Selection.of(parse_filters({"user_id": {"in": ["u1", "u2"]}}, UTC), ANYONE)

    assert selection.users == ("u1", "u2")
    with pytest.raises(InvalidMessage, match="only a search"):
        _ = selection.user
    with pytest.raises(InvalidMessage, match="at most 9 users"):
        Selection.of(parse_filters({"user_id": {"in": [f"u{n}" for n in range(10)]}}, UTC), ANYONE)


class Pages:
    """Stands in for the client of the wire: three pages of a hundred memories."""

    async def memory_pages(self, user_id: str, **_: Any) -> AsyncIterator[list[Memory]]:
        for _page in range(3):
            yield [memory(user_id=user_id)] * 100


def test_a_walk_through_a_list_has_an_end() -> None:
    """Given a list, I expect as many memories to be looked through as there may be, and then an error, no cut."""
    gateway = cast(Gateway, SimpleNamespace(ltm=Pages()))
    selection = Selection.of(parse_filters({"user_id": "u1"}, UTC), ANYONE)

    async def walked(most: int | None) -> int:
        return len([each async for each in selection.walk(gateway, most)])

    assert asyncio.run(walked(300)) == asyncio.run(walked(None)) == 300
    with pytest.raises(InvalidMessage, match="more than 200 memories"):
        asyncio.run(walked(200))


def test_a_key_of_one_agent_sees_no_other_agent_s() -> None:
    """Given a key that is bound to an agent, I expect its scope whatever the filter says of others."""
    bound = Caller("bound", ALL_RIGHTS, agent="luna")

    for filters in ({"user_id": "u1"}, {"user_id": "u1", "agent_id": "*"}, {"user_id": "u1", "agent_id": "luna"}):
        assert Selection.of(parse_filters(filters, UTC), bound).scope() == {"agent_id": "luna"}
    with pytest.raises(NotPermitted):
        Selection.of(parse_filters({"user_id": "u1", "agent_id": "mars"}, UTC), bound)
    assert Selection.of(parse_filters({"user_id": "u1"}, UTC), ANYONE).scope() == {"all_agents": True}
