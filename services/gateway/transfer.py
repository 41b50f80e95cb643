"""Exports and imports of a user as JSON Lines, a page of records at a time: for the HTTP API and the console."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from keepsake_client.errors import InvalidMessage, KeepsakeError, MessageTooLarge, RequestFailed
from keepsake_client.fields import load_object
from keepsake_client.protocol import MAX_MESSAGE_BYTES, LTMResponse
from keepsake_client.requests import MAX_RECORDS
from starlette.responses import StreamingResponse

from services.gateway.app import Gateway
from services.gateway.problems import ExtendedError
from services.gateway.request_scope import ResponseAborted

NDJSON: Final = "application/x-ndjson"
#: Memories on a page of an export.
PAGE: Final = 100
#: How long a page of an export or import is waited for; one of 64 messages takes half a second to embed.
PAGE_TIMEOUT_MS: Final = 60_000
#: Bytes of JSON on one page: it has to fit into a message, with room for what is around it.
MAX_PAGE_BYTES: Final = 500_000
#: A larger record fits into no message.
MAX_RECORD_BYTES: Final = 1_000_000
#: Of a line, as it was sent: escapes may take more than what they stand for.
MAX_LINE_BYTES: Final = MAX_MESSAGE_BYTES
#: How the pipeline names a record of a page.
_RECORD: Final = re.compile(r"\b(?:data\.)?records\.([0-9]{1,2})\b[.:]?")

log = structlog.get_logger()


@dataclass
class RecordPage:
    """Records that one request takes, each with the number of its line."""

    records: list[dict[str, Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    size: int = 0


class ImportStopped(ExtendedError):
    """A page of an import failed; those before it are stored."""


async def exported(
    gateway: Gateway, user_id: str, deadline_ms: int = PAGE_TIMEOUT_MS, headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    """Everything that is kept of a user, as a stream of JSON Lines.

    Raises:
        KeepsakeError: the first page failed. A later one that fails closes the connection.
    """
    # Before the response begins: its error is still a problem.
    first = await gateway.ltm.user_export(user_id, limit=PAGE, deadline_ms=deadline_ms)
    return StreamingResponse(_export_lines(gateway, user_id, first, deadline_ms), media_type=NDJSON, headers=headers)


async def _export_lines(gateway: Gateway, user_id: str, page: LTMResponse, deadline_ms: int) -> AsyncIterator[bytes]:
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


async def imported(
    gateway: Gateway,
    user_id: str,
    parts: AsyncIterator[bytes],
    *,
    restore_deleted: bool = False,
    deadline_ms: int = PAGE_TIMEOUT_MS,
) -> AsyncIterator[dict[str, int]]:
    """Store the records of an export; yields the counts by then, first of nothing, and after each page.

    Args:
        parts: of the file.

    Raises:
        ImportStopped: a line is no record, or a page failed; with the counts of what is stored.
    """
    tally = {"records": 0, "count": 0, "known": 0, "deleted": 0}
    yield tally
    lines: list[int] = []
    try:
        async for page in record_pages(parts):
            lines = page.lines
            response = await gateway.ltm.user_import(
                user_id, page.records, restore_deleted=restore_deleted, deadline_ms=deadline_ms
            )
            counts = {name: tally[name] + (getattr(response, name) or 0) for name in ("count", "known", "deleted")}
            tally = {"records": tally["records"] + len(page.records), **counts}
            yield tally
    except KeepsakeError as error:
        raise ImportStopped(_by_line(error, lines), tally) from error


def _by_line(error: KeepsakeError, lines: list[int]) -> KeepsakeError:
    """An error of a page, which counts its records from 0, with the line of the record in place of its number."""
    found = _RECORD.search(str(error)) if isinstance(error, RequestFailed) else None
    if found is None or int(found[1]) >= len(lines):
        return error
    return RequestFailed(str(error).replace(found[0], f"line {lines[int(found[1])]}:", 1))


async def record_pages(parts: AsyncIterator[bytes]) -> AsyncIterator[RecordPage]:
    """The records in pages that one request takes, in order.

    Raises:
        InvalidMessage: a line is no JSON object, or too long; the pages before it were yielded.
    """
    page, number = RecordPage(), 0
    try:
        async for line in _lines(parts):
            number += 1
            if not line.strip():
                continue
            record = load_object(line)
            size = len(json.dumps(record))
            if size > MAX_RECORD_BYTES:
                raise MessageTooLarge(f"the record has {size} bytes; {MAX_RECORD_BYTES} are allowed")
            if page.records and (len(page.records) == MAX_RECORDS or page.size + size > MAX_PAGE_BYTES):
                yield page
                page = RecordPage()
            page.records.append(record)
            page.lines.append(number)
            page.size += size
    except InvalidMessage as error:
        if page.records:
            yield page
        raise type(error)(f"line {number}: {error}") from None
    if page.records:
        yield page


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a stream, without their ends; the beginning of one that is too long is the last."""
    rest = bytearray()
    async for part in parts:
        *lines, last = part.split(b"\n")
        for line in lines:
            yield bytes(rest + line)
            rest.clear()
        rest += last
        if len(rest) > MAX_LINE_BYTES:
            break
    yield bytes(rest)
