"""What a dead letter on RabbitMQ is called."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.runtime.dead_letters import decoded
from services.runtime.rabbitmq_dead_letters import _id_of

MESSAGE = {"actor_name": "a", "args": [], "kwargs": {}, "options": {}}


def named(message_id: Any) -> str:
    raw = json.dumps({**MESSAGE, "message_id": message_id}).encode()
    return _id_of(decoded(raw), raw)


def test_a_dead_letter_has_the_id_of_its_message() -> None:
    """Given a message of Dramatiq's, I expect its id, by which the log names it, too."""
    assert named("0b5ba1b5-5a4c-4d1c-8a5e-6d1f3a1c2b3d") == "0b5ba1b5-5a4c-4d1c-8a5e-6d1f3a1c2b3d"


@pytest.mark.parametrize("hostile", ["two\nlines", "\x1b[31m", "", "x" * 5_000, ["a list"], None, 7])
def test_an_id_that_is_no_word_is_none(hostile: Any) -> None:
    """Given an id that another program has put there, I expect a hash, the same each time."""
    assert len(named(hostile)) == 32
    assert named(hostile) == named(hostile)
