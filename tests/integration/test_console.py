"""The console of a real gateway process with keys, over real WebSockets, as NiceGUI's pages open them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from services.gateway.access import ALL_RIGHTS
from services.gateway.key_file import KeyFile
from tests.integration.service_process import ServiceProcess, running
from tests.support import PATIENCE_S, free_port, wait_until


@dataclass
class Console:
    """A gateway process with a console, and its keys.

    Args:
        directory: where the process runs.
    """

    process: ServiceProcess
    keys: KeyFile
    origin: str
    directory: Path

    @contextmanager
    def browser(self, name: str) -> Iterator[Browser]:
        """A browser that has signed in with a new key of this name."""
        key = self.keys.create(name, sorted(ALL_RIGHTS))
        with httpx.Client(base_url=self.origin) as http:
            wait_until(lambda: http.post("/console/sign-in", data={"key": key}).status_code == 303)
            yield Browser(self.origin, http)


class Browser:
    """A browser with a session."""

    def __init__(self, origin: str, http: httpx.Client) -> None:
        self.http = http
        self._origin = origin

    def page(self) -> str:
        """The id of a new page."""
        response = self.http.get("/console/queues")
        found = re.search(r"'client_id': '([0-9a-f-]+)'", response.text)
        assert found, response.text
        return found[1]

    @contextmanager
    def connect(self, page: str, origin: str | None = None) -> Iterator[ClientConnection]:
        """The WebSocket of a page, as Socket.IO begins it.

        Raises:
            InvalidStatus: it is refused.
        """
        asked = {"client_id": page, "next_message_id": 0, "implicit_handshake": "true", "EIO": 4}
        asked |= {"document_id": "document", "tab_id": "tab", "old_tab_id": "null", "transport": "websocket"}
        cookies = "; ".join(f"{name}={value}" for name, value in self.http.cookies.items())
        with connect(
            f"{self._origin.replace('http', 'ws', 1)}/console/_nicegui_ws/socket.io/?{urlencode(asked)}",
            origin=Origin(origin or self._origin),
            additional_headers={"Cookie": cookies},
        ) as socket:
            assert str(socket.recv(PATIENCE_S)).startswith("0{")
            socket.send("40")
            assert str(socket.recv(PATIENCE_S)).startswith("40{")
            yield socket


@pytest.fixture(scope="module")
def console(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A gateway with a console."""
    directory, port = tmp_path_factory.mktemp("console"), free_port()
    keys = KeyFile(directory / "keys.json")
    keys.create("first", sorted(ALL_RIGHTS))
    settings = {"LTM_GATEWAY_PORT": str(port), "LTM_GATEWAY_KEYS": str(keys.path)}
    settings |= {"NICEGUI_STORAGE_PATH": str(directory / "storage")}
    with running("services.gateway", "gateway", valkey_url, directory / "log", **settings) as process:
        yield Console(process, keys, f"http://127.0.0.1:{port}", directory)


def closed_with(socket: ClientConnection) -> int | None:
    """The code with which the server closes a WebSocket, as far as it is still open."""
    try:
        while True:
            if socket.recv(PATIENCE_S) == "2":
                socket.send("3")  # Engine.IO's ping and pong
    except ConnectionClosed as error:
        return error.rcvd.code if error.rcvd else None


def test_a_page_is_connected_by_its_own_browser_alone(console: Console) -> None:
    """Given a page of one caller, I expect no WebSocket to it from another site, nor with another key."""
    with console.browser("anna") as anna, console.browser("ben") as ben:
        page = anna.page()
        for browser, origin in ((anna, "http://evil.example"), (anna, "null"), (ben, None)):
            with pytest.raises(InvalidStatus) as refused, browser.connect(page, origin):
                pass
            assert refused.value.response.status_code == 403
        with anna.connect(page) as socket:
            assert socket.close_code is None


def test_an_open_page_ends_with_its_key(console: Console) -> None:
    """Given a page that is open while its key is revoked, I expect its WebSocket closed, and no further page."""
    with console.browser("carol") as carol:
        with carol.connect(carol.page()) as socket:
            console.keys.revoke("carol")
            assert closed_with(socket) == 1008
        assert carol.http.get("/console/queues").headers["location"].startswith("/console/sign-in")


def test_an_open_page_ends_when_its_browser_signs_out(console: Console) -> None:
    """Given two pages of a browser, of which one signs out, I expect the other one's WebSocket closed."""
    with console.browser("dave") as dave, dave.connect(dave.page()) as socket:
        dave.http.post("/console/sign-out")
        assert closed_with(socket) == 1008


def test_the_gateway_stops_in_time_while_a_page_is_open_and_has_written_nothing(console: Console) -> None:
    """Given an open page, I expect the process to end by itself, with no file of NiceGUI's and no fault logged."""
    with console.browser("erin") as erin, erin.connect(erin.page()) as socket:
        assert console.process.stop() == 0
        assert closed_with(socket) == 1012
    assert not (console.directory / "storage").exists()
    faults = [line for line in console.process.log().splitlines() if "Traceback" in line or '"error"' in line]
    assert faults == []
