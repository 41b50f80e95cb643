"""The asker of MCP's tools over HTTP: the user and character that a key and headers name."""

from __future__ import annotations

import pytest
from keepsake_client.errors import InvalidMessage
from starlette.requests import Request

from services.gateway.access import ALL_RIGHTS, OPEN, Caller, NotPermitted
from services.gateway.mcp_server.asker import Asker


def request_with(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw})


def test_the_header_names_the_user_of_a_key_that_is_bound_to_none() -> None:
    """Given a key for all users or a prefix, I expect the user of the header, in any script; without one a refusal."""
    named = request_with(x_keepsake_user="用户一", x_keepsake_agent="luna", x_keepsake_session="s1")

    asker = Asker.of_request(OPEN, named)

    assert (asker.user, asker.agent, asker.session) == ("用户一", "luna", "s1")
    with pytest.raises(NotPermitted, match="X-Keepsake-User"):
        Asker.of_request(OPEN, request_with())
    with pytest.raises(NotPermitted):
        Asker.of_request(Caller("key", ALL_RIGHTS, users="shop-"), named)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([(b"x-keepsake-user", b"Zo\xeb")], "not UTF-8"),
        ([(b"x-keepsake-user", b"anna"), (b"x-keepsake-user", b"berta")], "several headers"),
    ],
)
def test_a_header_that_can_be_read_in_two_ways_is_refused(headers: list[tuple[bytes, bytes]], words: str) -> None:
    """Given a user in another encoding, or two users, I expect a refusal and no guess."""
    with pytest.raises(InvalidMessage, match=words):
        Asker.of_request(OPEN, Request({"type": "http", "headers": headers}))


def test_a_header_does_not_change_the_user_or_character_of_a_key() -> None:
    """Given a key for one user and character, I expect them without headers, and a refusal of others."""
    key = Caller("key", ALL_RIGHTS, user="anna", agent="luna")

    asker = Asker.of_request(key, request_with())

    assert (asker.user, asker.agent) == ("anna", "luna")
    with pytest.raises(NotPermitted):
        Asker.of_request(key, request_with(x_keepsake_user="berta"))
    with pytest.raises(NotPermitted):
        Asker.of_request(key, request_with(x_keepsake_agent="vega"))
