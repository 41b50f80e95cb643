"""Backup: all that a stack keeps, written to one file while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import redis

from services.backup.archive import FORMAT, ArchiveWriter, Embedder, Manifest, Part, writing
from services.backup.redis_state import RedisState
from services.long_term_memory.postgres.dump import Snapshot, snapshot
from services.long_term_memory.postgres.tables import Table
from services.runtime.errors import BackupRefused
from services.runtime.redis import words
from services.runtime.settings import Settings, mask_url

#: Rows between two reports.
REPORT_ROWS = 500


def back_up(
    settings: Settings, path: Path, report: Callable[[int, int], None], *, database_only: bool = False
) -> Manifest:
    """Write a backup of the stack of these settings.

    Args:
        report: called with the rows that are written, and with those that there are.
        database_only: leaves out what Redis keeps.

    Raises:
        BackupRefused: there is nothing to back up, Redis cannot be read, or the file cannot be written.
        CannotStart, Unavailable: the database cannot be used, or does not answer.
    """
    state = None if database_only else RedisState(settings)
    try:
        with writing(path) as archive:
            # Events first, then the database: one that is indexed meanwhile is in both, and none in neither.
            events = archive.add_lines("events.jsonl", state.events()) if state else None
            with snapshot(settings.database_url.get_secret_value()) as stored:
                tables = _add_tables(archive, stored, report)
            # Conversations last: one that is forgotten before the snapshot is in neither.
            conversations = archive.add_lines("conversations.jsonl", state.conversations()) if state else None
            manifest = Manifest(
                format=FORMAT,
                release=version("keepsake-ltm"),
                created_at=datetime.now(UTC),
                schema_version=stored.version,
                dimensions=stored.dimensions,
                embedder=Embedder(**vars(stored.embedder)) if stored.embedder else None,
                tables=tables,
                sequences=stored.sequences,
                conversations=conversations,
                events=events,
                left_out=state.left_out() if state else {},
            )
            archive.finish(manifest)
    except redis.RedisError as error:
        where = mask_url(settings.redis_url.get_secret_value())
        raise BackupRefused(
            f"{where} cannot be read ({words(error)}): --database-only backs up memories and profiles alone"
        ) from error
    return manifest


def _add_tables(archive: ArchiveWriter, stored: Snapshot, report: Callable[[int, int], None]) -> dict[str, Part]:
    counts = {table.name: stored.count(table) for table in stored.tables}
    total, done, parts = sum(counts.values()), 0, {}
    for table in stored.tables:
        entry = f"tables/{table.name}"
        digest = archive.add(entry, _reported(stored, table, done, total, report))
        rows = counts[table.name]
        parts[table.name] = Part(entry=entry, sha256=digest, rows=rows, columns=list(table.columns))
        done += rows
        report(done, total)
    return parts


def _reported(
    stored: Snapshot, table: Table, done: int, total: int, report: Callable[[int, int], None]
) -> Iterator[bytes]:
    for row, chunk in enumerate(stored.copy(table)):  # PostgreSQL sends each row as one
        yield chunk
        if row % REPORT_ROWS == 0:
            report(min(done + row, total), total)
