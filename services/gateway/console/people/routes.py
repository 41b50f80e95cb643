"""The route of the console that exports a user as a file."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter
from keepsake_client.errors import InvalidMessage
from starlette.requests import Request
from starlette.responses import StreamingResponse

from services.gateway.access import Right
from services.gateway.app import Gateway
from services.gateway.console.people.asked import PEOPLE, Asked
from services.gateway.console.sessions import SessionCallers
from services.gateway.console.viewer import Viewer
from services.gateway.transfer import exported

_MAX_NAME_CHARS: Final = 80


def people_routes(gateway: Gateway, callers: SessionCallers) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix=PEOPLE, include_in_schema=False)

    @router.get("/export")
    async def export(request: Request) -> StreamingResponse:
        """Everything that is kept of a user, as a file of JSON Lines."""
        viewer = Viewer.of(request, callers, gateway.settings.timezone)
        asked = Asked.read(dict(request.query_params), viewer.permit(Right.EXPORT))
        if asked is None:
            raise InvalidMessage("user: is needed")
        viewer.permit(Right.EXPORT, asked.user_id)
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(_file_name(asked.user_id))}"}
        response = await exported(gateway, asked.user_id, headers=headers)
        viewer.changed("user_export", user_id=asked.user_id)
        return response

    return router


def _file_name(user_id: str) -> str:
    """The name of a user's file: of letters and digits, as an id may have any character."""
    return re.sub(r"[^\w.-]+", "_", user_id)[:_MAX_NAME_CHARS].lstrip(".") + ".jsonl"
