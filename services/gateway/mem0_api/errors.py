"""Errors in the shape that Mem0's clients read: `detail` is what they show."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from keepsake_client.errors import KeepsakeError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from services.gateway.problems import JSONResponse, code_of, headers_of, invalid, problem_of


class NotSupported(KeepsakeError):
    """Keepsake has nothing like it; the message says what there is."""

    code = "not_supported"


async def answer_with_error(request: Request, error: Exception) -> JSONResponse:
    """The exception handler for `KeepsakeError`."""
    assert isinstance(error, KeepsakeError)  # noqa: S101  registered for no other
    problem = problem_of(error)
    body = {"detail": problem.detail, "error": problem.title, "code": problem.code}
    return JSONResponse(body, problem.status, headers_of(error))


async def answer_fault(request: Request, error: Exception) -> JSONResponse:
    """The exception handler for all other exceptions, which Starlette raises again behind it, for the log."""
    return await answer_with_error(request, KeepsakeError())


async def answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """The exception handler for what the models of bodies and parameters refuse."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  registered for no other
    return await answer_with_error(request, invalid(error.errors()))


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """The exception handler for what Starlette refuses: no such route, not this method, a body that is too large."""
    assert isinstance(error, HTTPException)  # noqa: S101  registered for no other
    detail = error.detail
    if error.status_code == 404:
        detail = "this is no route of Mem0's that Keepsake knows; docs/gateway.md has those that it knows"
    body = {"detail": detail, "error": detail, "code": code_of(error.status_code)}
    return JSONResponse(body, error.status_code, error.headers)
