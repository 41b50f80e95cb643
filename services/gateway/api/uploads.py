"""Uploads: the records of a body or of a file in a form, a page at a time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any, Final

from fastapi import Request
from keepsake_client.errors import InvalidMessage, MessageTooLarge
from keepsake_client.fields import load_object
from keepsake_client.protocol import MAX_MESSAGE_BYTES
from keepsake_client.requests import MAX_RECORDS
from starlette.datastructures import UploadFile

#: Bytes of JSON on one page: it has to fit into a message, with room for what is around it.
MAX_PAGE_BYTES: Final = 500_000
#: A larger record fits into no message.
MAX_RECORD_BYTES: Final = 1_000_000
#: Of a line, as it was sent: escapes may take more than what they stand for.
MAX_LINE_BYTES: Final = MAX_MESSAGE_BYTES
_PART_BYTES: Final = 65_536


class Upload:
    """The bytes of an upload, hashed while they are read."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._hash = blake2b(digest_size=16)
        self.parts = self._hashed(parts)

    def digest(self) -> str:
        """A hash of what was read."""
        return self._hash.hexdigest()

    async def _hashed(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in parts:
            self._hash.update(part)
            yield part


@asynccontextmanager
async def upload_of(request: Request) -> AsyncIterator[Upload]:
    """The upload in a request. Of a form, it is the first file, which Starlette keeps on the disk, not in memory.

    Raises:
        InvalidMessage: the form has no file.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        yield Upload(request.stream())
        return
    async with request.form(max_files=1, max_fields=0) as form:
        file = next((value for value in form.values() if isinstance(value, UploadFile)), None)
        if file is None:
            raise InvalidMessage("the form has no file: send one, or the records as application/x-ndjson")
        yield Upload(_parts(file))


async def _parts(file: UploadFile) -> AsyncIterator[bytes]:
    while part := await file.read(_PART_BYTES):
        yield part


async def pages(upload: Upload) -> AsyncIterator[list[dict[str, Any]]]:
    """The records in pages that one request takes, in order.

    Raises:
        InvalidMessage: a line is no JSON object, or too long; the pages before it were yielded.
    """
    page: list[dict[str, Any]] = []
    page_bytes = number = 0
    try:
        async for line in _lines(upload.parts):
            number += 1
            if not line.strip():
                continue
            record = load_object(line)
            size = len(json.dumps(record))
            if size > MAX_RECORD_BYTES:
                raise MessageTooLarge(f"the record has {size} bytes; {MAX_RECORD_BYTES} are allowed")
            if page and (len(page) == MAX_RECORDS or page_bytes + size > MAX_PAGE_BYTES):
                yield page
                page, page_bytes = [], 0
            page.append(record)
            page_bytes += size
    except InvalidMessage as error:
        if page:
            yield page
        raise type(error)(f"line {number}: {error}") from None
    if page:
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
