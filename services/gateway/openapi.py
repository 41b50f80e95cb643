"""The OpenAPI description: that of FastAPI, with the errors as they are answered and the way to authenticate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from services.gateway.problems import MEDIA_TYPE, Problem

SCHEME: Final = "bearer"
_DESCRIPTION: Final = (
    "A long-term memory for chat. Every error is a problem (RFC 9457) whose `code` says what is wrong. The user is"
    " `user_id`; where the key is bound to one, it may be left out. Writes take `Idempotency-Key`."
)


def openapi_of(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """What gives the description of an application; it is made once."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
            app.openapi_schema = _completed(schema)
        return app.openapi_schema

    return described


def _completed(schema: dict[str, Any]) -> dict[str, Any]:
    components = schema.setdefault("components", {})
    components["securitySchemes"] = {
        SCHEME: {"type": "http", "scheme": "bearer", "description": "A key of `ltm key create`, or a token."}
    }
    schemas = components.setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path in schema["paths"].values():
        for operation in path.values():
            operation["security"] = [{SCHEME: []}, {}]
            responses = operation["responses"]
            # FastAPI's own, of an error that is answered with 400.
            if "HTTPValidationError" in str(responses.get("422")):
                del responses["422"]
            for response in responses.values():
                if response.pop("x-problem", None):
                    response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return schema
