"""Who gets to see the console: sessions, origins, proxies, and the headers of its pages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from nicegui import Client, app, core
from starlette.types import Message
from structlog.testing import capture_logs

from services.gateway.access import ALL_RIGHTS, Caller, NotPermitted, Right, Unauthorized
from services.gateway.authentication import Authentication
from services.gateway.console import sockets
from services.gateway.console.guard import LIBRARY, SOCKETS, ConsoleGuard, check_same_origin
from services.gateway.console.sessions import COOKIE, MAX_SESSIONS, SessionCallers, Sessions, request_with_key
from services.gateway.keys import KeyStore
from tests.served_gateway import Keys
from tests.unit.console_http import ANNA, ORIGIN, Browsers, browsers, sign_in

BEN = Caller("ben", ALL_RIGHTS)
PAGE = "/console/people?user=anna"


@pytest.fixture(scope="module")
def console() -> Iterator[Browsers]:
    """Browsers with one console."""
    with browsers() as found:
        yield found


@pytest.mark.parametrize(
    "cookie",
    ["", f"{COOKIE}=", f"{COOKIE}=anna", f'{COOKIE}="\\\\\\""; x', "; ; =;", f"{COOKIE}=\x7f\xe9", "a" * 4_000],
    ids=["none", "empty", "the key itself", "quotes", "no names", "no ascii", "long"],
)
def test_without_a_session_a_page_leads_to_signing_in(console: Browsers, cookie: str) -> None:
    """Given a cookie of another program, or a key in a header, I expect the page to sign in, which leads back."""

    async def story(http: httpx.AsyncClient) -> None:
        response = await http.get(
            PAGE, headers=[(b"cookie", cookie.encode("latin-1")), (b"authorization", b"Bearer anna")]
        )
        assert response.status_code == 303
        assert response.headers["location"] == "/console/sign-in?back=%2Fconsole%2Fpeople%3Fuser%3Danna"

    console.browse(story)


def test_a_browser_signs_in_sees_a_page_and_signs_out(console: Browsers) -> None:
    """Given a valid key, I expect a session that scripts cannot read, and nothing of it after signing out."""

    async def story(http: httpx.AsyncClient) -> None:
        signed_in = await sign_in(http)
        cookie = signed_in.headers["set-cookie"]
        assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/console/")
        attributes = set(cookie.split("; ")[1:])
        assert attributes == {"HttpOnly", "Max-Age=43200", "Path=/console", "SameSite=lax"}
        assert "anna" not in cookie
        assert (await http.get("/console/")).status_code == 200
        await http.post("/console/sign-out", headers={"cookie": f"{COOKIE}={http.cookies[COOKIE]}"})
        assert (await http.get("/console/", headers={"cookie": cookie.partition(";")[0]})).status_code == 303

    console.browse(story)


def test_signing_in_ends_the_session_of_before(console: Browsers) -> None:
    """Given a session id that another site may have set, I expect a new one after signing in, and the old one gone."""

    async def story(http: httpx.AsyncClient) -> None:
        await sign_in(http)
        before = http.cookies[COOKIE]
        await sign_in(http)
        assert http.cookies[COOKIE] != before
        http.cookies.clear()
        assert (await http.get("/console/", headers={"cookie": f"{COOKIE}={before}"})).status_code == 303

    console.browse(story)


def test_a_wrong_key_is_refused_and_so_are_many_attempts(console: Browsers) -> None:
    """Given one wrong key after the other from one address, I expect 401, then 429 even for the right one."""

    async def story(http: httpx.AsyncClient) -> None:
        answers = [await sign_in(http, key) for key in ("<b>", "wrong", "wrong", "anna")]
        assert [answer.status_code for answer in answers] == [401, 401, 429, 429]
        assert all(COOKIE not in answer.headers.get("set-cookie", "") for answer in answers)
        assert int(answers[-1].headers["retry-after"]) >= 1

    console.browse(story)


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "http://keepsake.example:81", "", "http://["])
def test_what_the_page_of_another_site_sends_is_refused(console: Browsers, origin: str) -> None:
    """Given a form of another site, or of another port, I expect 403 and no session."""

    async def story(http: httpx.AsyncClient) -> None:
        response = await sign_in(http, origin=origin)
        assert (response.status_code, "set-cookie" in response.headers) == (403, False)

    console.browse(story)


def test_a_request_without_an_origin_is_of_no_page() -> None:
    """Given a program, which states no origin, I expect no refusal for that."""
    check_same_origin({"type": "http", "method": "POST", "headers": [(b"host", b"keepsake.example")]})
    with pytest.raises(NotPermitted):
        check_same_origin({"type": "websocket", "headers": [(b"host", b"a"), (b"origin", b"https://b")]})


@pytest.mark.parametrize(
    ("back", "to"),
    [
        ("/console/turn?id=1", "/console/turn?id=1"),
        ("https://evil.example/console/", "/console/"),
        ("//evil.example/console/", "/console/"),
        ("/consolevil", "/console/"),
        ("javascript:alert(1)", "/console/"),
    ],
)
def test_preferences_and_signing_in_lead_to_the_console_alone(console: Browsers, back: str, to: str) -> None:
    """Given a link of another site to a form of the console, I expect it to lead to no other place."""

    async def story(http: httpx.AsyncClient) -> None:
        answers = [
            await http.post(f"/console/{form}", params={"back": back, "language": "zh"}, data={"key": "anna"})
            for form in ("sign-in", "preferences")
        ]
        assert [answer.headers["location"] for answer in answers] == [to, to]
        assert "keepsake_language=zh" in answers[1].headers["set-cookie"]

    console.browse(story)


def test_preferences_take_no_other_value(console: Browsers) -> None:
    """Given a value that is none of the preference, I expect no cookie of it."""

    async def story(http: httpx.AsyncClient) -> None:
        await sign_in(http)
        answer = await http.post("/console/preferences", params={"theme": "x; Domain=evil.example", "other": "1"})
        assert "set-cookie" not in answer.headers

    console.browse(story)


@pytest.mark.parametrize(
    "headers",
    [{"x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.7"}, {"origin": "https://keepsake.example"}],
    ids=["a trusted proxy says so", "the browser says so"],
)
def test_behind_a_proxy_that_terminates_tls_the_cookie_is_secure(console: Browsers, headers: dict[str, str]) -> None:
    """Given HTTPS up to the proxy, I expect the cookie to be sent by HTTPS alone."""

    async def story(http: httpx.AsyncClient) -> None:
        assert "Secure" in (await sign_in(http, **headers)).headers["set-cookie"]

    console.browse(story, proxies=["10.0.0.0/8"])


def test_without_keys_a_host_name_that_leads_here_is_refused(console: Browsers) -> None:
    """Given an open gateway, and a site whose name leads to this machine (DNS rebinding), I expect 403."""
    open_here = Authentication(KeyStore(None, lambda: None), None, 0, proxied=False, local=True)

    async def story(http: httpx.AsyncClient) -> None:
        assert (await http.get("http://127.0.0.1:18380/console/")).status_code == 200
        assert (await http.get("http://evil.example:18380/console/")).status_code == 403
        assert (await http.get("http://127.0.0.1/console/sign-in")).headers["location"] == "/console/"

    console.browse(story, open_here)


def test_pages_run_their_own_scripts_and_load_nothing_from_elsewhere(console: Browsers) -> None:
    """Given a page, I expect a nonce on each of its scripts, and a policy that permits no other and no frame."""

    async def story(http: httpx.AsyncClient) -> None:
        await sign_in(http)
        response = await http.get("/console/", headers={"x-forwarded-prefix": "//evil.example"})
        policy = response.headers["content-security-policy"]
        nonce = re.search(r"'nonce-([^']+)'", policy)
        assert nonce
        assert {"frame-ancestors 'none'", "default-src 'self'"} <= set(policy.split("; "))
        assert "unsafe-inline" not in policy.partition("script-src")[2]
        scripts = response.text.count("<script")
        assert response.text.count(f'<script nonce="{nonce[1]}"') == scripts > 0
        assert not re.search(r"(?:src|href|url)[=(]\"?(?:https?:)?//", response.text)
        assert "evil" not in response.text
        assert response.headers["cache-control"] == "no-store"

    console.browse(story)


def test_the_content_is_in_the_document_before_its_scripts(console: Browsers) -> None:
    """Given a page, I expect its navigation and title as HTML, in the language of the page."""

    async def story(http: httpx.AsyncClient) -> None:
        await sign_in(http)
        text = (await http.get("/console/settings", headers={"accept-language": "zh"})).text
        assert '<html lang="zh" dir="ltr">' in text
        assert re.search(r'<div id="main"[^>]*><h1>.*设置', text)

    console.browse(story)


def test_files_are_public_and_kept_and_nothing_else_of_the_library_is(console: Browsers) -> None:
    """Given a stranger, I expect files that are the same for all; for another path of NiceGUI's no page, no data."""

    async def story(http: httpx.AsyncClient) -> None:
        found = await http.get(f"{LIBRARY}static/nicegui.js")
        assert (found.status_code, "immutable" in found.headers["cache-control"]) == (200, True)
        pages = len(Client.instances)
        missing = await http.get(f"{LIBRARY}nothing")
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
        assert len(Client.instances) == pages
        for path in ("/console/_nicegui/client/x/upload/1", "/console/_nicegui/auto/media/x", f"{SOCKETS}socket.io/"):
            assert (await http.get(path)).status_code == 303

    console.browse(story)


