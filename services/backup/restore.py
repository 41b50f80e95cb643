"""Restore: what a backup holds, written into an empty stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import redis

from services.backup.archive import ArchiveReader, Manifest, Part
from services.backup.redis_state import RedisState
from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.postgres.dump import Loader, check_empty, loading
from services.long_term_memory.postgres.preconditions import step_files
from services.runtime.errors import RestoreRefused
from services.runtime.redis import words
from services.runtime.settings import Settings, mask_url


class Restore:
    """One run of `ltm restore`; making it checks the whole file.

    Args:
        database_only: leaves out what Redis keeps.
        keep_schema: the schema is not migrated, for the release whose database was backed up.

    Raises:
        RestoreRefused: the file is damaged, or of a newer release.
    """

    def __init__(self, path: Path, *, database_only: bool = False, keep_schema: bool = False) -> None:
        self._reader = ArchiveReader(path, len(step_files()))
        self._database_only = database_only
        self._keep_schema = keep_schema
        self._reader.verify()

    @property
    def manifest(self) -> Manifest:
        """What the file holds."""
        return self._reader.manifest

    def run(self, settings: Settings, report: Callable[[int, int], None]) -> None:
        """Write all of it into the stack of these settings; nothing where anything fails.

        Args:
            report: called with the rows that are written, and with those that there are.

        Raises:
            RestoreRefused: the stack is not empty, its workers have another embedder, or Redis cannot be written to.
            CannotStart, Unavailable: the database cannot be used, or does not answer.
        """
        manifest, url = self.manifest, settings.database_url.get_secret_value()
        state = None if self._database_only else RedisState(settings)
        embedder = EmbedderIdentity(**manifest.embedder.model_dump()) if manifest.embedder else None
        check_empty(url)
        try:
            if state and (filled := state.filled()):
                raise RestoreRefused(
                    f"Redis is not empty, there are {filled}: restore into a new stack, or with --database-only"
                    " memories and profiles alone"
                )
            undo = _nothing
            try:
                with (
                    closing(self._reader),
                    loading(
                        url,
                        manifest.schema_version,
                        manifest.dimensions,
                        embedder,
                        settings.ltm_partitions,
                        keep_schema=self._keep_schema,
                    ) as loader,
                ):
                    self._load(loader, report)
                    # Last, and with the tables locked: what is indexed from here on waits for the end of the block.
                    if state:
                        undo = state.restore(self._lines(manifest.conversations), self._lines(manifest.events))
            except BaseException:
                undo()
                raise
        except redis.RedisError as error:
            where = mask_url(settings.redis_url.get_secret_value())
            raise RestoreRefused(
                f"{where} cannot be used ({words(error)}), and nothing was restored: --database-only restores memories"
                " and profiles alone"
            ) from error

    def _load(self, loader: Loader, report: Callable[[int, int], None]) -> None:
        tables = self.manifest.tables
        total, done = sum(part.rows for part in tables.values()), 0
        for name, part in tables.items():
            loaded = loader.load(name, part.columns, self._reader.chunks(part))
            if loaded != part.rows:
                raise RestoreRefused(f"{name} has {loaded} rows in the file, and should have {part.rows}")
            done += loaded
            report(done, total)
        loader.finish(self.manifest.sequences, keep_schema=self._keep_schema)

    def _lines(self, part: Part | None) -> Iterator[dict[str, object]]:
        return self._reader.lines(part) if part else iter(())


def _nothing() -> None:
    """Undo nothing."""
