"""Where the gateway listens, what it refuses to start with, and from which peers and pages it takes requests."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from keepsake_client.protocol import COUNTERS
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from services.gateway.__main__ import _authentication, _server
from services.gateway.access import NotPermitted
from services.gateway.exposure import (
    Peer,
    cors_origins,
    guarded,
    is_loopback,
    listening_socket,
    trusted_proxies,
)
from services.gateway.key_file import KeyFile
from services.runtime.counters import PendingCounts
from services.runtime.errors import EXIT_CANNOT_START, CannotStart, InvalidSetting
from services.runtime.metrics import NO_METRICS
from services.runtime.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
PAGE = "https://chat.example"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without settings of the gateway."""
    for name in Settings.model_fields:
        if name.startswith("ltm_gateway_"):
            monkeypatch.delenv(name.upper(), raising=False)


async def _seen(request: Request) -> JSONResponse:
    client = request.client
    return JSONResponse({"client": client.host if client else None, "scheme": request.url.scheme})


def app_for(proxies: str | None = None, origins: str | None = None, refused: list[str] | None = None) -> Any:
    """An application that answers with what it sees of its peer, as the settings expose it."""
    settings = load_settings(ltm_gateway_trusted_proxies=proxies, ltm_gateway_cors_origins=origins)
    noted = [] if refused is None else refused
    routes = [Route(path, _seen, methods=["GET", "POST"]) for path in ("/v1", "/healthz", "/readyz")]

    def note(peer: Peer, error: NotPermitted) -> None:
        noted.append("refused" if peer and error.code == "forbidden" else "?")

    return guarded(Starlette(routes=routes), trusted_proxies(settings), cors_origins(settings), note)


def answer(
    app: Any, method: str = "GET", path: str = "/v1", *, peer: str = "10.0.0.5", **headers: str
) -> httpx.Response:
    """The response to one request from a peer."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(peer, 5_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://memory.example") as client:
            return await client.request(method, path, headers=sent)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("localhost.example", False),
        ("127.1", False),
        ("memory.example", False),
    ],
)
def test_what_other_machines_reach_is_told_from_what_they_do_not(host: str, loopback: bool) -> None:
    """Given an address or a name, I expect only those of the loopback interface taken for private."""
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("text", ["proxy", "10.0.0.1/8", "10.0.0.0/33", "*", "0.0.0.0/0", "::/0", "10.0.0.5, nonsense"])
def test_a_proxy_that_is_no_address_is_one_line(text: str) -> None:
    """Given a name, a network with bits of a host, or every address there is, I expect a start refused in words."""
    with pytest.raises(InvalidSetting, match=r"^LTM_GATEWAY_TRUSTED_PROXIES has '.*'; allowed: addresses and networks"):
        trusted_proxies(load_settings(ltm_gateway_trusted_proxies=text))


@pytest.mark.parametrize(
    "text",
    ["*", "null", "chat.example", "https://chat.example/", "https://Chat.example", "https://*.example", "https://a b"],
)
def test_an_origin_that_no_browser_sends_is_one_line(text: str) -> None:
    """Given a wildcard, a path or no origin, I expect a start refused in words."""
    with pytest.raises(
        InvalidSetting, match=r"^LTM_GATEWAY_CORS_ORIGINS has '.*'; allowed: origins as a browser sends"
    ):
        cors_origins(load_settings(ltm_gateway_cors_origins=f"https://good.example,{text}"))


@pytest.mark.parametrize(
    "text", ["https://chat.example", "http://localhost:3000", "app://obsidian.md", "http://[::1]:80"]
)
def test_an_origin_is_taken_as_it_is(text: str) -> None:
    """Given an origin of a site, of a program on this machine or of an app, I expect it among others."""
    assert cors_origins(load_settings(ltm_gateway_cors_origins=f" {text} ,, https://b.example")) == (
        text,
        "https://b.example",
    )


def starting(**settings: Any) -> None:
    """Prepare a start with these settings, without the prefix of their names."""
    found = load_settings(**{f"ltm_gateway_{name}": value for name, value in settings.items()})
    _authentication(found, trusted_proxies(found), cors_origins(found), PendingCounts(COUNTERS))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "memory.example"])
def test_where_others_reach_it_the_gateway_does_not_start_without_keys(tmp_path: Path, host: str) -> None:
    """Given an address that others reach, and no keys or a file that is not there, I expect a refusal that says what
    to set."""
    with pytest.raises(
        CannotStart, match=f"^LTM_GATEWAY_HOST is '{host}', .* set LTM_GATEWAY_KEYS with `ltm key create`"
    ):
        starting(host=host)
    with pytest.raises(CannotStart, match=r"make the key file /.*/keys.json with `ltm key create`"):
        starting(host=host, keys=tmp_path / "keys.json", keys_optional=True)


@pytest.mark.parametrize("settings", [{}, {"trusted_proxies": "127.0.0.1"}, {"token_secret": "x" * 32}])
def test_a_key_file_that_is_set_has_to_be_there(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Given a path of keys at which there is no file, I expect no start that is open for it, but the remedy; unless
    the file is optional, as that of the data directory is."""
    settings = {**settings, "keys": tmp_path / "kyes.json"}
    with pytest.raises(InvalidSetting, match=r"kyes.json', which is not there: make it with `ltm key create`"):
        starting(**settings)
    starting(**settings, keys_optional=True)