def test_a_browser_that_leaves_before_a_file_has_come_is_no_fault(console: Browsers) -> None:
    """Given a file of the library that its browser does not wait for, I expect no error, neither logged nor sent."""
    path, sent = f"{LIBRARY}static/quasar.umd.prod.js", []
    headers = [(b"host", b"keepsake.example")]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers, "root_path": ""}

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    async def story(_: httpx.AsyncClient) -> None:
        with capture_logs() as logs:
            await console.app(scope, receive, send)
        assert "request_failed" not in [line["event"] for line in logs]
        assert 500 not in [message.get("status") for message in sent]

    console.browse(story)


def test_of_a_page_that_is_not_there_nothing_is_said(console: Browsers) -> None:
    """Given a signed-in browser, I expect a problem for an unknown page, and for polling in place of a WebSocket."""

    async def story(http: httpx.AsyncClient) -> None:
        await sign_in(http)
        assert (await http.get("/console/nothing?user=anna")).json()["code"] == "not_found"
        assert (await http.get(f"{SOCKETS}socket.io/?EIO=4&transport=polling")).status_code == 403

    console.browse(story)


def test_nicegui_keeps_nothing_sends_nothing_and_logs_nothing_of_its_pages(console: Browsers) -> None:
    """Given the console, I expect no relay, no Markdown for robots, no storage on disk, and no log of a page's own."""

    async def story(http: httpx.AsyncClient) -> None:
        assert (core.air, core.app.config.markdown) == (None, False)
        assert (dict(app.storage.general), app.storage.redis_url, app.storage.secret) == ({}, None, None)
        assert core.sio.handlers["/"]["log"]("a socket", {"level": "error", "message": "Xylophone"}) is None

    console.browse(story)


