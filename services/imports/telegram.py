"""Telegram: the `result.json` of Telegram Desktop, of one chat or of the whole account."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from services.imports.files import ExportFile
from services.imports.json_elements import ITEM, Path, elements
from services.imports.people import Person
from services.imports.records import Bad, Item, Options, Said, Skipped, text_or_none

_ONE: Final[Path] = ("messages", ITEM)
MESSAGES: Final[frozenset[Path]] = frozenset(
    {_ONE, ("chats", "list", ITEM, *_ONE), ("left_chats", "list", ITEM, *_ONE)}
)


class _Chat:
    """The chat whose messages come next: its fields stand before them."""

    def __init__(self, file: ExportFile) -> None:
        self._file = file
        self._fields: dict[str, Any] = {}
        self._has_messages = False

    def note(self, name: str, value: Any) -> None:
        """Note a field; the first one after messages begins another chat."""
        if self._has_messages:
            self._fields, self._has_messages = {}, False
        self._fields[name] = value

    def message(self, message: dict[str, Any], place: str, owner: str | None) -> Item:
        """What a message of the chat is.

        Args:
            owner: the `from_id` of the account's owner, where the export has it.
        """
        self._has_messages = True
        if message.get("type", "message") != "message":
            return Skipped("system messages")
        content = _text(message.get("text"))
        if not content.strip():
            return Skipped("without text")
        sender, chat_id = text_or_none(message.get("from_id")), text_or_none(self._fields.get("id"))
        title = text_or_none(self._fields.get("name"))
        name = text_or_none(message.get("from")) or title or sender
        if name is None:
            return Bad(place, "no sender")
        kind, is_other = self._fields.get("type"), sender == f"user{chat_id}"
        of_two = kind in ("personal_chat", "bot_chat")
        message_id = text_or_none(message.get("id"))
        session = chat_id or self._file.session
        return Said(
            place=place,
            content=content,
            time=message.get("date_unixtime") or message.get("date"),
            session=session,
            person=Person(
                name,
                sender,
                is_ai=kind == "bot_chat" and is_other,
                is_owner=sender == owner if owner else kind == "saved_messages" or (of_two and not is_other),
            ),
            id=None if message_id is None else f"{session}:{message_id}",
            title=title,
        )


def read(file: ExportFile, _: Options) -> Iterator[Item]:
    """The messages of each chat, in the export's order."""
    chat, owner, number = _Chat(file), None, 0
    for found in elements(file, MESSAGES):
        match found.path:
            case ("personal_information", "user_id"):
                owner = f"user{found.value}"
            case (name,) | ("chats" | "left_chats", "list", "[]", name):
                chat.note(name, found.value)
            case _ if found.path in MESSAGES:
                number += 1
                if found.problem is not None or not isinstance(found.value, dict):
                    yield Bad(f"message {number:,}", found.problem or "it is no object")
                else:
                    yield chat.message(found.value, f"message {number:,} (id {found.value.get('id')})", owner)
            case _:
                pass


def _text(text: Any) -> str:
    """A text, or that of its parts: texts, and objects for what is bold or a link."""
    if isinstance(text, str):
        return text
    parts = (part.get("text") if isinstance(part, dict) else part for part in (text if isinstance(text, list) else ()))
    return "".join(part for part in parts if isinstance(part, str))
