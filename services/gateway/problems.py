"""Problem details (RFC 9457): errors as HTTP responses, with the codes of the wire."""

from __future__ import annotations

from typing import Any, Final

from keepsake_client.errors import KeepsakeError
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

MEDIA_TYPE: Final = "application/problem+json"
#: HTTP status by error code of the wire; any other code is a failure of the server's, 500.
STATUS: Final = {
    "invalid_request": 400,
    "invalid_json": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "precondition_failed": 412,
    "too_large": 413,
    "unprocessable": 422,
    "rate_limited": 429,
    "not_supported": 501,
    "unavailable": 503,
    "disabled": 503,
    "timeout": 504,
    "expired": 504,
}
#: A client that stopped waiting sees the same error, wherever its deadline passed.
_AS: Final = {"timeout": "expired"}


class Problem(BaseModel):
    """Problem details as RFC 9457 specifies them.

    Attributes:
        type: identifies the kind of problem; `urn:keepsake:error:` and the code.
        title: the code, in words.
        status: of HTTP.
        detail: what happened, and the remedy; may quote what the caller sent.
        code: of the wire, see docs/contract.md.
        request_id: as in the header X-Request-ID.
    """

    type: str
    title: str
    status: int
    detail: str = ""
    code: str
    request_id: str | None = Field(default=None)


def problem_of(error: KeepsakeError, request_id: str | None = None) -> Problem:
    """The problem that an error is."""
    code = _AS.get(error.code, error.code)
    return Problem(
        type=f"urn:keepsake:error:{code}",
        title=code.replace("_", " "),
        status=STATUS.get(code, 500),
        detail=str(error).removeprefix(f"{error.code}: "),
        code=code,
        request_id=request_id,
    )


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """The problem as a response."""
    body: dict[str, Any] = problem.model_dump(exclude_none=True)
    return JSONResponse(body, problem.status, headers, media_type=MEDIA_TYPE)


async def answer_with_problem(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's exception handler for `KeepsakeError`."""
    assert isinstance(error, KeepsakeError)  # noqa: S101  registered for no other
    return problem_response(problem_of(error, getattr(request.state, "request_id", None)))
