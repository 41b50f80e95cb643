"""What is on the workers' queues is run only where it ends no thread of a worker."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.decoding import decode

SOUND = {"queue_name": "index", "actor_name": "a", "args": [], "kwargs": {}, "options": {}, "message_id": "m"}


def decoded(**changed: Any) -> Any:
    return decode(json.dumps({**SOUND, "message_timestamp": 1, **changed}).encode(), "index")


def test_a_message_is_decoded() -> None:
    """Given a message as an adapter enqueues it, and one that was tried twice, I expect both."""
    assert decoded().actor_name == "a"
    assert decoded(options={"eta": 1_700_000_000_000, "retries": 2, "failing_since": 1_700_000_000_000})


@pytest.mark.parametrize(
    "changed",
    [
        {"actor_name": ["a"]},
        {"message_id": []},
        {"kwargs": []},
        {"args": None},
        {"options": None},
        {"options": []},
        {"queue_name": "of another worker"},
        {"options": {"throws": "x"}},
        {"options": {"retries": "x"}},
        {"options": {"failing_since": "x"}},
        {"options": {"eta": "x"}},
        {"options": {"eta": float("nan")}},
        {"options": {"eta": 1e300}},
        {"more": 1},
    ],
    ids=repr,
)
def test_what_would_end_a_thread_is_no_message(changed: dict[str, Any]) -> None:
    """Given a field that Dramatiq takes on trust, I expect None, so that a dead letter is made of it."""
    assert decoded(**changed) is None


@pytest.mark.parametrize("data", [b"", b"\xff{", b"[]", b"{}", b"1", b"[" * 100_000])
def test_bytes_that_are_no_message_are_none(data: bytes) -> None:
    """Given anything else, I expect None."""
    assert decode(data, "index") is None
