"""ConsoleGuard: middleware that says who looks at the console, before any page or WebSocket of it is served."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

from keepsake_client.errors import KeepsakeError
from nicegui import Client
from nicegui.version import __version__ as nicegui_version
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.access import Caller, NotPermitted, Unauthorized
from services.gateway.console.sessions import SessionCallers
from services.gateway.problems import headers_of, problem_of, problem_response, refuse

ROOT: Final = "/console"
SIGN_IN: Final = f"{ROOT}/sign-in"
STATIC: Final = f"{ROOT}/static/"
#: The cookie in which a browser states its time zone; static/console.js sets it.
ZONE: Final = "keepsake_zone"
#: NiceGUI's own files, which are the same for all, and the WebSockets of its pages.
LIBRARY: Final = f"{ROOT}/_nicegui/{nicegui_version}/"
SOCKETS: Final = f"{ROOT}/_nicegui_ws/"
#: Served to any peer: the page to sign in, and files that are the same for all.
_PUBLIC: Final = (SIGN_IN, STATIC, LIBRARY)
#: What a page of NiceGUI's offers below its own id, such as an upload.
_OF_PAGE: Final = re.compile(rf"{ROOT}/_nicegui/client/([^/]+)/.*")
_CACHED: Final = "public, max-age=31536000, immutable"
#: Pages load nothing from another host and are in no frame. `document.py` adds to those of a page.
CONTENT_POLICY: Final = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; object-src"
    " 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
#: Of a WebSocket: closed because its caller may not use it any more.
_POLICY_VIOLATION: Final = 1008


class ConsoleGuard:
    """ASGI middleware: a page, and the WebSocket behind it, is served to callers that are known.

    A page belongs to the caller that has opened it: no other one connects to it. A WebSocket is closed before the first
    message after its key was revoked or its session has ended. Anything that another site's page sends is refused.

    Args:
        callers: finds the caller of a request by its session.
    """

    def __init__(self, app: ASGIApp, callers: SessionCallers) -> None:
        self._app = app
        self._callers = callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not _is_console(scope["path"]):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http":
            send = _with_headers(scope, send)
        # NiceGUI would put it before every URL of a page.
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"x-forwarded-prefix"]
        refusal = self._refusal(scope)
        if refusal is not None:
            await refuse(refusal, scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        """The response to what may not look at the console; None where it may."""
        try:
            check_same_origin(scope)
            if not scope["path"].startswith(_PUBLIC):
                caller = scope.setdefault("state", {})["caller"] = self._callers.caller(scope)
                _check_page(scope, caller)
        except Unauthorized as error:
            if scope["type"] == "http" and scope["method"] == "GET":
                return RedirectResponse(f"{SIGN_IN}?back={quote(_url_of(scope), safe='')}", 303)
            return problem_response(problem_of(error))
        except KeepsakeError as error:
            return problem_response(problem_of(error), headers_of(error))
        return None

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a WebSocket while its caller is what it was at the beginning."""
        is_open = True

        async def receive_checked() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and not self._is_still(scope):
                return {"type": "websocket.disconnect", "code": _POLICY_VIOLATION}
            return message

        async def send_checked(message: Message) -> None:
            nonlocal is_open
            if is_open and message["type"] == "websocket.send" and not self._is_still(scope):
                message = {"type": "websocket.close", "code": _POLICY_VIOLATION}
            if is_open:
                is_open = message["type"] != "websocket.close"
                await send(message)

        await self._app(scope, receive_checked, send_checked)

    def _is_still(self, scope: Scope) -> bool:
        try:
            return bool(self._callers.identify(scope) == scope["state"]["caller"])
        except KeepsakeError:
            return False


def check_same_origin(scope: Scope) -> None:
    """Check that no page of another site has sent this.

    A browser states the page's origin with every WebSocket, every POST, and what a script fetches from another site.

    Raises:
        NotPermitted
    """
    headers = Headers(scope=scope)
    for origin in headers.getlist("origin"):
        if _place_of(origin) != headers.get("host", ""):
            raise NotPermitted(
                "no page of another site may use the console; a proxy in front is to pass on the header Host"
                " as the browser sent it"
            )


def _check_page(scope: Scope, caller: Caller) -> None:
    """Check that what a WebSocket or an upload is for is a page of the same caller; note the browser's time zone.

    Raises:
        NotPermitted
    """
    is_socket = scope["path"].startswith(SOCKETS)
    found = _OF_PAGE.fullmatch(scope["path"])
    if not is_socket and found is None:
        return
    if is_socket and scope["type"] != "websocket":
        raise NotPermitted("pages of the console are connected by WebSocket: a proxy in front is to pass it on")
    page_id = found[1] if found else parse_qs(scope["query_string"].decode("latin-1")).get("client_id", [""])[0]
    page = Client.instances.get(page_id)
    if page is None:
        if is_socket and page_id:
            return  # of before a restart: NiceGUI has the browser load it again
        raise NotPermitted("there is no such page")
    state = page.request.scope["state"]
    if state["caller"] != caller:
        raise NotPermitted("this page is of another caller")
    if is_socket:
        state["zone"] = HTTPConnection(scope).cookies.get(ZONE, "")


def _place_of(origin: str) -> str:
    """The host and port of an origin; None has an empty one."""
    try:
        return urlsplit(origin).netloc or "none"
    except ValueError:
        return "none"


def _url_of(scope: Scope) -> str:
    """The path and query of a request."""
    query = scope["query_string"].decode("latin-1")
    return str(scope["path"]) + (f"?{query}" if query else "")


def _is_console(path: str) -> bool:
    return path == ROOT or path.startswith(f"{ROOT}/")


def _with_headers(scope: Scope, send: Send) -> Send:
    # Files whose URL says their version.
    is_cached = scope["path"].startswith(LIBRARY) or (scope["path"].startswith(STATIC) and scope["query_string"])

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if is_cached and message["status"] == 200:
                headers["Cache-Control"] = _CACHED
        await send(message)

    return send_with_headers
