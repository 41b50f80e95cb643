"""Plain files: JSON Lines, a JSON array or CSV, whose fields a mapping names."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from keepsake_client.tolerance import AI_SOURCES, as_text

from services.imports.files import ExportFile
from services.imports.json_elements import ITEM, elements
from services.imports.json_lines import objects
from services.imports.people import Person
from services.imports.records import Bad, Item, Options, Said, Skipped, UnreadableFile, text_or_none

#: The fields of a record, each with the names that it has in files without a mapping.
FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "content": ("content", "text", "message"),
    "timestamp": ("timestamp", "created_at", "create_time", "date", "time"),
    "source": ("source", "role"),
    "session_id": ("session_id", "conversation_id"),
    "message_id": ("message_id", "id"),
    "speaker": ("speaker", "author", "name"),
}
#: Roles of what neither a user nor the AI said.
_OTHER_ROLES: Final = frozenset({"system", "developer", "tool", "function"})


def parse_mapping(text: str) -> dict[str, str]:
    """The mapping that `--map` gives, as in "content=text,timestamp=date".

    Raises:
        ValueError: it is none, or has a field that no record has.
    """
    mapping = {}
    for part in text.split(","):
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column or name not in FIELDS:
            raise ValueError(f"{part.strip()!r} is not FIELD=COLUMN with one of the fields {', '.join(FIELDS)}")
        mapping[name] = column
    return mapping


def read_lines(file: ExportFile, options: Options) -> Iterator[Item]:
    """The messages of JSON Lines."""
    for line in objects(file):
        yield line if isinstance(line, Bad) else _message(line[1], f"line {line[0]:,}", options, file)


def read_array(file: ExportFile, options: Options) -> Iterator[Item]:
    """The messages of a JSON array, or of an object's `messages`."""
    for number, found in enumerate(elements(file, {(ITEM,), ("messages", ITEM)}), start=1):
        place = f"element {number:,}"
        if found.problem is not None:
            yield Bad(place, found.problem)
        elif isinstance(found.value, dict):
            yield _message(found.value, place, options, file)
        elif found.path == (ITEM,):
            yield Bad(place, "it is no object")


def read_csv(file: ExportFile, options: Options) -> Iterator[Item]:
    """The messages of CSV with a header; commas, semicolons or tabs, whichever the header has most of."""
    too_long: list[int] = []
    lines = _csv_lines(file, too_long)
    header_line = next(lines, "")
    delimiter = max(",;\t", key=header_line.count)
    header = next(csv.reader([header_line], delimiter=delimiter), [])
    columns = [name.strip().strip("\ufeff") for name in header]
    _check_columns(columns, options, file)
    rows = csv.reader(lines, delimiter=delimiter)
    while True:
        place = f"line {rows.line_num + 2:,}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Bad(place, f"not CSV: {error}")
            continue
        while too_long:
            yield Bad(f"line {too_long.pop():,}", "the line is too long")
        if any(row):
            yield _message(dict(zip(columns, row, strict=False)), place, options, file)


def _csv_lines(file: ExportFile, too_long: list[int]) -> Iterator[str]:
    for line in file.lines():
        if line.text is None:
            too_long.append(line.number)
        yield f"{line.text or ''}\n"


def _check_columns(columns: list[str], options: Options, file: ExportFile) -> None:
    missing = [column for column in options.mapping.values() if column not in columns]
    names = (options.mapping["content"],) if "content" in options.mapping else FIELDS["content"]
    if missing or not set(names) & set(columns):
        raise UnreadableFile(
            f"{file.name} has the columns {', '.join(columns)[:300]} and not {missing[0] if missing else 'content'}; "
            "say which is which, as in --map content=text,timestamp=date"
        )


def _message(fields: dict[str, Any], place: str, options: Options, file: ExportFile) -> Item:
    content = as_text(_value(fields, "content", options.mapping))
    if content is None:
        return Bad(place, "no content; see --map")
    role = text_or_none(_value(fields, "source", options.mapping))
    word = role.strip().casefold() if role else None
    if word in _OTHER_ROLES:
        return Skipped("system and tool messages")
    timestamp = _value(fields, "timestamp", options.mapping)
    person = _person(_value(fields, "speaker", options.mapping))
    is_ai = word in AI_SOURCES
    return Said(
        place=place,
        content=content,
        time=timestamp if isinstance(timestamp, str | int | float | None) else json.dumps(timestamp),
        session=text_or_none(_value(fields, "session_id", options.mapping)) or file.session,
        # In a room, many have the role of the user: names say who of them is.
        source="ai" if is_ai else None if word is None or person is not None else "user",
        person=person,
        id=text_or_none(_value(fields, "message_id", options.mapping)),
    )


def _person(value: Any) -> Person | None:
    if isinstance(value, dict):
        name, key = text_or_none(value.get("name")), text_or_none(value.get("id"))
        return Person(name or key or "", key) if name or key else None
    name = text_or_none(value)
    return None if name is None else Person(name)


def _value(fields: dict[str, Any], name: str, mapping: Mapping[str, str]) -> Any:
    """A field by its mapping, in which dots lead into objects; without one, by its usual names."""
    if name not in mapping:
        return next((fields[usual] for usual in FIELDS[name] if fields.get(usual) is not None), None)
    column = mapping[name]
    if column in fields:
        return fields[column]
    value: Any = fields
    for key in column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
