"""Character.AI: histories as CAI Tools and characterai-dumper save them, and the turns of the present chats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from services.imports.files import ExportFile
from services.imports.json_elements import ITEM, Path, elements
from services.imports.people import Person
from services.imports.records import Bad, Item, Options, Said, Skipped, first_text, text_or_none

#: Histories, whole; and turns, one by one.
_HISTORIES: Final[frozenset[Path]] = frozenset(
    {("histories", "histories", ITEM), ("histories", ITEM), ("chats", ITEM), (ITEM,)}
)
_TURNS: Final[Path] = ("turns", ITEM)
ELEMENTS: Final[frozenset[Path]] = frozenset({*_HISTORIES, _TURNS})
#: The fields of a history and of its messages, as the tools that save them call them.
_SESSION_NAMES: Final = ("external_id", "chat_id", "history_id", "conversation_id", "id")
_MESSAGE_NAMES: Final = ("msgs", "messages", "turns")
_ID_NAMES: Final = ("uuid", "id")


def read(file: ExportFile, _: Options) -> Iterator[Item]:
    """The messages of each history, in the file's order; of alternative replies, the chosen one."""
    character, number = None, 0
    for found in elements(file, ELEMENTS):
        number += found.path in ELEMENTS
        place = f"element {number:,}"
        match found.path:
            case ("info", "character", "name") | ("character", "name") | ("character_name",):
                character = text_or_none(found.value) or character
            case _ if found.path not in ELEMENTS:
                pass
            case _ if found.problem is not None or not isinstance(found.value, dict):
                yield Bad(place, found.problem or "it is no object")
            case _ if "candidates" in found.value:
                yield from _turn(found.value, place, None, character, file)
            case _:
                yield from _history(found.value, place, character, file)


def _history(history: dict[str, Any], place: str, character: str | None, file: ExportFile) -> Iterator[Item]:
    session = first_text(history, _SESSION_NAMES)
    character = text_or_none(history.get("character_name")) or character
    messages = next((history[name] for name in _MESSAGE_NAMES if isinstance(history.get(name), list)), None)
    if messages is None:
        yield Bad(place, "no messages: neither msgs, messages nor turns")
        return
    for number, message in enumerate(messages, start=1):
        where = f"{place}, message {number:,}"
        if not isinstance(message, dict):
            yield Bad(where, "it is no object")
        elif "candidates" in message:
            yield from _turn(message, where, session, character, file)
        else:
            yield _message(message, where, session or _first_of(messages) or file.session, character, history)


def _message(message: dict[str, Any], place: str, session: str, character: str | None, history: dict[str, Any]) -> Item:
    if message.get("is_alternative") is True:
        return Skipped("alternative replies that were not chosen")
    text = next((message[name] for name in ("text", "content", "message") if isinstance(message.get(name), str)), "")
    if not text.strip():
        return Skipped("without text")
    sender = message.get("src") if isinstance(message.get("src"), dict) else {}
    assert isinstance(sender, dict)  # noqa: S101 - for the type checker, which does not see it above
    is_human = message.get("is_human", sender.get("is_human"))
    if not isinstance(is_human, bool):
        role = str(message.get("role") or message.get("src") or "").casefold()
        if role not in ("user", "human", "assistant", "character", "bot", "ai"):
            return Bad(place, "it does not say whether the character or the user spoke")
        is_human = role in ("user", "human")
    name = text_or_none(sender.get("name")) or character
    message_id = first_text(message, _ID_NAMES)
    times = (message.get(key) for key in ("created", "create_time", "created_at", "timestamp"))
    return Said(
        place=place,
        content=text,
        time=next((time for time in times if time), None) or history.get("created") or history.get("created_at"),
        session=session,
        source="user" if is_human else "ai",
        person=Person(name) if name and not is_human else None,
        id=message_id,
        title=character,
    )


def _turn(
    turn: dict[str, Any], place: str, session: str | None, character: str | None, file: ExportFile
) -> Iterator[Item]:
    author, candidates = turn.get("author"), turn.get("candidates")
    candidates = [one for one in candidates if isinstance(one, dict)] if isinstance(candidates, list) else []
    if not candidates or not isinstance(author, dict):
        yield Bad(place, "a turn without candidates or author")
        return
    if len(candidates) > 1:
        yield Skipped("alternative replies that were not chosen", len(candidates) - 1)
    chosen = next(
        (one for one in candidates if one.get("candidate_id") == turn.get("primary_candidate_id")), candidates[0]
    )
    text = chosen.get("raw_content")
    if not isinstance(text, str) or not text.strip():
        yield Skipped("without text")
        return
    is_human, name = author.get("is_human") is True, text_or_none(author.get("name")) or character
    yield Said(
        place=place,
        content=text,
        time=turn.get("create_time") or chosen.get("create_time"),
        session=_key(turn, "chat_id") or session or file.session,
        source="user" if is_human else "ai",
        person=Person(name) if name and not is_human else None,
        id=_key(turn, "turn_id"),
        title=character,
    )


def _key(turn: dict[str, Any], name: str) -> str | None:
    key = turn.get("turn_key")
    return text_or_none(key.get(name)) if isinstance(key, dict) else None


def _first_of(messages: list[Any]) -> str | None:
    """A history without an id is known by its first message's."""
    return first_text(messages[0], _ID_NAMES) if messages and isinstance(messages[0], dict) else None
