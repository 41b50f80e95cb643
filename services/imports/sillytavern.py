"""SillyTavern: a chat in JSON Lines, with a header in its first line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from services.imports.files import ExportFile
from services.imports.json_lines import objects
from services.imports.people import Person
from services.imports.records import Bad, Item, Options, Said, Skipped, text_or_none

#: What `extra.type` says of messages that the program wrote. Others with `is_system` were hidden from the model.
_OWN: Final = frozenset(
    {
        *("help", "welcome", "welcome_prompt", "group", "empty", "generic", "bookmark_created", "bookmark_back"),
        *("comment", "slash_commands", "formatting", "hotkeys", "macros", "assistant_note", "assistant_message"),
    }
)


def read(file: ExportFile, _: Options) -> Iterator[Item]:
    """The messages of a chat, each as the swipe that was chosen."""
    session, title = file.session, None
    for line in objects(file):
        if isinstance(line, Bad):
            yield line
            continue
        number, fields = line
        if "mes" not in fields:
            if number == 1 or "chat_metadata" in fields or "user_name" in fields:
                session, title = _session(fields) or session, _character(fields)
            else:
                yield Bad(f"line {number:,}", "no message: it has no mes")
            continue
        swipes = fields.get("swipes")
        if isinstance(swipes, list) and len(swipes) > 1:
            yield Skipped("swipes that were not chosen", len(swipes) - 1)
        yield _message(fields, number, session, title)


def _session(header: dict[str, Any]) -> str | None:
    """What tells the chat from others, wherever its file is: an id of recent versions, or character and date."""
    metadata = header.get("chat_metadata")
    integrity = text_or_none(metadata.get("integrity")) if isinstance(metadata, dict) else None
    created, character = text_or_none(header.get("create_date")), _character(header)
    return integrity or (f"{character} {created}" if created and character else None)


def _character(header: dict[str, Any]) -> str | None:
    name = text_or_none(header.get("character_name"))
    return None if name == "unused" else name  # as recent versions fill it


def _message(fields: dict[str, Any], number: int, session: str, title: str | None) -> Item:
    extra = fields.get("extra") if isinstance(fields.get("extra"), dict) else {}
    assert isinstance(extra, dict)  # noqa: S101 - for the type checker, which does not see it above
    if fields.get("is_system") is True and extra.get("type") in _OWN:
        return Skipped("system messages")
    text = fields["mes"]
    if isinstance(text, dict):  # as Chub writes it
        text = text.get("message")
    if not isinstance(text, str) or not text.strip():
        return Skipped("without text")
    is_user = fields.get("is_user") is True
    name = text_or_none(fields.get("name"))
    sent_at = fields.get("send_date") or extra.get("gen_finished")
    return Said(
        place=f"line {number:,}",
        content=text,
        time=sent_at if isinstance(sent_at, str | int | float) else json.dumps(sent_at) if sent_at else None,
        session=session,
        source="user" if is_user else "ai",
        person=Person(name) if name and not is_user else None,
        title=title,
    )
