"""`/v1/traces`: which records a key sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
import redis
from keepsake_client.protocol import REQUESTS_QUEUE, TRACE_FIELD, TRACES_STREAM
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM

from services.gateway.access import ALL_RIGHTS, Caller, Right
from services.gateway.api import api
from services.runtime import turn_reader
from services.runtime.logging import user_id_hasher
from services.runtime.turns import Turns
from tests.unit.gateway_app import GatewayApp, gateway_app


@pytest.fixture(params=[True, False], ids=["ids", "hashes"])
def http(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayApp]:
    """The gateway, with records of two users that share a message id, and a request that waits."""
    with gateway_app(api, ltm_log_user_ids=request.param, ltm_log_key="secret") as app:
        hashed = user_id_hasher(app.gateway.settings)
        client: Any = fakeredis.FakeRedis(server=app.server)
        for at, user in enumerate(("game:1", "other")):
            record = {"kind": "request", "user": hashed(user), "message_id": "m1", "times": {"answered": at}}
            client.xadd(TRACES_STREAM, {TRACE_FIELD: json.dumps(record)})
        client.lpush(REQUESTS_QUEUE, json.dumps({"message_id": "m1", "user_id": "other"}))

        def connect(_: str) -> redis.Redis:
            return fakeredis.FakeRedis(server=app.server)

        monkeypatch.setattr(turn_reader, "connect", connect)
        yield app


def seen(http: GatewayApp, path: str) -> tuple[list[str], int]:
    """The users of the records, by their ids, and the number of what waits."""
    found = http.send("GET", path).json()
    names = {user_id_hasher(http.gateway.settings)(user): user for user in ("game:1", "other")}
    return [names[record["user"]] for record in found["records"]], len(found.get("waiting", []))


@pytest.mark.parametrize("path", ["/v1/traces?id=m1", "/v1/traces"])
def test_a_key_of_all_users_sees_all(http: GatewayApp, path: str) -> None:
    """Given an id, or none, I expect the records of all users, and of an id what waits."""
    assert seen(http, path) == (["game:1", "other"], 1 if "id=" in path else 0)


@pytest.mark.parametrize("path", ["/v1/traces?id=m1", "/v1/traces"])
def test_a_key_of_one_user_sees_its_own(http: GatewayApp, path: str) -> None:
    """Given a key of one user, I expect that user's records, hashed or not, and nothing that waits."""
    http.keys.of = Caller("k", ALL_RIGHTS, user="game:1")

    assert seen(http, path) == (["game:1"], 0)


@pytest.mark.parametrize("path", ["/v1/traces?id=m1", "/v1/traces"])
def test_a_key_of_a_prefix_sees_its_own_where_ids_are_written(http: GatewayApp, path: str) -> None:
    """Given a key of the users of a prefix, I expect their records; of hashes, which have no prefix, none."""
    http.keys.of = Caller("k", ALL_RIGHTS, users="game:")

    assert seen(http, path) == (["game:1"] if http.gateway.settings.ltm_log_user_ids else [], 0)


@pytest.mark.parametrize(
    ("caller", "sees"),
    [
        (Caller("k", ALL_RIGHTS), True),
        (Caller("k", ALL_RIGHTS, user="anna"), True),
        (Caller("k", ALL_RIGHTS, user="ben"), False),
        (Caller("k", frozenset([Right.TRACE])), False),
    ],
    ids=["all users", "the user", "another user", "may not read"],
)
def test_a_turn_is_for_keys_that_may_read_its_user(http: GatewayApp, caller: Caller, sees: bool) -> None:
    """Given the turn of a user, I expect its contents for a key with the right to read that user, and for no other."""
    turns = Turns.of(http.gateway.settings)
    client: Any = fakeredis.FakeRedis(server=http.server)
    record = turns.reply("anna", text="Hi", prompt=[("user", "Hi")], reply="Hello", message_id="m7", request_id="r7")
    client.xadd(TURNS_STREAM, {TURN_FIELD: record})
    http.keys.of = caller

    found = http.send("GET", "/v1/traces?id=m7").json()

    turn = found.get("turn", {})
    assert (turn.get("text"), turn.get("reply_record", {}).get("reply")) == (("Hi", "Hello") if sees else (None, None))
    assert ("Hello" in str(found)) is sees


def test_the_latest_are_as_many_as_asked_for(http: GatewayApp) -> None:
    """Given a limit, I expect the last records."""
    assert seen(http, "/v1/traces?limit=1") == (["other"], 0)


def test_a_key_of_one_character_sees_none(http: GatewayApp) -> None:
    """Given a key that is bound to a character, I expect 403: a record does not say which one it is about."""
    http.keys.of = Caller("luna", ALL_RIGHTS, user="game:1", agent="luna")

    assert http.send("GET", "/v1/traces?id=m1").status_code == 403
