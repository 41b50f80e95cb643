"""Signing in and out, and the preferences of a browser: plain pages, forms and cookies."""

from __future__ import annotations

from html import escape
from typing import Annotated, Final
from urllib.parse import quote

import structlog
from fastapi import APIRouter, Form
from keepsake_client.errors import KeepsakeError
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.gateway.app import Gateway
from services.gateway.console.guard import ROOT, SIGN_IN
from services.gateway.console.sessions import (
    COOKIE,
    LIFETIME_S,
    SessionCallers,
    Sessions,
    request_with_key,
    session_of,
)
from services.gateway.console.static_files import FILES, file_url
from services.gateway.console.texts import LANGUAGES, Texts, preferred
from services.gateway.console.viewer import CONTENTS, HIDDEN, LANGUAGE, THEME, THEMES
from services.gateway.problems import headers_of
from services.gateway.rates import RateLimited
from services.runtime.token_buckets import TokenBuckets

#: Attempts to sign in a second, of one peer; for a burst, see `TokenBuckets`.
SIGN_IN_RATE: Final = 1.0
_YEAR_S: Final = 365 * 86_400
#: The preferences that can be set, each with its cookie and the values that it may have.
_PREFERENCES: Final = {
    "language": (LANGUAGE, LANGUAGES),
    "theme": (THEME, THEMES),
    "contents": (CONTENTS, (HIDDEN, "shown")),
}

log = structlog.get_logger()


def signing(gateway: Gateway, callers: SessionCallers, sessions: Sessions) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix=ROOT, include_in_schema=False)
    attempts = TokenBuckets()

    @router.get("/sign-in")
    async def ask(request: Request, back: str = "") -> Response:
        """The page to sign in; where that is not needed, on to what is looked for."""
        try:
            callers.identify(request.scope)
        except KeepsakeError:
            return _sign_in_page(request, back, _texts(request)("session_over") if session_of(request.scope) else "")
        return RedirectResponse(_target(back), 303)

    @router.post("/sign-in")
    async def sign_in(request: Request, key: Annotated[str, Form()] = "", back: str = "") -> Response:
        key = key.strip()
        try:
            if wait_s := attempts.take(request.client.host if request.client else "", SIGN_IN_RATE):
                raise RateLimited(SIGN_IN_RATE, wait_s)
            caller = gateway.authenticator.caller(request_with_key(request.scope, key))
        except KeepsakeError as error:
            is_limited = isinstance(error, RateLimited)
            reason = _texts(request)("sign_in_limited" if is_limited else "sign_in_refused", reason=str(error))
            return _sign_in_page(request, back, reason, 429 if is_limited else 401, headers_of(error))
        sessions.end(session_of(request.scope))
        response = RedirectResponse(_target(back), 303)
        session_id, secure = sessions.begin(key), _is_secure(request)
        response.set_cookie(COOKIE, session_id, LIFETIME_S, path=ROOT, secure=secure, httponly=True, samesite="lax")
        log.info("console_signed_in", key=caller.name.partition(":")[0])
        return response

    @router.post("/sign-out")
    async def sign_out(request: Request) -> Response:
        sessions.end(session_of(request.scope))
        response = RedirectResponse(SIGN_IN, 303)
        response.delete_cookie(COOKIE, path=ROOT)
        return response

    @router.post("/preferences")
    async def prefer(request: Request, back: str = "") -> Response:
        """Set what the query names, and go back to where it was set."""
        response = RedirectResponse(_target(back), 303)
        for name, (cookie, allowed) in _PREFERENCES.items():
            if (value := request.query_params.get(name)) in allowed:
                response.set_cookie(cookie, str(value), _YEAR_S, path=ROOT, httponly=True, samesite="lax")
        return response

    return router


def _sign_in_page(
    request: Request, back: str, reason: str, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    text = _texts(request)
    values = {name: text(name) for name in ("sign_in", "sign_in_help", "key")}
    values |= {"language": text.language, "reason": reason, "back": quote(back, safe="")}
    values |= {"css": file_url("console.css"), "icon": file_url("favicon.svg")}
    shown = (FILES / "sign-in.html").read_text()
    for name, value in values.items():
        shown = shown.replace(f"{{{{{name}}}}}", escape(value))
    return HTMLResponse(shown, status, headers)


def _texts(request: Request) -> Texts:
    chosen = request.cookies.get(LANGUAGE, preferred(request.headers.get("accept-language", "")))
    return Texts("common", "zh" if chosen == "zh" else "en")


def _target(back: str) -> str:
    """Where a form leads: a page of the console, and no other place."""
    return back if back.startswith(f"{ROOT}/") else f"{ROOT}/"


def _is_secure(request: Request) -> bool:
    """Whether the browser has come by HTTPS, also to a proxy in front that the gateway is not told to trust."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
