"""Keepsake's own export: JSON Lines of records, as `ltm export` writes them."""

from __future__ import annotations

from collections.abc import Iterator

from services.imports.files import ExportFile
from services.imports.json_lines import objects
from services.imports.records import DAMAGED, Bad, Item, Options, Parsed


def read(file: ExportFile, options: Options) -> Iterator[Item]:
    """The records, as they are; `--session` and `--agent` replace theirs."""
    for line in objects(file):
        if isinstance(line, Bad):
            yield line
            continue
        number, record = line
        if options.session is not None and record.get("kind") == "memory":
            record["session_id"] = options.session
        if options.agent is not None:
            record["agent_id"] = options.agent
        if DAMAGED in str(record.get("content")):
            yield Bad(f"line {number:,}", "bytes that are no text in the file's encoding; see --encoding")
        else:
            yield Parsed(f"line {number:,}", record)