@contextmanager
def _page_of(caller: Caller) -> Iterator[None]:
    """A page with the id `the-page` that a caller has opened."""
    request = SimpleNamespace(scope={"state": {"caller": caller}})
    Client.instances["the-page"] = cast(Any, SimpleNamespace(request=request))
    try:
        yield
    finally:
        del Client.instances["the-page"]


async def _socket(
    guard_keys: Keys, page_of: Caller, query: str, *, then: dict[str, Caller] | None = None
) -> list[Message]:
    """What a browser that has signed in as Anna is sent on a WebSocket, over which the application sends twice.

    Args:
        then: the keys after the first message, where they change.
    """
    sent: list[Message] = []
    sessions = Sessions()
    session_id = sessions.begin("anna")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "before"})
        if then is not None:
            guard_keys.callers = then
        assert (await receive())["type"] == ("websocket.receive" if then is None else "websocket.disconnect")
        await send({"type": "websocket.send", "text": "after"})
        await send({"type": "websocket.send", "text": "after that"})

    async def receive() -> Message:
        return {"type": "websocket.receive", "text": "a click"}

    async def send(message: Message) -> None:
        sent.append(message)

    with _page_of(page_of):
        await ConsoleGuard(application, SessionCallers(guard_keys, sessions))(
            {
                "type": "websocket",
                "path": f"{SOCKETS}socket.io/",
                "query_string": query.encode(),
                "headers": [(b"host", b"h"), (b"origin", b"http://h"), (b"cookie", f"{COOKIE}={session_id}".encode())],
                "extensions": {"websocket.http.response": {}},
            },
            receive,
            send,
        )
    return sent


