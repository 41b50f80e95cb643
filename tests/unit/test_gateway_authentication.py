"""Authentication of the gateway: which requests are taken, with a key, a token, or none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from keepsake_client.protocol import COUNTERS
from starlette.requests import Request
from structlog.testing import capture_logs

from services.gateway import authentication as authentication_module
from services.gateway.access import OPEN, NotPermitted, Right, Unauthorized
from services.gateway.authentication import LOGGED_RATE, MAX_CREDENTIAL_CHARS, Authentication
from services.gateway.key_file import KeyFile
from services.gateway.keys import KeyStore
from services.gateway.problems import headers_of
from services.gateway.rates import RateLimited
from services.gateway.tokens import TokenVerifier, mint
from services.runtime.counters import PendingCounts
from tests.support import eventually

SECRET = b"0123456789abcdef" * 2
LOCAL = [("host", "127.0.0.1:18380")]
MAY = (Right.SEARCH,)


def request(headers: Sequence[tuple[str, str]] = (), peer: str = "127.0.0.1") -> Request:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "path": "/v1", "headers": raw, "client": (peer, 5_000)})


def bearing(key: str, scheme: str = "Bearer") -> Request:
    return request([("authorization", f"{scheme} {key}")])


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


@pytest.fixture
def counts() -> PendingCounts:
    return PendingCounts(COUNTERS)


def made(file: KeyFile, counts: PendingCounts | None = None, **options: Any) -> Authentication:
    """The authentication of a gateway on the loopback interface, or as the options say."""
    store = KeyStore(file.path, lambda: None)
    store.refresh()
    arguments: dict[str, Any] = {"tokens": None, "rate": 0, "proxied": False, "local": True, **options}
    return Authentication(store, counts=counts, **arguments)


def counted(counts: PendingCounts) -> dict[str, int]:
    """The counts, as Redis would get them."""
    client = fakeredis.FakeRedis(decode_responses=True)
    counts.flush(client)
    found: Any = client.hgetall(COUNTERS)
    return {name: int(number) for name, number in found.items()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Authorization", "Bearer {}"),
        ("authorization", "bearer   {}"),
        ("Authorization", "Token {}"),
        ("Authorization", "TOKEN {} "),
        ("X-API-Key", "{}"),
        ("x-api-key", " {} "),
    ],
)
def test_a_key_is_read_where_clients_send_it(file: KeyFile, name: str, value: str) -> None:
    """Given a key as OpenAI's, MCP's and Mem0's clients send it, I expect its caller."""
    key = file.create("bot", MAY, users="team-", agent="luna", rate=3)

    caller = made(file, rate=9).caller(request([(name, value.format(key))]))
    assert (caller.name, caller.rights, caller.user) == ("bot", frozenset(MAY), None)
    assert (caller.users, caller.agent, caller.rate) == ("team-", "luna", 3)


def test_a_key_without_a_rate_has_that_of_the_settings(file: KeyFile) -> None:
    """Given a key without a rate and one with rate 0, I expect LTM_GATEWAY_RATE for the first, none for the second."""
    plain, free = file.create("plain", MAY), file.create("free", MAY, rate=0)
    authentication = made(file, rate=9)

    assert [authentication.caller(bearing(key)).rate for key in (plain, free)] == [9, 0]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "Basic {}")],
        [("authorization", "{}")],
        [("authorization", "Digest {}"), ("x-api-key", "{}")],
        [("authorization", "Bearer {}"), ("authorization", "Bearer {}")],
        [("x-api-key", "{}"), ("x-api-key", "other")],
        [("x-api-key", "")],
        [("authorization", "Bearer {}x")],
        [("authorization", "Bearer {}, Bearer {}")],
        [("authorization", "Bearer " + "x" * 9_000)],
        [("authorization", "Bearer " + "." * 5_000)],
        [("authorization", "Bearer \xff\xfe")],
        [("cookie", "key={}")],
    ],
)
def test_a_request_without_one_valid_key_is_refused(
    file: KeyFile, counts: PendingCounts, headers: list[tuple[str, str]]
) -> None:
    """Given no key, another scheme, several keys or a wrong one, I expect a refusal with the header that says what is
    asked for, counted, and a log line without the key."""
    key = file.create("bot", MAY)
    authentication = made(file, counts)
    with capture_logs() as lines, pytest.raises(Unauthorized) as refused:
        authentication.caller(request([(name, value.format(key, key)) for name, value in headers]))

    assert headers_of(refused.value) == {"WWW-Authenticate": "Bearer"}
    assert counted(counts) == {"gateway_unauthorized": 1}
    assert [(line["event"], line["code"], line["peer"]) for line in lines] == [
        ("request_refused", "unauthorized", "127.0.0.1")
    ]
    assert key[21:] not in json.dumps(lines) + str(refused.value)


