"""Problem details (RFC 9457): errors as HTTP responses, with the codes of the wire."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from keepsake_client.errors import InvalidJSON, InvalidMessage, KeepsakeError, RequestTimeout, Unavailable
from keepsake_client.fields import in_json_terms
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

MEDIA_TYPE: Final = "application/problem+json"
#: HTTP status by error code of the wire; any other code is a failure of the server's, 500.
STATUS: Final = {
    "invalid_request": 400,
    "invalid_json": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "conflict": 409,
    "precondition_failed": 412,
    "too_large": 413,
    "unsupported_media_type": 415,
    "unprocessable": 422,
    "rate_limited": 429,
    "not_supported": 501,
    "unavailable": 503,
    "worker_outdated": 503,
    "disabled": 503,
    "timeout": 504,
    "expired": 504,
}
#: A client that stopped waiting sees the same error, wherever its deadline passed.
_AS: Final = {"timeout": "expired"}
#: The code of an error of HTTP's own, by its status.
_CODES: Final = {400: "invalid_request", 404: "not_found", 503: "unavailable"} | {
    status: code for code, status in STATUS.items() if status in (401, 403, 405, 408, 409, 412, 413, 415, 422, 429)
}
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_DATA: Final = re.compile(r"(?:(?<=^)|(?<=; ))data\.")
#: Errors of validation that one problem names, and characters of a field's name, which its sender chose.
MAX_NAMED, MAX_NAME_CHARS = 20, 100
INTERNAL: Final = "a fault of Keepsake or of a provider, which the log explains"
#: In place of the words of FastAPI and Starlette, which name no remedy.
_REMEDIES: Final = {
    "There was an error parsing the body": "the body cannot be read: send plain JSON in UTF-8, neither compressed nor"
    " nested deeper than 64 levels",
    "Not Found": "there is no such path: /openapi.json lists them, none of which ends with a slash",
    "Method Not Allowed": "this path has other methods: the header Allow lists them",
}
#: In place of the client's own words, which name the Redis and what it said.
_WORDS: Final[dict[type[KeepsakeError], str]] = {
    RequestTimeout: "no answer came within the deadline; whether a write is done is not known: repeat it",
    Unavailable: "Redis does not answer just now; whether a write is done is not known: repeat it later",
}


class Problem(BaseModel):
    """Problem details as RFC 9457 specifies them.

    Attributes:
        type: identifies the kind of problem; `urn:keepsake:error:` and the code.
        title: the code, in words.
        status: of HTTP.
        detail: what happened, and the remedy.
        code: of the wire, see docs/contract.md.
        request_id: as in the header X-Request-ID.
    """

    type: str
    title: str
    status: int
    detail: str = ""
    code: str
    request_id: str | None = None


class JSONResponse(Response):
    """JSON in ASCII, which represents every text of the wire, lone surrogates of an id included."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class ExtendedError(KeepsakeError):
    """An error with more members in its problem.

    Args:
        cause: what happened.
        extensions: the members.
    """

    def __init__(self, cause: KeepsakeError, extensions: Mapping[str, Any]) -> None:
        super().__init__(str(cause))
        self.code = cause.code
        self.cause = cause
        self.extensions = extensions


def problem_of(error: KeepsakeError, request_id: str | None = None) -> Problem:
    """The problem that an error is."""
    if isinstance(error, ExtendedError):
        error = error.cause
    code = _AS.get(error.code, error.code)
    status = STATUS.get(code, 500)
    # The wire's own name of the object that has the fields here.
    detail = INTERNAL if status == 500 else _DATA.sub("", str(error).removeprefix(f"{error.code}: "))
    for kind, words in _WORDS.items():
        if isinstance(error, kind):
            detail = words
    return _problem(code, status, detail, request_id)


def problem_response(
    problem: Problem, headers: Mapping[str, str] | None = None, extensions: Mapping[str, Any] | None = None
) -> JSONResponse:
    """The problem as a response.

    Args:
        extensions: further members of the object.
    """
    body = {**problem.model_dump(exclude_none=True), **(extensions or {})}
    return JSONResponse(body, problem.status, headers, media_type=MEDIA_TYPE)


async def refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a request with this response, and a WebSocket by closing it before it is accepted: its peer sees 403.

    uvicorn logs an error for each WebSocket that is refused with a response of its own.
    """
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await response(scope, receive, send)


async def answer_with_problem(request: Request, error: Exception) -> Response:
    """FastAPI's exception handler for `KeepsakeError`."""
    assert isinstance(error, KeepsakeError)  # noqa: S101  registered for no other
    extensions = error.extensions if isinstance(error, ExtendedError) else None
    return problem_response(problem_of(error, request_id_of(request)), headers_of(error), extensions)


def headers_of(error: KeepsakeError) -> dict[str, str]:
    """The headers of the response that an error is, in the shape of whichever API."""
    # RFC 9110, section 15.5.2: a 401 says which scheme is asked for.
    headers = {"WWW-Authenticate": "Bearer"} if error.code == "unauthorized" else {}
    if (seconds := getattr(error, "retry_after_s", None)) is not None:
        headers["Retry-After"] = str(math.ceil(seconds))
    return headers


def code_of(status: int) -> str:
    """The error code of an error of HTTP's own, in the shape of whichever API."""
    return _CODES.get(status, "internal" if status >= 500 else "invalid_request")


def internal_problem(request_id: str | None) -> Problem:
    """The problem of an error that nothing else answers; it says nothing of its cause."""
    return _problem("internal", 500, INTERNAL, request_id)


def add_problem_handlers(app: FastAPI) -> None:
    """Have every error that an application raises on purpose answered as a problem."""
    app.add_exception_handler(KeepsakeError, answer_with_problem)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http_error)


def request_id_of(request: Request) -> str | None:
    """The id of a request, as X-Request-ID has it."""
    return getattr(request.state, "request_id", None)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  registered for no other
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if isinstance(error.body, bytes) and not content_type.endswith(("/json", "+json")):
        problem = _problem("unsupported_media_type", 415, "the body is to be JSON: send Content-Type: application/json")
        return problem_response(problem.model_copy(update={"request_id": request_id_of(request)}))
    return await answer_with_problem(request, invalid(error.errors()))


def invalid(errors: Any) -> InvalidMessage:
    """What pydantic found wrong with a request, in the words of the wire; names fields, never values."""
    reasons: list[str] = []
    for found in errors[:MAX_NAMED]:
        place, *names = found["loc"] or ("",)
        if found["type"] == "json_invalid":
            return InvalidJSON(f"not JSON: {found['ctx']['error']} at character {names[0] if names else 0}")
        name = ".".join(str(part) for part in names) or str(place)
        reasons.append(f"{name[:MAX_NAME_CHARS]}: {in_json_terms(found)}")
    return InvalidMessage("; ".join(dict.fromkeys(reasons)))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  registered for no other
    detail = _REMEDIES.get(error.detail, str(error.detail))
    problem = _problem(code_of(error.status_code), error.status_code, detail, request_id_of(request))
    headers = {"Allow": ", ".join(_allowed(request))} if error.status_code == 405 else error.headers
    return problem_response(problem, headers)


def _allowed(request: Request) -> list[str]:
    """The methods of a path. Starlette names those of the first of its routes alone."""
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]


def _problem(code: str, status: int, detail: str, request_id: str | None = None) -> Problem:
    return Problem(
        type=f"urn:keepsake:error:{code}",
        title=code.replace("_", " "),
        status=status,
        detail=detail,
        code=code,
        request_id=request_id,
    )
