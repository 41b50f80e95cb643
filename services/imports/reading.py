"""Reading of an export: its form is recognised, it is known who is who, and its records come one by one."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

from keepsake_client.errors import InvalidMessage
from keepsake_client.records import KINDS, parse_record

from services.imports import (
    character_ai,
    chatgpt,
    discord,
    keepsake_export,
    plain,
    sillytavern,
    telegram,
    whatsapp,
)
from services.imports.files import ExportFile
from services.imports.json_elements import DamagedJSON, Document
from services.imports.people import Person, Roles, roles_of
from services.imports.records import Bad, Item, Options, Parsed, RecordBuilder, Said, Skipped, UnreadableFile


class Form(NamedTuple):
    """A form of exports.

    Args:
        title: what it is, for people.
        read: yields what a file of it holds.
        names_people: people speak whom the export does not call user or AI; it is read once more to know them.
        has_own_ids: ids of conversations and messages are the user's own, and kept as they are.
    """

    title: str
    read: Callable[[ExportFile, Options], Iterator[Item]]
    names_people: bool = False
    has_own_ids: bool = False


FORMS: Final[dict[str, Form]] = {
    "keepsake": Form("Keepsake's own export", keepsake_export.read),
    "chatgpt": Form("ChatGPT", chatgpt.read),
    "character-ai": Form("Character.AI", character_ai.read),
    "sillytavern": Form("SillyTavern", sillytavern.read),
    "discord": Form("Discord (DiscordChatExporter)", discord.read, names_people=True),
    "telegram": Form("Telegram", telegram.read, names_people=True),
    "whatsapp": Form("WhatsApp", whatsapp.read, names_people=True),
    "jsonl": Form("JSON Lines", plain.read_lines, names_people=True, has_own_ids=True),
    "json": Form("a JSON array", plain.read_array, names_people=True, has_own_ids=True),
    "csv": Form("CSV", plain.read_csv, names_people=True, has_own_ids=True),
}
#: By what stands at which place of a document, the first that fits; "[]" is an element of an array.
_DOCUMENTS: Final = (
    ("chatgpt", ({"[].mapping"}, {"mapping"})),
    ("discord", ({"guild", "channel"},)),
    ("character-ai", ({"histories"}, {"turns"}, {"[].msgs"}, {"[].turns"}, {"[].candidates"}, {"chats[].turns"})),
    ("telegram", ({"personal_information"}, {"chats.list"}, {"messages", "type", "id"})),
    ("json", ({"[].content"}, {"[].text"}, {"[].message"}, {"[].role"}, {"messages[].role"}, {"messages[].content"})),
)
#: As deep as those places lie.
_DEPTH: Final = 3
_WHATSAPP_LINES: Final = 20


def recognised_form(file: ExportFile, options: Options) -> str:
    """The form of a file, by its content.

    Raises:
        UnreadableFile: it is none that is known.
    """
    text = file.sample.lstrip("\ufeff \t\r\n")
    if not text:
        raise UnreadableFile(f"{file.name} is empty")
    if any(map(whatsapp.begins_message, text.split("\n", _WHATSAPP_LINES)[:_WHATSAPP_LINES])):
        return "whatsapp"  # whose lines may begin with a bracket, as JSON does
    if text[0] in "{[":
        places = _places(text)
        found = next((name for name, wanted in _DOCUMENTS if any(one <= places for one in wanted)), None)
        found = found or _lines_form(text, file) or ("json" if text[0] == "[" and options.mapping else None)
        if found:
            return found
    elif re.search("[,;\t]", text.split("\n", 1)[0]):
        return "csv"
    raise UnreadableFile(f"{file.name} has none of the forms that are read ({', '.join(FORMS)}); name it with --format")


def _lines_form(text: str, file: ExportFile) -> str | None:
    """The form of JSON Lines by the first line that is one."""
    lines = text.split("\n")
    for line in islice(lines if file.sample_is_all else lines[:-1], 20):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(fields, dict):
            if fields.get("kind") in KINDS:
                return "keepsake"
            is_chat = {"mes", "chat_metadata", "user_name", "character_name"} & fields.keys()
            return "sillytavern" if is_chat else "jsonl"
    return None


def _places(text: str) -> set[str]:
    """The keys at the top of a document, as far as its beginning has them."""
    places: set[str] = set()
    with suppress(DamagedJSON):  # the sample ends anywhere
        for found in Document(iter([text])).found(frozenset()):
            places |= {".".join(found.path[:depth]).replace(".[]", "[]") for depth in range(1, _DEPTH + 1)}
    return places


def people(file: ExportFile, form: str, options: Options) -> Iterator[Person | None]:
    """Who says each thing of a file, where the export does not call them user or AI; nothing where it calls all.

    Raises:
        UnreadableFile: it cannot be read to the end.
    """
    if FORMS[form].names_people:
        for item in FORMS[form].read(file, options):
            yield item.person if isinstance(item, Said) and item.source is None else None


def roles_for(counted: Counter[Person], options: Options) -> Roles:
    """Who is who, by how much each says; see `roles_of`."""
    return roles_of(counted, options.me, options.ai, options.user_id, room=options.room) if counted else Roles()


def records(
    file: ExportFile, form: str, options: Options, roles: Roles, now: float
) -> Iterator[Parsed | Skipped | Bad]:
    """The records of a file, and what is no record."""
    builder = RecordBuilder(form, options, roles, now, has_own_ids=FORMS[form].has_own_ids)
    for item in FORMS[form].read(file, options):
        one = builder.build(item) if isinstance(item, Said) else item
        yield _checked(one, options) if isinstance(one, Parsed) else one


def _checked(item: Parsed, options: Options) -> Parsed | Bad:
    """The record, unless the stack would refuse it, and with it the page that it is on."""
    try:
        parse_record(item.record, options.max_chars)
    except InvalidMessage as error:
        return Bad(item.place, str(error))
    return item


def checked_form(name: str) -> str:
    """A form that was named.

    Raises:
        ValueError: there is no such form.
    """
    if name not in FORMS:
        raise ValueError(f"{name!r} is none of {', '.join(FORMS)}")
    return name
