"""The console's door: mounts NiceGUI below `/console`."""

from __future__ import annotations

from functools import partial
from typing import Any

import nicegui
from fastapi import FastAPI
from nicegui import ui
from nicegui.middlewares import RedirectWithPrefixMiddleware, SetCacheControlMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import RedirectResponse
from starlette.staticfiles import StaticFiles

from services.gateway.app import Gateway
from services.gateway.console.guard import ROOT, ConsoleGuard
from services.gateway.console.page import ConsolePages
from services.gateway.console.pages import ask, live, people, queues, settings, turn
from services.gateway.console.people.routes import people_routes
from services.gateway.console.sessions import SessionCallers, Sessions
from services.gateway.console.signing import signing
from services.gateway.console.sockets import confine_sockets
from services.gateway.console.static_files import FILES
from services.gateway.problems import add_problem_handlers

#: How long what a page has kept for its tab stays after the page, in seconds: nothing is kept for one.
_TAB_STORAGE_S = 60.0


def add_console(app: FastAPI, gateway: Gateway) -> None:
    """Add the console, and a redirection from `/` to it."""
    sessions = Sessions()
    callers = SessionCallers(gateway.authenticator, sessions)
    app.include_router(signing(gateway, callers, sessions))
    app.include_router(people_routes(gateway, callers))
    app.mount(f"{ROOT}/static", StaticFiles(directory=FILES), name="console-static")
    app.add_api_route("/", _to_console, include_in_schema=False)
    app.add_api_route(ROOT, _to_console, include_in_schema=False)
    pages = ConsolePages(gateway, callers)
    for page in (live, turn, people, ask, queues, settings):
        page.add(pages)
    _add_nicegui(app, pages)
    app.add_middleware(ConsoleGuard, callers=callers)


def _add_nicegui(app: FastAPI, pages: ConsolePages) -> None:
    ui.run_with(
        app,
        mount_path=ROOT,
        title="Keepsake",
        favicon=FILES / "favicon.svg",
        dark=None,
        binding_refresh_interval=None,  # no page binds what changes by itself
        # The best compression takes 70 ms for one of its files, which searches would wait for.
        gzip_middleware_factory=partial(GZipMiddleware, minimum_size=1_000, compresslevel=1),
        tailwind=False,
        show_welcome_message=False,
    )
    confine_sockets()
    # Its own of these do what `ConsoleGuard` does, and a browser that leaves before a file has come is a fault to them.
    added: list[Any] = nicegui.app.user_middleware
    added[:] = [one for one in added if one.cls not in (RedirectWithPrefixMiddleware, SetCacheControlMiddleware)]
    nicegui.app.storage.max_tab_storage_age = _TAB_STORAGE_S
    # In place of its own, which log a second time, and show what an error says. Its page for what is not found would
    # make a page for each such request, also of a peer that nothing is known of.
    nicegui.app._exception_handlers[:] = [pages.report]
    nicegui.app.exception_handlers.pop(404, None)
    nicegui.app.exception_handlers.pop(Exception, None)
    add_problem_handlers(nicegui.app)


async def _to_console() -> RedirectResponse:
    return RedirectResponse(f"{ROOT}/")
