"""Errors of the proxy, in the shape that OpenAI's clients understand."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from keepsake_client.errors import KeepsakeError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from services.gateway.problems import STATUS, code_of, headers_of

#: HTTP status by error code; any other code is a failure of the server's, 500.
_STATUS: Final = {**STATUS, "upstream_unavailable": 502, "upstream_timeout": 504, "loop_detected": 508}
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class UpstreamUnavailable(KeepsakeError):
    """The server of CHAT_BASE_URL cannot be reached, or ended the connection before it answered."""

    code = "upstream_unavailable"


class UpstreamTimeout(KeepsakeError):
    """The server of CHAT_BASE_URL did not answer in time."""

    code = "upstream_timeout"


class LoopDetected(KeepsakeError):
    """The request has passed through this proxy before: CHAT_BASE_URL leads back to it."""

    code = "loop_detected"


class UnknownPath(KeepsakeError):
    """The proxy has no such route."""

    code = "not_found"


class OpenAIRoute(APIRoute):
    """A route whose errors have the shape that OpenAI's clients understand."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, around which errors are answered."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except KeepsakeError as error:
                return error_response(error)
            except HTTPException as error:  # of a body that is too large, or does not come
                return _response(error.status_code, error.detail, code_of(error.status_code), error.headers)

        return answer


def error_response(error: KeepsakeError) -> JSONResponse:
    """The error as OpenAI's API writes its own."""
    return _response(_STATUS.get(error.code, 500), str(error), error.code, headers_of(error))


def _response(status: int, message: str, code: str, headers: Mapping[str, str] | None) -> JSONResponse:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)
