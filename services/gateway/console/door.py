"""The console's door: mounts NiceGUI below `/console`."""

from __future__ import annotations

from pathlib import Path

import nicegui
from fastapi import FastAPI
from nicegui import ui
from starlette.responses import RedirectResponse
from starlette.staticfiles import StaticFiles

from services.gateway.app import Gateway
from services.gateway.console.guard import ROOT, ConsoleGuard
from services.gateway.console.page import ConsolePages
from services.gateway.console.pages import ask, live, people, queues, settings, turn
from services.gateway.console.people.routes import people_routes
from services.gateway.console.sessions import Sessions
from services.gateway.console.signing import signing

_STATIC = Path(__file__).parent / "static"


def add_console(app: FastAPI, gateway: Gateway) -> None:
    """Add the console, and a redirection from `/` to it."""
    sessions = Sessions()
    app.include_router(signing(gateway, sessions))
    app.include_router(people_routes(gateway))
    app.mount(f"{ROOT}/static", StaticFiles(directory=_STATIC), name="console-static")
    app.add_api_route("/", _to_console, include_in_schema=False)
    app.add_api_route(ROOT, _to_console, include_in_schema=False)
    pages = ConsolePages(gateway)
    for page in (live, turn, people, ask, queues, settings):
        page.add(pages)
    ui.run_with(
        app,
        mount_path=ROOT,
        title="Keepsake",
        favicon=_STATIC / "favicon.svg",
        dark=None,
        binding_refresh_interval=None,  # no page binds what changes by itself
        tailwind=False,
        show_welcome_message=False,
    )
    nicegui.app.on_exception(pages.report)
    app.add_middleware(ConsoleGuard, authenticator=gateway.authenticator, sessions=sessions)


async def _to_console() -> RedirectResponse:
    return RedirectResponse(f"{ROOT}/")
