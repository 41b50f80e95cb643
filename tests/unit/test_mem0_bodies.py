"""Bodies of Mem0's adds: what is read of them, what is reported as ignored, and what is refused."""

from __future__ import annotations

import time
from datetime import UTC
from typing import Any

import pytest
from keepsake_client.errors import InvalidMessage

from services.gateway.mem0_api.bodies import AddBody


def test_fields_without_effect_are_named_in_a_header() -> None:
    """Given what decides nothing here, I expect to be told, and nothing of what the caller made up."""
    body = AddBody.model_validate(
        {"messages": "tea", "user_id": "u1", "infer": False, "custom_instructions": "x", "version": "v2", "a\r\nb": 1}
    )

    assert body.ignored == ["custom_instructions", "infer"]
    assert AddBody.model_validate({"messages": "tea", "infer": True}).ignored == []
    made_up = {"made_up_" + "_" * number: 1 for number in range(1, 30)}
    assert len(AddBody.model_validate({"messages": "tea", **made_up}).ignored) == 20


def test_messages_are_said_by_their_roles() -> None:
    """Given messages of all roles and forms, I expect those of the user and the assistant that have a text."""
    body = AddBody.model_validate(
        {
            "messages": [
                {"role": "system", "content": "You are kind."},
                {"role": "user", "content": "I like tea", "name": "Anna"},
                {"role": "assistant", "content": None, "tool_calls": []},
                {"role": "tool", "content": "7"},
                {"role": "user", "content": [{"type": "text", "text": "See:"}, {"type": "image_url", "image_url": {}}]},
                {"role": "assistant", "content": {"type": "text", "text": "Lovely!"}},
            ]
        }
    )

    said = [(each.source, each.content, each.speaker) for each in body.said()]
    assert said == [("user", "I like tea", "Anna"), ("user", "See:", None), ("ai", "Lovely!", None)]
    assert [each.content for each in AddBody.model_validate({"messages": "tea"}).said()] == ["tea"]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "x"}] * 101},
        {"messages": []},
        {"messages": 5},
        {"messages": ["x"]},
        {"messages": [{"role": ["user"], "content": "x"}]},
        {"messages": [{"role": "system", "content": "x"}]},
        {"timestamp": "soon"},
        {"timestamp": 5},
        {"timestamp": time.time() + 1e6},
        {"expiration_date": "soon"},
        {"expiration_date": "2020-01-01"},
        {"metadata": {"remember": False}},
        {"filters": {"user_id": "u2"}},
        {"filters": {"OR": [{"run_id": "s1"}]}},
        {"filters": {"created_at": 5}},
        {"user_id": "*"},
    ],
)
def test_an_add_of_nothing_that_can_be_remembered_is_refused(fields: dict[str, Any]) -> None:
    """Given an add that would lose something, or say it otherwise, I expect an error in its place."""
    body = AddBody.model_validate({"messages": "tea", "user_id": "u1", **fields})

    with pytest.raises(InvalidMessage):
        body.meta(body.owner(UTC)), body.said(), body.ttl_days(body.said_at(UTC))


def test_an_expiration_date_is_the_last_day() -> None:
    """Given a last day, I expect the memories to be kept through it, in UTC, and one far away to be none."""
    noon = 1_712_318_400  # of the 5th of April 2024
    year = time.gmtime().tm_year + 1

    days = AddBody.model_validate({"messages": "x", "expiration_date": f"{year}-04-05"}).ttl_days(noon)

    assert days is not None
    assert time.gmtime(noon + days * 86_400)[:6] == (year, 4, 6, 0, 0, 0)
    assert AddBody.model_validate({"messages": "x", "expiration_date": "9999-12-31"}).ttl_days(noon) is None
