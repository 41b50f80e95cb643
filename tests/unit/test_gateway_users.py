"""`GET /v1/users`: who sees which users."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.gateway.access import ALL_RIGHTS, OPEN, Caller
from services.gateway.api import api
from tests.unit.gateway_app import GatewayApp, gateway_app


@pytest.fixture(scope="module")
def app() -> Iterator[GatewayApp]:
    with gateway_app(api) as app:
        yield app


@pytest.fixture
def http(app: GatewayApp) -> GatewayApp:
    app.reset()
    return app


def test_users_are_listed_in_pages(http: GatewayApp) -> None:
    """Given a key for all users, I expect what is asked for on the wire, and the users with the cursor of the next
    page."""
    response = http.send("GET", "/v1/users?prefix=u%201&limit=2&cursor=u%25201")

    assert http.memory.requests == [("user_list", "operator", {"prefix": "u 1", "limit": 2, "cursor": "u%201"})]
    assert [user["user_id"] for user in response.json()["users"]] == ["u1", "u12"]
    assert response.json()["next_cursor"] == "u12"


@pytest.mark.parametrize(
    ("caller", "prefix", "asked"),
    [
        (OPEN, "", ""),
        (OPEN, "an", "an"),
        (Caller("k", ALL_RIGHTS, users="game:"), "", "game:"),
        (Caller("k", ALL_RIGHTS, users="game:"), "ga", "game:"),
        (Caller("k", ALL_RIGHTS, users="game:"), "game:7", "game:7"),
        (Caller("k", ALL_RIGHTS, users="game:"), "u", None),
        (Caller("k", ALL_RIGHTS, user="u1"), "", "u1"),
        (Caller("k", ALL_RIGHTS, user="u1"), "u", "u1"),
        (Caller("k", ALL_RIGHTS, user="u1"), "u12", None),
        (Caller("k", ALL_RIGHTS, user="u1"), "a", None),
    ],
)
def test_a_key_sees_its_own_users_alone(http: GatewayApp, caller: Caller, prefix: str, asked: str | None) -> None:
    """Given a key for some users, I expect no others asked for; where the prefix is of none of them, nothing."""
    http.keys.of = caller

    response = http.send("GET", f"/v1/users?prefix={prefix}")

    assert [data["prefix"] for _, _, data in http.memory.requests] == ([] if asked is None else [asked])
    if asked is None:
        assert response.json() == {"users": []}


def test_a_key_of_one_user_sees_no_user_whose_id_begins_alike(http: GatewayApp) -> None:
    """Given a key of u1, and users u1 and u12, I expect u1 alone, and no further page."""
    http.keys.of = Caller("k", ALL_RIGHTS, user="u1")

    response = http.send("GET", "/v1/users?cursor=u0")

    assert http.memory.requests == [("user_list", "operator", {"prefix": "u1", "limit": 1})]
    assert [user["user_id"] for user in response.json()["users"]] == ["u1"]
    assert "next_cursor" not in response.json()
