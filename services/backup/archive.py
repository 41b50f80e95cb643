"""The file of a backup: a zip archive of one entry for each table, of what Redis keeps, and a manifest.

It is written under another name and renamed once it is whole. Every entry has its SHA-256 and its number of rows in the
manifest, so a file that was damaged or cut off is recognised before anything is restored from it.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

from pydantic import BaseModel, Field, ValidationError

from services.runtime.errors import BackupRefused, RestoreRefused

#: Raised where a file could not be read by earlier releases.
FORMAT = 1
MANIFEST = "manifest.json"
CHUNK_BYTES = 1_000_000
#: zlib's fastest: half of a table is vectors, which do not shrink.
COMPRESSION = 1


class Part(BaseModel):
    """One entry of the archive.

    Args:
        entry: its name in the archive.
        sha256: of its content.
        rows: how many rows, conversations or events it has.
        columns: those of a table, in their order.
    """

    entry: str
    sha256: str
    rows: int
    columns: list[str] = Field(default_factory=list)


class Embedder(BaseModel):
    """The embedder of the stored vectors, as the database has it recorded."""

    provider: str
    model: str
    dimensions: int
    projection: str


class Manifest(BaseModel):
    """What a backup holds.

    Args:
        format: the version of the file's layout.
        release: the version of Keepsake that wrote it.
        schema_version: the last migration of the database.
        tables: by name, in the order in which they are restored.
        sequences: the last values of sequences, by table and column.
        conversations, events: what Redis kept; None where the database alone was backed up.
        left_out: numbers of what waited elsewhere, and is not in the file, by what it is.
    """

    format: int
    release: str
    created_at: datetime
    schema_version: int
    dimensions: int
    embedder: Embedder | None
    tables: dict[str, Part]
    sequences: dict[str, dict[str, int]]
    conversations: Part | None = None
    events: Part | None = None
    left_out: dict[str, int] = Field(default_factory=dict)

    def parts(self) -> Iterator[Part]:
        """All entries."""
        yield from self.tables.values()
        yield from (part for part in (self.conversations, self.events) if part)


class ArchiveWriter:
    """Writes the entries of a backup."""

    def __init__(self, archive: ZipFile) -> None:
        self._archive = archive

    def add(self, entry: str, chunks: Iterable[bytes]) -> str:
        """Write an entry; its SHA-256."""
        digest, buffer = sha256(), bytearray()
        with self._archive.open(entry, "w", force_zip64=True) as file:
            for chunk in chunks:
                buffer += chunk
                if len(buffer) >= CHUNK_BYTES:
                    digest.update(buffer)
                    file.write(buffer)
                    buffer.clear()
            digest.update(buffer)
            file.write(buffer)
        return digest.hexdigest()

    def add_lines(self, entry: str, values: Iterable[Mapping[str, Any]]) -> Part:
        """Write an entry of JSON Lines."""
        rows = 0

        def lines() -> Iterator[bytes]:
            nonlocal rows
            for rows, value in enumerate(values, start=1):  # noqa: B007 - counted
                yield json.dumps(value).encode() + b"\n"

        digest = self.add(entry, lines())
        return Part(entry=entry, sha256=digest, rows=rows)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, as the last entry."""
        self._archive.writestr(MANIFEST, manifest.model_dump_json(indent=1))


@contextmanager
def writing(path: Path) -> Iterator[ArchiveWriter]:
    """A new backup, which gets its name at the end of the block, readable by its owner alone.

    Raises:
        BackupRefused: there is such a file already, or it cannot be written.
    """
    check_absent(path)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.", suffix=".partial")  # 0600
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            with ZipFile(file, "w", ZIP_DEFLATED, compresslevel=COMPRESSION) as archive:
                yield ArchiveWriter(archive)
            file.flush()
            os.fsync(file.fileno())
        check_absent(path)
        temporary.rename(path)
    except OSError as error:
        raise BackupRefused(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def check_absent(path: Path) -> None:
    """Check that a backup does not overwrite anything.

    Raises:
        BackupRefused: there is such a file.
    """
    if path.exists():
        raise BackupRefused(f"{path} is there already: give another name, or remove it")


class ArchiveReader:
    """Reads a backup.

    Args:
        path: its file.
        schema_version: the newest that this release knows.

    Raises:
        RestoreRefused: it is no backup, cut off, or of a newer release.
    """

    def __init__(self, path: Path, schema_version: int) -> None:
        self._path = path
        with self._errors():
            self._archive = ZipFile(path)
            self.manifest = self._manifest(schema_version)

    def verify(self) -> None:
        """Read every entry and compare its digest.

        Raises:
            RestoreRefused: the file is damaged.
        """
        for part in self.manifest.parts():
            digest = sha256()
            for chunk in self.chunks(part):
                digest.update(chunk)
            if digest.hexdigest() != part.sha256:
                raise self._damaged(f"{part.entry} has another checksum")

    def chunks(self, part: Part) -> Iterator[bytes]:
        """The content of an entry."""
        with self._errors(), self._archive.open(part.entry) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def lines(self, part: Part) -> Iterator[dict[str, Any]]:
        """The values of an entry of JSON Lines."""
        with self._errors(), self._archive.open(part.entry) as file:
            yield from map(json.loads, file)

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def _manifest(self, schema_version: int) -> Manifest:
        raw = json.loads(self._archive.read(MANIFEST))
        newer = raw.get("format", 0) > FORMAT or raw.get("schema_version", 0) > schema_version
        if newer:
            raise RestoreRefused(
                f"{self._path} was written by release {raw.get('release')} of Keepsake, which is newer than this one:"
                " restore it with that release or a later one"
            )
        return Manifest.model_validate(raw)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (BadZipFile, zlib.error, EOFError, KeyError, ValidationError, UnicodeDecodeError) as error:
            raise self._damaged("it is not whole, or no backup of Keepsake") from error
        except json.JSONDecodeError as error:
            raise self._damaged("its manifest cannot be read") from error
        except OSError as error:
            raise RestoreRefused(f"{self._path} cannot be read: {error.strerror or error}") from None

    def _damaged(self, reason: str) -> RestoreRefused:
        return RestoreRefused(f"{self._path} cannot be restored: {reason}")