@pytest.mark.parametrize(
    ("settings", "events"),
    [
        ({}, ["open"]),
        ({"keys": "there"}, ["keys_read"]),
        ({"host": "0.0.0.0", "keys": "there"}, ["keys_read", "unencrypted"]),
        ({"host": "0.0.0.0", "token_secret": "x" * 32}, ["unencrypted"]),
        ({"host": "0.0.0.0", "trusted_proxies": "10.0.0.0/8"}, ["proxy_authenticates"]),
        ({"host": "0.0.0.0", "trusted_proxies": "10.0.0.0/8", "keys": "there"}, ["keys_read"]),
    ],
)
def test_what_is_safe_to_start_starts(tmp_path: Path, settings: dict[str, Any], events: list[str]) -> None:
    """Given localhost, or keys, tokens or a proxy elsewhere, I expect a start, and a line of the log where
    nothing is asked, keys travel unencrypted, or only the proxy asks who it is."""
    if "keys" in settings:
        KeyFile(tmp_path / "keys.json").create("bot", ("search",))  # type: ignore[arg-type]  # a right is its name
        settings = {**settings, "keys": tmp_path / "keys.json"}
    with capture_logs() as lines:
        starting(**settings)

    assert [line["event"] for line in lines] == events


def test_a_key_file_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    """Given a directory, or a file that is broken, I expect a start refused, on localhost too."""
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(
        InvalidSetting, match=r"^LTM_GATEWAY_KEYS is '/.*/keys.json', which cannot be used: Invalid JSON"
    ):
        starting(keys=tmp_path / "keys.json")
    with pytest.raises(InvalidSetting, match="which cannot be used: it is no regular file"):
        starting(keys=tmp_path)


@pytest.mark.parametrize("host", ["203.0.113.7", "x" * 300, "a..b"])
def test_an_address_that_is_not_here_is_one_line(host: str) -> None:
    """Given an address of another machine, or a name that leads nowhere, I expect the reason and what to set."""
    with pytest.raises(CannotStart, match=r"^the gateway cannot listen on .* port 0: .*; set LTM_GATEWAY_HOST and"):
        listening_socket(host, 0)


