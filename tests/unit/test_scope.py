"""Scopes: when the memories of a request are those of one owner alone."""

from __future__ import annotations

import pytest

from services.long_term_memory.postgres.scope import Owner, Scope


def test_one_user_s_shared_messages_are_one_owner_s() -> None:
    assert Scope.of("anna b").owner == Owner("anna%20b")


@pytest.mark.parametrize(
    "scope",
    [
        Scope(("u1", "u2")),
        Scope(("u1",), "luna"),
        Scope(("u1",), all_agents=True),
    ],
)
def test_a_scope_of_anything_else_is_read_as_several_owners(scope: Scope) -> None:
    """Given further users or a character, I expect that the statement for one owner is not used."""
    assert scope.owner is None
