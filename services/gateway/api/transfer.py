"""`/v1/users/export` and `/v1/users/import`: everything that is kept of a user, as JSON Lines."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from keepsake_client.fields import Switch
from pydantic import Field
from starlette.responses import StreamingResponse

from services.gateway.access import Right
from services.gateway.api.models import Imported
from services.gateway.api.uploads import Upload, upload_of
from services.gateway.api.wire import OfUser, OfUserQuery, problems, with_example
from services.gateway.app import CallerOf, GatewayOf
from services.gateway.idempotency import AnotherRequest, IdempotencyKey, attempt
from services.gateway.problems import JSONResponse
from services.gateway.transfer import NDJSON, PAGE_TIMEOUT_MS, exported, imported

router = APIRouter(tags=["users"])

_LINE = '{"kind": "memory", "content": "My cat is called Mochi.", "source": "user", "timestamp": 1712345678}\n'
_EXAMPLE = {"records": 120, "count": 118, "known": 2, "deleted": 0}
_UPLOAD_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            NDJSON: {"schema": {"type": "string"}, "example": _LINE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                }
            },
        },
    }
}


class ImportQuery(OfUser):
    """Parameters of an import: the user whose the records become, and whether deleted ones are restored."""

    restore_deleted: Annotated[Switch, Field(description="Also what was deleted since.")] = False


@router.get(
    "/users/export",
    response_class=StreamingResponse,
    responses={
        **problems(),
        200: {
            "description": "One record a line. A connection that is closed before the end leaves an incomplete file.",
            "content": {NDJSON: {"schema": {"type": "string"}, "example": _LINE}},
        },
    },
)
async def export(caller: CallerOf, gateway: GatewayOf, query: OfUserQuery) -> StreamingResponse:
    """Everything that is kept of a user, as a stream of JSON Lines, which an import reads again."""
    caller.check(Right.EXPORT)
    caller.agent_of(None, all_agents=True)
    user_id, deadline_ms = caller.user_of(query.user_id), query.deadline_ms or PAGE_TIMEOUT_MS
    return await exported(gateway, user_id, deadline_ms)


@router.post(
    "/users/import",
    response_model=Imported,
    openapi_extra=_UPLOAD_BODY,
    responses={**problems(body=True, idempotent=True), **with_example(200, _EXAMPLE, "What became of the records.")},
)
async def import_records(
    request: Request,
    caller: CallerOf,
    gateway: GatewayOf,
    query: Annotated[ImportQuery, Query()],
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Store the records of an export: as the body, or as the file of a form. Read as a stream; idempotent.

    A record that is none, or a page that fails, ends it: the problem has the counts of what is stored by then, and the
    same upload goes on from there.
    """
    caller.check(Right.IMPORT)
    caller.agent_of(None, all_agents=True)
    user_id, deadline_ms = caller.user_of(query.user_id), query.deadline_ms or PAGE_TIMEOUT_MS
    subject = {"restore_deleted": query.restore_deleted}
    async with (
        upload_of(request) as upload,
        attempt(request, gateway.redis, caller, key, subject, user_id, deadline_ms) as this,
    ):
        if this.done is not None:
            return JSONResponse(await _repeated(upload, this.done))
        pages = imported(gateway, user_id, upload.parts, restore_deleted=query.restore_deleted, deadline_ms=deadline_ms)
        tally: dict[str, int] = {}
        async for counted in pages:
            tally = counted
            await this.extend()
        await this.complete({**tally, "digest": upload.digest()})
    return JSONResponse(tally)


async def _repeated(upload: Upload, done: dict[str, Any]) -> dict[str, Any]:
    """The answer that the same upload had before.

    Raises:
        AnotherRequest: it is another one.
    """
    async for _ in upload.parts:  # read to its end
        pass
    if done.pop("digest") != upload.digest():
        raise AnotherRequest("this Idempotency-Key was used for another upload: a new one needs a new key")
    return done