def test_answers_on_a_connection_that_is_kept_do_not_wait_for_acknowledgements() -> None:
    """Given a connection to the gateway, I expect it to send without delay (TCP_NODELAY)."""
    with listening_socket("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_localhost_is_where_clients_look_first() -> None:
    """Given localhost, I expect 127.0.0.1, and a port chosen where it is 0."""
    with listening_socket("localhost", 0) as listener:
        host, port = listener.getsockname()

    assert host == "127.0.0.1"
    assert port > 0


@pytest.mark.parametrize("variables", [{"LTM_GATEWAY_HOST": "0.0.0.0"}, {"LTM_GATEWAY_PORT": "taken"}])
def test_the_process_says_why_it_does_not_start(variables: dict[str, str]) -> None:
    """Given no keys on every address, or a port that is taken, I expect the process to end with the exit code that no
    restart mends, and its reason as the last line of the log."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = {**os.environ, "REDIS_URL": "redis://127.0.0.1:1/0", "LTM_GATEWAY_PORT": str(port)}
        environment |= {name: value for name, value in variables.items() if value != "taken"}
        command = [sys.executable, "-m", "services.gateway"]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    line = json.loads(ended.stderr.splitlines()[-1])
    assert (ended.returncode, line["event"], line["level"]) == (EXIT_CANNOT_START, "start_refused", "critical")
    assert "says who may" in line["reason"] or f"cannot listen on 127.0.0.1 port {port}: Address" in line["reason"]


def test_requests_of_the_proxy_alone_are_taken() -> None:
    """Given trusted proxies, I expect their requests taken, with the client that they name, and any other peer refused
    and counted; but health is told to any."""
    refused: list[str] = []
    app = app_for("10.0.0.5, 172.16.0.0/12, fd00::/8", refused=refused)

    forwarded = {"x_forwarded_for": "198.51.100.9, 203.0.113.7", "x_forwarded_proto": "https"}
    assert answer(app, peer="172.20.1.1", **forwarded).json() == {"client": "203.0.113.7", "scheme": "https"}
    assert answer(app, peer="fd00::1").status_code == 200
    assert refused == []

    for peer in ("10.0.0.6", "127.0.0.1", "::1", "nonsense"):
        response = answer(app, peer=peer, x_forwarded_for="10.0.0.5")
        assert response.status_code == 403
        assert response.headers["content-type"] == "application/problem+json"
    assert len(refused) == 4
    assert answer(app, path="/healthz", peer="192.0.2.1").status_code == 200


def test_without_proxies_nothing_is_believed_of_their_headers() -> None:
    """Given no trusted proxies, I expect the peer itself, whatever a request claims, a program of this machine too."""
    config = _server(app_for(), PendingCounts(COUNTERS), NO_METRICS).config
    config.load()
    app = config.loaded_app
    seen = answer(app, peer="127.0.0.1", x_forwarded_for="203.0.113.7", x_forwarded_proto="https").json()

    assert seen == {"client": "127.0.0.1", "scheme": "http"}


def allowed(response: httpx.Response) -> dict[str, str]:
    """The headers by which a browser lets a page read a response."""
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


def test_without_origins_no_page_may_read_a_response() -> None:
    """Given LTM_GATEWAY_CORS_ORIGINS unset, I expect no header of CORS, and no answer to a preflight."""
    assert allowed(answer(app_for(), origin=PAGE)) == {}
    preflight = answer(app_for(), "OPTIONS", origin=PAGE, access_control_request_method="POST")
    assert (preflight.status_code, allowed(preflight)) == (405, {})


def test_a_named_origin_may_read_and_no_other() -> None:
    """Given a named origin, I expect its page to send keys and read responses, without credentials of the browser; a
    page of another origin, of a longer name or of none may not."""
    app = app_for(origins=PAGE)
    preflight = answer(
        app,
        "OPTIONS",
        origin=PAGE,
        access_control_request_method="PATCH",
        access_control_request_headers="authorization,if-match,idempotency-key",
    )

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers
    assert answer(app, origin=PAGE).headers["access-control-allow-origin"] == PAGE
    assert "retry-after" in answer(app, origin=PAGE).headers["access-control-expose-headers"].lower()
    for origin in (f"{PAGE}.evil", "https://evil.example", "http://chat.example", f"{PAGE}:444", "null"):
        assert "access-control-allow-origin" not in allowed(answer(app, origin=origin))
        refused = answer(app, "OPTIONS", origin=origin, access_control_request_method="POST")
        assert "access-control-allow-origin" not in allowed(refused)