def test_a_token_is_taken_where_tokens_are(file: KeyFile) -> None:
    """Given a token, I expect its caller where a secret is set, beside keys; and an unknown key where none is."""
    key, token = file.create("bot", MAY), mint(SECRET, "anna", MAY, 60)
    tokens = TokenVerifier([(SECRET, "HS256")], 0)
    authentication = made(file, tokens=tokens)

    assert authentication.caller(bearing(token)).user == "anna"
    assert authentication.caller(bearing(key)).name == "bot"
    with pytest.raises(Unauthorized, match="this key is not known"):
        made(file).caller(bearing(token))


def test_a_key_for_tokens_is_needed_without_a_key_file(file: KeyFile) -> None:
    """Given a secret of tokens and no key file, I expect no request taken without a token, on localhost either."""
    authentication = made(file, tokens=TokenVerifier([(SECRET, "HS256")], 0))

    with pytest.raises(Unauthorized):
        authentication.caller(request(LOCAL))


@pytest.mark.parametrize(
    "headers",
    [
        LOCAL,
        [("host", "localhost")],
        [("host", "localhost:8080")],
        [("host", "[::1]:18380")],
        [("host", "127.0.0.1")],
        [*LOCAL, ("authorization", "Bearer sk-anything")],
        [*LOCAL, ("authorization", "Token m0-anything")],
        [*LOCAL, ("origin", "http://localhost:3000")],
        [*LOCAL, ("origin", "http://127.0.0.1:18380"), ("sec-fetch-site", "same-origin")],
        [*LOCAL, ("sec-fetch-site", "none")],
    ],
)
def test_without_keys_a_program_of_this_machine_may_do_everything(
    file: KeyFile, headers: list[tuple[str, str]]
) -> None:
    """Given no key file on localhost, I expect requests of this machine's programs and pages taken; a key that a client
    sends all the same is ignored."""
    assert made(file).caller(request(headers)) is OPEN


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], "header Host"),
        ([("host", "")], "header Host"),
        ([("host", "evil.example")], "header Host"),
        ([("host", "evil.example:18380")], "header Host"),
        ([("host", "127.0.0.1.evil.example")], "header Host"),
        ([("host", "localhost.evil.example")], "header Host"),
        ([("host", "127.0.0.1@evil.example")], "header Host"),
        ([("host", "evil.example#127.0.0.1")], "header Host"),
        ([("host", "192.168.0.7:18380")], "header Host"),
        ([("host", "[::1")], "header Host"),
        ([*LOCAL, ("host", "evil.example")], "header Host"),
        ([*LOCAL, ("origin", "https://evil.example")], "no page of another site"),
        ([*LOCAL, ("origin", "null")], "no page of another site"),
        ([*LOCAL, ("origin", "http://localhost.evil.example")], "no page of another site"),
        ([*LOCAL, ("origin", "http://[")], "no page of another site"),
        ([*LOCAL, ("sec-fetch-site", "cross-site")], "no page of another site"),
        ([*LOCAL, ("x-forwarded-for", "203.0.113.7")], "came by a proxy"),
        ([*LOCAL, ("forwarded", "for=203.0.113.7")], "came by a proxy"),
        ([*LOCAL, ("via", "1.1 proxy")], "came by a proxy"),
    ],
)
def test_without_keys_a_page_of_another_site_may_do_nothing(
    file: KeyFile, counts: PendingCounts, headers: list[tuple[str, str]], reason: str
) -> None:
    """Given no key file, and a request under another host's name (DNS rebinding), of a page of another site, or by a
    proxy, I expect a refusal that says why, counted."""
    with pytest.raises(NotPermitted, match=reason):
        made(file, counts).caller(request(headers))

    assert counted(counts) == {"gateway_forbidden": 1}


def test_a_named_origin_may_use_an_open_gateway(file: KeyFile) -> None:
    """Given an origin of LTM_GATEWAY_CORS_ORIGINS, I expect its page's requests taken, and no other's."""
    authentication = made(file, origins=("https://chat.example",))

    page = [*LOCAL, ("origin", "https://chat.example"), ("sec-fetch-site", "cross-site")]
    assert authentication.caller(request(page)) is OPEN
    with pytest.raises(NotPermitted, match="page of another site"):
        authentication.caller(request([*LOCAL, ("origin", "https://evil.example")]))


def test_a_key_file_closes_the_gateway_for_good(file: KeyFile) -> None:
    """Given an open gateway and a first key, I expect no request without a key from then on: not when the key is
    revoked, nor when the file is gone."""
    store = KeyStore(file.path, lambda: None)
    authentication = Authentication(store, None, 0, proxied=False, local=True)
    assert authentication.caller(request(LOCAL)) is OPEN

    file.create("bot", MAY)
    changes: list[Callable[[], None]] = [lambda: None, lambda: file.revoke("bot"), file.path.unlink]
    for change in changes:
        change()
        store.refresh()
        with pytest.raises(Unauthorized):
            authentication.caller(request(LOCAL))


def test_behind_a_proxy_without_keys_the_proxy_authenticates(file: KeyFile) -> None:
    """Given trusted proxies and no keys, I expect what they pass on to be permitted, under any host name."""
    passed_on = request([("host", "memory.example"), ("x-forwarded-for", "203.0.113.7")], "203.0.113.7")

    assert made(file, proxied=True, local=False).caller(passed_on) is OPEN


