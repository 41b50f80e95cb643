"""Signing in and out, and the preferences of a browser: plain pages and cookies."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Form
from keepsake_client.errors import KeepsakeError
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.gateway.app import Gateway
from services.gateway.console.guard import ROOT, SIGN_IN, session_of
from services.gateway.console.sessions import COOKIE, LIFETIME_S, Sessions
from services.gateway.console.texts import LANGUAGES, Texts, preferred
from services.gateway.console.viewer import CONTENTS, HIDDEN, LANGUAGE, THEME, THEMES

_YEAR_S: Final = 365 * 86_400
_PAGE: Final = Path(__file__).parent / "static" / "sign-in.html"
#: The preferences that can be set, each with its cookie and the values that it may have.
_PREFERENCES: Final = {
    "language": (LANGUAGE, LANGUAGES),
    "theme": (THEME, THEMES),
    "contents": (CONTENTS, (HIDDEN, "shown")),
}


def signing(gateway: Gateway, sessions: Sessions) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix=ROOT, include_in_schema=False)
    template = _PAGE.read_text()

    def page(request: Request, reason: str = "", status: int = 200) -> Response:
        language = request.cookies.get(LANGUAGE, preferred(request.headers.get("accept-language", "")))
        text = Texts("common", "zh" if language == "zh" else "en")
        values = {name: escape(text(name)) for name in ("sign_in", "sign_in_help", "key")}
        values |= {"language": text.language, "reason": escape(reason)}
        shown = template
        for name, value in values.items():
            shown = shown.replace(f"{{{{{name}}}}}", value)
        return HTMLResponse(shown, status)

    @router.get("/sign-in")
    async def ask(request: Request) -> Response:
        return page(request)

    @router.post("/sign-in")
    async def sign_in(request: Request, key: Annotated[str, Form(max_length=8_192)] = "") -> Response:
        try:
            gateway.authenticator.caller(_with_key(request, key.strip()))
        except KeepsakeError as error:
            return page(request, str(error), 401)
        response = RedirectResponse(f"{ROOT}/", 303)
        secure = request.url.scheme == "https"
        session_id = sessions.begin(key.strip())
        response.set_cookie(COOKIE, session_id, LIFETIME_S, path=ROOT, secure=secure, httponly=True, samesite="lax")
        return response

    @router.post("/sign-out")
    async def sign_out(request: Request) -> Response:
        sessions.end(session_of(request.headers))
        response = RedirectResponse(SIGN_IN, 303)
        response.delete_cookie(COOKIE, path=ROOT)
        return response

    @router.get("/preferences")
    async def prefer(request: Request, back: str = "") -> Response:
        """Set what the query names, and go back to where it was set."""
        response = RedirectResponse(back if back.startswith(f"{ROOT}/") else f"{ROOT}/", 303)
        for name, (cookie, allowed) in _PREFERENCES.items():
            if (value := request.query_params.get(name)) in allowed:
                response.set_cookie(cookie, str(value), _YEAR_S, path=ROOT, httponly=True, samesite="lax")
        return response

    return router


def _with_key(request: Request, key: str) -> Request:
    headers = [
        (name, value) for name, value in request.scope["headers"] if name not in (b"authorization", b"x-api-key")
    ]
    headers.append((b"authorization", b"Bearer " + key.encode("utf-8", "replace")))
    return Request({"type": "http", "headers": headers, "client": request.scope.get("client"), "state": {}})
