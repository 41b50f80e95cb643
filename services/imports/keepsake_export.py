"""Keepsake's own export: JSON Lines of records, as `ltm export` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from keepsake_client.protocol import clean

from services.imports.files import ExportFile
from services.imports.json_lines import objects
from services.imports.records import DAMAGED, Bad, Item, Options, Parsed

#: What a record of each kind cannot be without.
_NEEDED: Final = {"memory": ("content", "source", "timestamp"), "profile": ("profile",)}


def read(file: ExportFile, options: Options) -> Iterator[Item]:
    """The records, as they are; `--session` and `--agent` replace theirs."""
    given = {"session_id": options.session, "agent_id": options.agent}
    for line in objects(file):
        if isinstance(line, Bad):
            yield line
            continue
        number, record = line
        place = f"line {number:,}"
        needed = _NEEDED.get(record["kind"]) if isinstance(record.get("kind"), str) else None
        if needed is None:
            yield Bad(place, "its kind is neither memory nor profile")
        elif missing := [name for name in needed if record.get(name) is None]:
            yield Bad(place, f"no {', '.join(missing)}")
        elif DAMAGED in str(record.get("content")):
            yield Bad(place, "bytes that are no text in the file's encoding; see --encoding")
        else:
            try:
                yield Parsed(place, clean(record) | {name: value for name, value in given.items() if value is not None})
            except ValueError as error:
                yield Bad(place, str(error))
