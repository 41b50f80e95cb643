"""Ids that hold the user: read back exactly, checked against the caller, and worth nothing when they were changed."""

from __future__ import annotations

import pytest
from keepsake_client.errors import InvalidMessage

from services.gateway.access import ALL_RIGHTS, Caller, NotPermitted
from services.gateway.mem0_api.ids import EventId, MemoryId

UUID = "5d1c0000-0000-8000-8000-000000000001"
ANYONE = Caller("any", ALL_RIGHTS)


@pytest.mark.parametrize("user", ["u1", " ", "*", "a/b?c=d", "用户一", "\ud800", "x" * 2_600])
def test_an_id_is_read_back_as_it_was_given(user: str) -> None:
    """Given a user of any id, I expect the same memory and event, from ids that need no quoting in a URL."""
    memory, event = MemoryId(UUID, user), EventId("0" * 32, 2, 1_712_318_400_000, user)

    assert MemoryId.read(str(memory), ANYONE) == memory
    assert EventId.read(str(event), ANYONE) == event
    assert f"{memory}{event}".translate(str.maketrans("", "", "-._")).isalnum()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        UUID[:-1],
        f"{UUID}.",
        f"{UUID}.dTE=",
        f"{UUID}.dTF",
        f"{UUID}.d TE",
        f"{UUID}.%",
        f"{UUID}.dTE.dTE",
        UUID,
    ],
)
def test_an_id_that_was_changed_is_refused(text: str) -> None:
    """Given what no answer has held, I expect an error: one text alone stands for each memory."""
    with pytest.raises(InvalidMessage, match="memory_id"):
        MemoryId.read(text, ANYONE)


@pytest.mark.parametrize("text", ["", "x", f"{'0' * 32}.0.5.dTE", f"{'0' * 32}.1.5.", f"{'0' * 32}.1.5.dTF"])
def test_an_event_that_was_changed_is_refused(text: str) -> None:
    with pytest.raises(InvalidMessage, match="event_id"):
        EventId.read(text, ANYONE)


def test_an_id_of_another_user_is_not_permitted() -> None:
    """Given a key that is bound to a user, I expect its ids, also bare, and not those that name another user."""
    bound = Caller("bound", ALL_RIGHTS, user="u1")

    assert MemoryId.read(UUID, bound) == MemoryId.read(str(MemoryId(UUID, "u1")), bound) == MemoryId(UUID, "u1")
    with pytest.raises(NotPermitted):
        MemoryId.read(str(MemoryId(UUID, "u2")), bound)
    with pytest.raises(NotPermitted):
        EventId.read(str(EventId("0" * 32, 1, 5, "u2")), bound)
    with pytest.raises(NotPermitted):
        MemoryId.read(str(MemoryId(UUID, "u2")), Caller("prefix", ALL_RIGHTS, users="team-"))