def test_a_page_is_connected_to_the_caller_that_has_opened_it() -> None:
    """Given a page of Anna's, I expect her WebSocket to be served."""
    sent = asyncio.run(_socket(Keys({"anna": ANNA}), ANNA, "client_id=the-page"))
    assert [message.get("text") for message in sent] == [None, "before", "after", "after that"]


@pytest.mark.parametrize("query", ["client_id=the-page", "", "client_id=&x=1"])
def test_a_page_of_another_caller_is_refused(query: str) -> None:
    """Given a page of Ben's, or no page, I expect Anna's WebSocket to be refused before it is accepted."""
    sent = asyncio.run(_socket(Keys({"anna": ANNA}), BEN, query))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_an_upload_to_a_page_of_another_caller_is_refused(console: Browsers) -> None:
    """Given a page of Ben's, I expect what Anna sends to it to be refused."""

    async def story(http: httpx.AsyncClient) -> None:
        await sign_in(http)
        with _page_of(BEN):
            response = await http.post("/console/_nicegui/client/the-page/upload/1", headers={"origin": ORIGIN})
        assert response.json()["code"] == "forbidden"

    console.browse(story)


@pytest.mark.parametrize(
    "then", [{}, {"anna": Caller("anna", frozenset({Right.TRACE}))}], ids=["revoked", "of fewer rights"]
)
def test_a_websocket_ends_with_its_key(then: dict[str, Caller]) -> None:
    """Given a page that is open while its key changes, I expect nothing taken from it and nothing sent to it."""
    sent = asyncio.run(_socket(Keys({"anna": ANNA}), ANNA, "client_id=the-page", then=then))
    assert [message.get("text") for message in sent[:2]] == [None, "before"]
    assert sent[2:] == [{"type": "websocket.close", "code": 1008}]


def test_an_event_counts_for_the_page_of_its_websocket_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a WebSocket that names the page of another in an event, I expect the event to be ignored."""
    taken: list[str] = []
    monkeypatch.setattr(core.sio, "rooms", lambda _: ["a-socket", "own-page"])
    handle = sockets._of_own_page(lambda _, message: taken.append(message["client_id"]))
    for message in ({"client_id": "own-page"}, {"client_id": "other-page"}, {}, "own-page", None):
        handle("a-socket", message)
    assert taken == ["own-page"]


def test_sessions_end_and_are_bounded() -> None:
    """Given more browsers than there may be, I expect the one that came first to sign in again; and all in the end."""
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    ids = [sessions.begin(f"key-{n}") for n in range(MAX_SESSIONS + 1)]
    assert (sessions.key(ids[0]), sessions.key(ids[-1])) == (None, f"key-{MAX_SESSIONS}")
    now[0] = 12 * 3_600
    assert sessions.key(ids[-1]) is None


def test_a_caller_is_found_by_the_session_alone() -> None:
    """Given a session that has ended, I expect the key that was valid with it to be worth nothing."""
    sessions = Sessions()
    callers = SessionCallers(Keys({"anna": ANNA}), sessions)
    session_id = sessions.begin("anna")
    scope = {"type": "http", "headers": [(b"cookie", f"{COOKIE}={session_id}".encode()), (b"x-api-key", b"anna")]}
    assert callers.caller(scope) == ANNA
    sessions.end(session_id)
    with pytest.raises(Unauthorized):
        callers.identify(scope)


def test_a_key_in_a_header_is_not_passed_on() -> None:
    """Given keys in both headers, which is how programs send one, I expect the key of the session alone."""
    scope = {"type": "http", "headers": [(b"x-api-key", b"ben"), (b"authorization", b"Bearer ben")]}
    assert request_with_key(scope, "anna").headers.items() == [("authorization", "Bearer anna")]
    assert request_with_key(scope, None).headers.items() == []
