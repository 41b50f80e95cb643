"""ConsoleGuard: middleware that says who looks at the console, before any page or WebSocket of it is served."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import urlsplit

from keepsake_client.errors import KeepsakeError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.access import NotPermitted, Unauthorized
from services.gateway.app import Authenticator
from services.gateway.console.sessions import COOKIE, Sessions
from services.gateway.problems import problem_of, problem_response

ROOT: Final = "/console"
SIGN_IN: Final = f"{ROOT}/sign-in"
#: Served to any peer: the page to sign in, and files that are the same for all.
_PUBLIC: Final = (SIGN_IN, f"{ROOT}/static/", f"{ROOT}/preferences", f"{ROOT}/_nicegui/")
#: Pages load nothing from another host, and are in no frame. NiceGUI's pages have scripts in them, and Vue makes
#: functions of templates, which are the program's own.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self'"
    " 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; object-src 'none'; base-uri 'none'; form-action"
    " 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class ConsoleGuard:
    """ASGI middleware: a page, and the WebSocket behind it, is served to callers that are known.

    The key of a browser that has signed in is put into the header in which other clients send it, so that one
    authenticator serves all doors. Anything that another site's page sends is refused: a browser adds the cookie to it.

    Args:
        authenticator: of the gateway.
        sessions: of the browsers that have signed in.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator, sessions: Sessions) -> None:
        self._app = app
        self._authenticator = authenticator
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not _is_console(scope["path"]):
            await self._app(scope, receive, send)
            return
        response = self._refusal(scope)
        if response is None:
            await self._app(scope, receive, _with_headers(send))
        else:
            await response(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """The response to what may not look at the console; None where it may."""
        try:
            check_same_origin(scope)
            if not scope["path"].startswith(_PUBLIC):
                self._identify(scope)
        except Unauthorized as error:
            if scope["type"] == "http" and scope["method"] == "GET":
                return RedirectResponse(SIGN_IN, 303)
            return problem_response(problem_of(error))
        except KeepsakeError as error:
            return problem_response(problem_of(error))
        return None

    def _identify(self, scope: Scope) -> None:
        """Find the caller of a request, as `request.state.caller`.

        Raises:
            KeepsakeError: there is none, or it has made too many.
        """
        key = self._sessions.key(session_of(Headers(scope=scope)))
        scope["headers"] = with_key(scope["headers"], key)
        scope.setdefault("state", {})["caller"] = self._authenticator.caller(as_request(scope))


def as_request(scope: Scope) -> Request:
    """A request with the headers and the peer of a request or of a WebSocket, for an authenticator."""
    return Request({"type": "http", "headers": scope["headers"], "client": scope.get("client"), "state": {}})


def with_key(headers: list[tuple[bytes, bytes]], key: str | None) -> list[tuple[bytes, bytes]]:
    """The headers of a request with this key in place of any other; without one, with none."""
    others = [(name, value) for name, value in headers if name not in (b"authorization", b"x-api-key")]
    return others if key is None else [*others, (b"authorization", b"Bearer " + key.encode("utf-8", "replace"))]


def session_of(headers: Headers) -> str:
    """The id in the cookie of the session; "" without one."""
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if cookie is None else cookie.value


def check_same_origin(scope: Scope) -> None:
    """Check that no page of another site has sent this.

    A browser states the page's origin with every WebSocket and every POST.

    Raises:
        NotPermitted
    """
    headers = Headers(scope=scope)
    if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
        return
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host", ""):
        raise NotPermitted("no page of another site may use the console")


def _is_console(path: str) -> bool:
    return path == ROOT or path.startswith(f"{ROOT}/")


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
        await send(message)

    return send_with_headers
