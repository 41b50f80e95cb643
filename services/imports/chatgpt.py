"""ChatGPT's export: `conversations.json`, an array of conversations, each a tree of messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from services.imports.files import ExportFile
from services.imports.json_elements import ITEM, Path, elements
from services.imports.records import Bad, Item, Options, Said, Skipped, text_or_none

#: The array of an export, and one conversation alone.
CONVERSATIONS: Final[frozenset[Path]] = frozenset({(ITEM,), ()})
#: What `content_type` says of messages that were shown as text.
_TEXTS: Final = frozenset({"text", "multimodal_text"})
#: References to sources within a text, between characters of private use: cite turn0search1.
_CITATIONS: Final = re.compile("\ue200[^\ue200\ue201]*\ue201|【\\d+†[^】]{0,200}】")


def read(file: ExportFile, _: Options) -> Iterator[Item]:
    """The messages of each conversation's current branch, oldest first."""
    for number, found in enumerate(elements(file, CONVERSATIONS), start=1):
        place = f"conversation {number:,}"
        if found.problem is not None:
            yield Bad(place, found.problem)
        elif isinstance(found.value, dict) and isinstance(found.value.get("mapping"), dict):
            yield from _conversation(found.value, place)
        else:
            yield Bad(place, "no conversation of ChatGPT: it has no mapping")


def _conversation(conversation: dict[str, Any], place: str) -> Iterator[Item]:
    mapping = conversation["mapping"]
    session = text_or_none(conversation.get("conversation_id")) or text_or_none(conversation.get("id"))
    title = text_or_none(conversation.get("title"))
    branch = _branch(mapping, conversation.get("current_node"))
    on_branch = {id(node) for node in branch}
    others = sum(1 for node in mapping.values() if id(node) not in on_branch and _is_shown(_message(node)))
    if others:
        yield Skipped("of branches that were regenerated or edited", others)
    # A message without a time has that of the conversation, or of the message before it.
    started_at = conversation.get("create_time")
    for node in branch:
        message = _message(node)
        if not message:
            continue
        if not _is_shown(message):
            yield Skipped("system and tool messages")
            continue
        text = _text(message)
        if not text.strip():
            yield Skipped("without text")
            continue
        started_at = message.get("create_time") or started_at
        message_id = text_or_none(message.get("id"))
        yield Said(
            place=f"{place}, message {message_id or '?'}",
            content=text,
            time=started_at,
            session=session or f"untitled {place}",
            source="ai" if message["author"]["role"] == "assistant" else "user",
            id=message_id,
            title=title,
        )


def _branch(mapping: dict[str, Any], current: Any) -> list[Any]:
    """The nodes from the root to the current one; without it, to the newest message."""
    if not isinstance(current, str) or current not in mapping:
        parents = {node.get("parent") for node in mapping.values() if isinstance(node, dict)}
        leaves = [key for key, node in mapping.items() if key not in parents and _message(node)]
        current = max(leaves, key=lambda key: _seconds(_message(mapping[key])), default=None)
    nodes: dict[str, Any] = {}
    while isinstance(current, str) and current in mapping and current not in nodes:  # a hostile tree may be a ring
        node = nodes[current] = mapping[current]
        current = node.get("parent") if isinstance(node, dict) else None
    return list(nodes.values())[::-1]


def _message(node: Any) -> dict[str, Any]:
    message = node.get("message") if isinstance(node, dict) else None
    return message if isinstance(message, dict) else {}


def _seconds(message: dict[str, Any]) -> float:
    seconds = message.get("create_time")
    return seconds if isinstance(seconds, int | float) else 0


def _is_shown(message: dict[str, Any]) -> bool:
    """Whether a message is one that the user saw: not hidden, and no call of a tool."""
    author, metadata, content = (message.get(name) or {} for name in ("author", "metadata", "content"))
    if not all(isinstance(part, dict) for part in (author, metadata, content)):
        return False
    if author.get("role") not in ("user", "assistant") or metadata.get("is_visually_hidden_from_conversation"):
        return False
    to_all = message.get("recipient") in (None, "all")
    return to_all and message.get("channel") in (None, "final") and content.get("content_type", "text") in _TEXTS


def _text(message: dict[str, Any]) -> str:
    """The texts among a message's parts; images and recordings are none, transcriptions are."""
    content = message.get("content") or {}
    parts = content.get("parts")
    texts = []
    for part in parts if isinstance(parts, list) else []:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str) and text.strip():
            texts.append(_CITATIONS.sub("", text))
    return "\n".join(texts)
