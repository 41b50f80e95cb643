"""Access: which users and characters the bearer of a key may ask about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keepsake_client.errors import InvalidMessage

from services.gateway.access import ALL_RIGHTS, OPEN, Caller, NotPermitted, Right

#: Any text: other scripts, combining characters, NUL and lone surrogates.
IDS = st.text(st.characters(), max_size=20)


@given(prefix=IDS, user=IDS)
def test_a_prefix_permits_the_users_that_begin_with_it(prefix: str, user: str) -> None:
    """Given a key for users with a prefix, of any characters, I expect it to permit those, and no others."""
    caller = Caller("bot", ALL_RIGHTS, users=prefix)

    assert caller.user_of(prefix + user) == prefix + user
    for other in (user, user + prefix):
        if not other.startswith(prefix):
            with pytest.raises(NotPermitted):
                caller.user_of(other)


@given(bound=IDS, user=IDS)
def test_a_bound_key_permits_its_user_alone(bound: str, user: str) -> None:
    """Given a key for one user, I expect no other, however similar: longer ones, or those in other case."""
    caller = Caller("bot", ALL_RIGHTS, user=bound)

    assert caller.user_of(None) == bound
    assert caller.user_of(bound) == bound
    for other in (user, bound + user, user + bound, bound.swapcase()):
        if other != bound:
            with pytest.raises(NotPermitted):
                caller.user_of(other)


@given(bound=IDS, prefix=IDS, rest=IDS)
def test_a_list_of_users_is_of_those_that_the_key_is_for(bound: str, prefix: str, rest: str) -> None:
    """Given a key for users with a prefix and a list of another one, I expect exactly the users that begin with
    both."""
    listed = Caller("bot", ALL_RIGHTS, users=bound).prefix_of(prefix)

    for user in (bound + prefix + rest, prefix + bound + rest, max(bound, prefix, key=len) + rest):
        wanted = user.startswith(bound) and user.startswith(prefix)
        assert wanted == (listed is not None and user.startswith(listed))


@given(bound=IDS, agent=IDS)
def test_a_key_for_a_character_permits_no_other(bound: str, agent: str) -> None:
    """Given a key for one character, I expect that one whether it is named or not, no other, and not all at once."""
    caller = Caller("bot", ALL_RIGHTS, agent=bound)

    assert caller.agent_of(None) == caller.agent_of(bound) == bound
    with pytest.raises(NotPermitted):
        caller.agent_of(bound, all_agents=True)
    if agent != bound:
        with pytest.raises(NotPermitted):
            caller.agent_of(agent)


def test_a_request_without_a_user_needs_a_bound_key() -> None:
    """Given no user, and no key that is bound to one, I expect the missing field named, and no talk of rights."""
    with pytest.raises(InvalidMessage, match="user_id: is needed"):
        OPEN.user_of(None)


@pytest.mark.parametrize("right", Right)
def test_a_right_permits_itself_alone(right: Right) -> None:
    """Given a key with one right, I expect no other permitted, and each refusal noted."""
    refused: list[str] = []
    caller = Caller("bot", frozenset({right}), on_refusal=lambda error: refused.append(error.code))
    caller.check(right)
    for other in ALL_RIGHTS - {right}:
        with pytest.raises(NotPermitted, match=f"does not permit {other}: it needs `ltm key create --may {other}`"):
            caller.check(other)

    assert len(refused) == len(Right) - 1
