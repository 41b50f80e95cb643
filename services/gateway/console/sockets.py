"""Events of NiceGUI's WebSockets: each is taken for the page of its own WebSocket alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from nicegui import core, nicegui

#: Private names of NiceGUI's, which pyproject.toml therefore bounds; tests/integration/test_console.py pins them.
_HANDLERS: Final[dict[str, Callable[[str, dict[str, Any]], None]]] = {
    "event": nicegui._on_event,
    "javascript_response": nicegui._on_javascript_response,
    "ack": nicegui._on_ack,
}


def confine_sockets() -> None:
    """Have an event from a WebSocket of another page ignored: NiceGUI takes the page's id from the event alone.

    What a page sends for the log is ignored, too: anything may be in it. And the libraries of the WebSockets log as
    everything else does, in place of lines of their own.
    """
    for event, handler in _HANDLERS.items():
        core.sio.on(event, _of_own_page(handler))
    core.sio.on("log", _ignore)
    for name in ("socketio.server", "engineio.server"):
        logging.getLogger(name).handlers.clear()


def _of_own_page(handler: Callable[[str, dict[str, Any]], None]) -> Callable[[str, Any], None]:
    def handle(socket_id: str, message: Any) -> None:
        if isinstance(message, dict) and message.get("client_id") in core.sio.rooms(socket_id):
            handler(socket_id, message)

    return handle


def _ignore(_: str, __: Any) -> None:
    pass