def test_behind_a_proxy_with_keys_a_key_is_needed(file: KeyFile) -> None:
    """Given trusted proxies and keys, I expect both asked for."""
    file.create("bot", MAY)

    with pytest.raises(Unauthorized):
        made(file, proxied=True, local=False).caller(request([("host", "memory.example")]))


def test_elsewhere_nothing_is_permitted_without_keys(file: KeyFile) -> None:
    """Given an address that others reach, and no key file, I expect no request taken."""
    with pytest.raises(Unauthorized):
        made(file, local=False).caller(request(LOCAL))


def test_a_request_counts_once_against_its_rate(file: KeyFile, counts: PendingCounts) -> None:
    """Given a key for half a request a second, and a door that asks twice who sends a request, I expect that request
    taken; and the next one refused, and counted."""
    key = file.create("bot", MAY, rate=0.5)
    authentication, first = made(file, counts), bearing(key)

    assert authentication.caller(first) is authentication.caller(first)
    with pytest.raises(RateLimited):
        authentication.caller(bearing(key))
    assert counted(counts) == {"gateway_rate_limited": 1}


def test_a_token_over_its_rate_is_logged_with_its_user_apart(file: KeyFile) -> None:
    """Given the token of a user with too many requests, I expect the user in the field that the log can hash alone."""
    secret = b"x" * 32
    authentication = made(file, tokens=TokenVerifier([(secret, "HS256")], rate=0.5))
    token = mint(secret, "anna", (Right.SEARCH,), 60)
    authentication.caller(bearing(token))
    with capture_logs() as lines, pytest.raises(RateLimited):
        authentication.caller(bearing(token))

    assert [(line.pop("user_id"), line.pop("key")) for line in lines] == [("anna", "token")]
    assert "anna" not in str(lines)


def test_what_a_key_does_not_permit_is_counted_and_logged(file: KeyFile, counts: PendingCounts) -> None:
    """Given a key of one user that leaked, I expect another user refused, counted and logged by the key."""
    key = file.create("bot", MAY, user="anna")
    caller = made(file, counts).caller(bearing(key))
    with capture_logs() as lines, pytest.raises(NotPermitted):
        caller.user_of("ben")

    assert counted(counts) == {"gateway_forbidden": 1}
    assert [(line["event"], line["code"], line["key"], line["peer"]) for line in lines] == [
        ("request_refused", "forbidden", "bot", "127.0.0.1")
    ]
    assert key not in str(lines)


def test_a_flood_of_wrong_keys_does_not_fill_the_log(file: KeyFile, counts: PendingCounts) -> None:
    """Given a thousand wrong keys at once, I expect all counted, and a few lines."""
    file.create("bot", MAY)
    authentication = made(file, counts)
    with capture_logs() as lines:
        for _ in range(1_000):
            with pytest.raises(Unauthorized):
                authentication.caller(bearing("wrong"))

    assert counted(counts) == {"gateway_unauthorized": 1_000}
    assert len(lines) < 100 * LOGGED_RATE


def test_what_is_too_long_for_a_credential_is_not_read(file: KeyFile) -> None:
    """Given a token longer than any, I expect it refused as none, before its parts are decoded."""
    authentication = made(file, tokens=TokenVerifier([(SECRET, "HS256")], 0))
    with pytest.raises(Unauthorized, match="the request has no key"):
        authentication.caller(bearing(f"a.b.{'c' * MAX_CREDENTIAL_CHARS}"))


def test_the_file_is_watched(file: KeyFile) -> None:
    """Given a gateway that watches, I expect a key made meanwhile to be taken, and to be needed."""
    store = KeyStore(file.path, lambda: None)
    authentication = Authentication(store, None, 0, proxied=False, local=True)

    async def story() -> None:
        async with authentication.watching():
            key = file.create("bot", MAY)
            await eventually(lambda: store.seen, description="the key file")
            with pytest.raises(Unauthorized):
                authentication.caller(request(LOCAL))
            assert authentication.caller(bearing(key)).name == "bot"
            assert authentication.alive()

    asyncio.run(story())


def test_a_look_at_the_file_that_fails_is_counted_and_not_the_last(
    file: KeyFile, counts: PendingCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a fault in the first look at the key file, I expect it logged and counted, and the file read later."""
    monkeypatch.setattr(authentication_module, "WATCH_INTERVAL_S", 0.01)
    file.create("bot", MAY)
    store = KeyStore(file.path, lambda: None)
    looks = iter([ZeroDivisionError])
    refresh = store.refresh

    def look() -> None:
        if error := next(looks, None):
            raise error
        refresh()

    monkeypatch.setattr(store, "refresh", look)
    authentication = Authentication(store, None, 0, proxied=False, local=True, counts=counts)

    async def story() -> None:
        async with authentication.watching():
            await eventually(lambda: store.seen, description="the key file")

    with capture_logs() as lines:
        asyncio.run(story())

    assert [line["event"] for line in lines] == ["keys_watch_failed", "keys_read"]
    assert counted(counts) == {"gateway_keys_unusable": 1}
