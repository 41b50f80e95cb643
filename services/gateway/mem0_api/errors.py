"""Errors in the shape that Mem0's clients read: `detail` is what they show."""

from __future__ import annotations

import json
from typing import Any

from fastapi.exceptions import RequestValidationError
from keepsake_client.errors import InvalidMessage, KeepsakeError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from services.gateway.problems import problem_of


class NotSupported(KeepsakeError):
    """Keepsake has nothing like it; the message says what there is."""

    code = "not_supported"


class AsciiJSON(JSONResponse):
    """JSON in ASCII, as on the wire: ids may hold lone surrogates, which UTF-8 cannot represent."""

    def render(self, content: Any) -> bytes:
        """The bytes of the body."""
        return json.dumps(content, separators=(",", ":")).encode()


def error_response(error: KeepsakeError) -> AsciiJSON:
    """An error as a response; of one that goes over soon, with the seconds to wait, which Mem0's clients read."""
    problem = problem_of(error)
    headers = {"WWW-Authenticate": "Token"} if problem.status == 401 else {}
    return AsciiJSON({"detail": problem.detail, "error": problem.title, "code": problem.code}, problem.status, headers)


async def answer_with_error(request: Request, error: Exception) -> AsciiJSON:
    """The exception handler for `KeepsakeError`."""
    assert isinstance(error, KeepsakeError)  # noqa: S101  registered for no other
    return error_response(error)


async def answer_invalid(request: Request, error: Exception) -> AsciiJSON:
    """The exception handler for what the models of bodies and parameters refuse: names fields, never values."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  registered for no other
    reasons = (f"{'.'.join(str(part) for part in each['loc'][1:]) or 'body'}: {each['msg']}" for each in error.errors())
    return error_response(InvalidMessage("; ".join(dict.fromkeys(reasons))))


async def answer_http_error(request: Request, error: Exception) -> AsciiJSON:
    """The exception handler for what Starlette refuses: no such route, not this method, no JSON."""
    assert isinstance(error, HTTPException)  # noqa: S101  registered for no other
    detail = error.detail
    if error.status_code == 404:
        detail = f"{request.method} {request.url.path} is no route of Mem0's that Keepsake knows: see docs/gateway.md"
    return AsciiJSON({"detail": detail, "error": detail}, error.status_code, dict(error.headers or {}))
