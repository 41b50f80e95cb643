"""Discord: the JSON of DiscordChatExporter, one channel a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from services.imports.files import ExportFile
from services.imports.json_elements import ITEM, Path, elements
from services.imports.people import Person
from services.imports.records import Bad, Item, Options, Said, Skipped, text_or_none

MESSAGES: Final[frozenset[Path]] = frozenset({("messages", ITEM)})
#: The types of messages that people and bots wrote. DiscordChatExporter writes those without a name there as
#: numbers: 20 and 23 are the answers to commands.
_WRITTEN: Final = frozenset({"Default", "Reply", "20", "23", "ChatInputCommand", "ContextMenuCommand"})


def read(file: ExportFile, _: Options) -> Iterator[Item]:
    """The messages of a channel, in the export's order."""
    channel: dict[str, Any] = {}
    guild = None
    for number, found in enumerate(elements(file, MESSAGES)):
        match found.path:
            case ("channel", name):
                channel[name] = found.value
            case ("guild", "name"):
                guild = text_or_none(found.value)
            case ("messages", _):
                place = f"message {number:,}" if found.problem else f"message {_id(found.value) or number}"
                if found.problem is not None or not isinstance(found.value, dict):
                    yield Bad(place, found.problem or "it is no object")
                else:
                    yield _message(found.value, place, channel, guild, file)
            case _:
                pass


def _message(message: dict[str, Any], place: str, channel: dict[str, Any], guild: str | None, file: ExportFile) -> Item:
    if message.get("type", "Default") not in _WRITTEN:
        return Skipped("system messages")
    content, author = message.get("content"), message.get("author")
    if not isinstance(content, str) or not content.strip():
        return Skipped("without text")
    if not isinstance(author, dict):
        return Bad(place, "no author")
    name = text_or_none(author.get("name"))
    nickname = text_or_none(author.get("nickname"))
    author_id = text_or_none(author.get("id"))
    if name is None and nickname is None and author_id is None:
        return Bad(place, "no author")
    channel_name = text_or_none(channel.get("name"))
    return Said(
        place=place,
        content=content,
        time=message.get("timestamp"),
        session=text_or_none(channel.get("id")) or file.session,
        person=Person(nickname or name or author_id or "", author_id, name, is_ai=author.get("isBot") is True),
        id=_id(message),
        title=f"{guild} #{channel_name}" if guild and channel_name else channel_name,
    )


def _id(message: Any) -> str | None:
    return text_or_none(message.get("id")) if isinstance(message, dict) else None
