"""The door of Mem0's clients: an application of its own below `/mem0`, as its errors have a shape of their own."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from keepsake_client.errors import KeepsakeError
from starlette.exceptions import HTTPException

from services.gateway.app import Gateway
from services.gateway.mem0_api import platform, refused, server
from services.gateway.mem0_api.adding import Adder
from services.gateway.mem0_api.errors import answer_fault, answer_http_error, answer_invalid, answer_with_error

PREFIX: Final = "/mem0"


def open_mem0_door(app: FastAPI, gateway: Gateway) -> None:
    """Mount the routes that Mem0's clients ask for: `MemoryClient(host="http://127.0.0.1:18380/mem0")`."""
    mem0 = FastAPI(
        title="Keepsake for Mem0's clients",
        version=version("keepsake-ltm"),
        openapi_url=None,
        redirect_slashes=False,
    )
    mem0.state = app.state  # the dependencies of routes look there
    app.state.mem0_adder = Adder(gateway)
    mem0.add_exception_handler(KeepsakeError, answer_with_error)
    mem0.add_exception_handler(RequestValidationError, answer_invalid)
    mem0.add_exception_handler(HTTPException, answer_http_error)
    mem0.add_exception_handler(Exception, answer_fault)
    for routes in (platform.router, server.router, refused.router):
        mem0.include_router(routes)
    app.mount(PREFIX, mem0)
