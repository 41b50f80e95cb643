"""Uploads: the bytes of a body, or of a file in a form."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Final

from fastapi import Request
from keepsake_client.errors import InvalidMessage
from starlette.datastructures import UploadFile

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
