"""`/v1/users/export` and `/v1/users/import`: everything that is kept of a user, as JSON Lines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import structlog
from fastapi import APIRouter, Query, Request
from keepsake_client.errors import KeepsakeError, RequestFailed
from keepsake_client.fields import Switch
from keepsake_client.protocol import LTMResponse
from pydantic import Field
from starlette.responses import StreamingResponse

from services.gateway.access import Right
from services.gateway.api.models import Imported
from services.gateway.api.uploads import Upload, pages, upload_of
from services.gateway.api.wire import OfUser, OfUserQuery, problems, with_example
from services.gateway.app import CallerOf, Gateway, GatewayOf
from services.gateway.idempotency import AnotherRequest, Attempt, IdempotencyKey, attempt
from services.gateway.problems import ExtendedError, JSONResponse
from services.gateway.request_scope import ResponseAborted

router = APIRouter(tags=["users"])

NDJSON: Final = "application/x-ndjson"
#: Memories on a page of an export.
PAGE: Final = 100
#: How long a page of an export or import is waited for; one of 64 messages takes half a second to embed.
PAGE_TIMEOUT_MS: Final = 60_000
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

log = structlog.get_logger()


class ImportQuery(OfUser):
    """Parameters of an import: the user whose the records become, and whether deleted ones are restored."""

    restore_deleted: Annotated[Switch, Field(description="Also what was deleted since.")] = False


class ImportStopped(ExtendedError):
    """A page of an import failed; those before it are stored."""


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
    # Before the response begins: its error is still a problem.
    first = await gateway.ltm.user_export(user_id, limit=PAGE, deadline_ms=deadline_ms)
    return StreamingResponse(_lines(gateway, user_id, first, deadline_ms), media_type=NDJSON)


async def _lines(gateway: Gateway, user_id: str, page: LTMResponse, deadline_ms: int) -> AsyncIterator[bytes]:
    """The records a page at a time: the next one is asked for when the client has taken the one before.

    Raises:
        ResponseAborted: a page failed.
    """
    while True:
        yield b"".join(json.dumps(record).encode() + b"\n" for record in page.records or [])
        if page.next_cursor is None:
            return
        try:
            page = await gateway.ltm.user_export(user_id, limit=PAGE, cursor=page.next_cursor, deadline_ms=deadline_ms)
        except KeepsakeError as error:
            log.warning("export_aborted", user_id=user_id, code=error.code)
            gateway.counts.count("exports_aborted")
            raise ResponseAborted from error


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
        tally = await _store(gateway, upload, user_id, query, deadline_ms, this)
        await this.complete({**tally, "digest": upload.digest()})
    return JSONResponse(tally)


async def _store(
    gateway: Gateway, upload: Upload, user_id: str, query: ImportQuery, deadline_ms: int, this: Attempt
) -> dict[str, int]:
    tally = {"records": 0, "count": 0, "known": 0, "deleted": 0}
    try:
        async for page in pages(upload):
            response = await gateway.ltm.user_import(
                user_id, page, restore_deleted=query.restore_deleted, deadline_ms=deadline_ms
            )
            tally["records"] += len(page)
            for name in ("count", "known", "deleted"):
                tally[name] += getattr(response, name) or 0
            await this.extend()
    except KeepsakeError as error:
        raise ImportStopped(_named(error, tally["records"]), tally) from error
    return tally


def _named(error: KeepsakeError, stored: int) -> KeepsakeError:
    """An error of a page, whose records the pipeline counts from 0, with the number of records before it."""
    if isinstance(error, RequestFailed) and stored:
        return RequestFailed(f"{error} (counted from record {stored})")
    return error


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
