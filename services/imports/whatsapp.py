"""WhatsApp: the text of "Export chat", of Android and of iOS, in many locales."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from services.imports.files import MAX_LINE_CHARS, ExportFile
from services.imports.people import Person
from services.imports.records import Bad, Item, Options, Said, Skipped, UnreadableFile

#: Marks of the writing direction, which stand before lines and around telephone numbers.
_MARKS: Final = "\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
_MARK: Final = re.compile(f"[{_MARKS}]")
_AM: Final = r"[aA]\.?\s?[mM]\.?|上午|오전|午前|凌晨|早上|ص|π\.?μ\.?"
_PM: Final = r"[pP]\.?\s?[mM]\.?|下午|오후|午後|中午|晚上|م|μ\.?μ\.?"
#: "31/12/2020, 21:45 - ", "[12/31/20, 9:45:12 PM] ", "2020/12/31 下午9:45 - ", "12.3.2022 klo 14.08 - " and the like.
_START: Final = re.compile(
    rf"[{_MARKS}]*(?P<bracket>\[)?(?P<a>\d{{1,4}})(?P<separator>\s?[./-]|[年년])\s?(?P<b>\d{{1,2}})(?:\s?[./-]|[月월])\s?"
    rf"(?P<c>\d{{1,4}})(?:[日일]|\.(?=[\s,]))?[,،、]?\s?(?:(?:klo|kl\.?|um|at|às|o)\s)?(?:(?P<am>{_AM})|(?P<pm>{_PM}))?\s?"
    rf"(?P<hour>\d{{1,2}})[:.](?P<minute>\d{{2}})(?:[:.](?P<second>\d{{2}}))?"
    rf"\s?(?:(?P<am2>{_AM})|(?P<pm2>{_PM}))?(?(bracket)\]\s|\s[-–—]\s)"
)
#: What stands in place of media: all of the line on Android, and with a file's name where it is in the archive.
_OMITTED: Final = re.compile(
    r"<[^<>]{3,80}>|(?:image|video|audio|sticker|gif|document|contact card) omitted", re.IGNORECASE
)
_ATTACHED: Final = re.compile(r"\S[^<>\n]{0,200}\.\w{2,5} \([^()]{4,60}\)")
_FILE_NAME: Final = re.compile(r"[^\n]{1,200}\.\w{2,5}")
#: What WhatsApp appends: that a message was edited, and on iOS the file that a caption belongs to.
_APPENDED: Final = re.compile(
    "\\s?(?:\u200e<[^<>]{3,200}>|<[^<>]{0,60}(?:edited|bearbeitet|editad|modifi|bewerkt|изменено|ред\\.|编辑|編輯|編集|수정|"
    "düzenlendi|edytowan|diedit)[^<>]{0,60}>)$",
    re.IGNORECASE,
)
_DELETED: Final = frozenset(
    {
        *("this message was deleted", "you deleted this message", "null", "waiting for this message"),
        *("diese nachricht wurde gelöscht", "du hast diese nachricht gelöscht"),
        *("se eliminó este mensaje", "eliminaste este mensaje", "este mensaje fue eliminado"),
        *("mensagem apagada", "esta mensagem foi apagada", "você apagou esta mensagem", "você apagou essa mensagem"),
        *("ce message a été supprimé", "vous avez supprimé ce message", "questo messaggio è stato eliminato"),
        *("hai eliminato questo messaggio", "dit bericht is verwijderd", "je hebt dit bericht verwijderd"),
        *("данное сообщение удалено", "вы удалили данное сообщение", "bu mesaj silindi", "bu mesajı sildiniz"),
        *(
            "此消息已删除",
            "此訊息已刪除",
            "您删除了此消息",
            "您已刪除此訊息",
            "このメッセージは削除されました",
            "삭제된 메시지입니다",
        ),
    }
)
#: So many lines without a message's beginning, at the file's beginning, and it is no chat.
_MAX_PREAMBLE: Final = 100

Order = Literal["dmy", "mdy"]


@dataclass(slots=True)
class _Message:
    """A message with its lines: its first, and those that do not begin one."""

    number: int
    start: re.Match[str]
    lines: list[str]
    chars: int = 0


def begins_message(line: str) -> bool:
    """Whether a line begins a message of a chat."""
    return _START.match(_spaced(line)) is not None


def read(file: ExportFile, options: Options) -> Iterator[Item]:
    """The messages of a chat, oldest first, in two passes: the first determines the order of day and month."""
    order = options.dates or _order_of(file)
    for message in _messages(file):
        yield message if isinstance(message, Skipped) else _item(message, order, file)


def _messages(file: ExportFile) -> Iterator[_Message | Skipped]:
    message: _Message | None = None
    for line in file.lines():
        text = line.text or ""
        start = _START.match(_spaced(text))
        if start is not None:
            if message is not None:
                yield message
            message = _Message(line.number, start, [text[start.end() :]])
        elif message is not None:
            message.chars += len(text)
            if message.chars <= MAX_LINE_CHARS:
                message.lines.append(text)
        elif line.number > _MAX_PREAMBLE:
            raise UnreadableFile(f"{file.name}: none of its first {_MAX_PREAMBLE} lines begins a message of WhatsApp")
        elif text.strip():
            yield Skipped("before the first message")
    if message is None:
        raise UnreadableFile(f"{file.name} has no message of WhatsApp")
    yield message


def _spaced(line: str) -> str:
    """The line's beginning with ordinary spaces; as long as it was."""
    return line[:80].replace("\u202f", " ").replace("\u00a0", " ")


def _order_of(file: ExportFile) -> Order:
    """Whether the day or the month comes first: by a number above 12, or else by which dates are in order.

    Raises:
        UnreadableFile: both are possible.
    """
    first = second = 0
    disorder = {"dmy": 0, "mdy": 0}
    before: dict[str, tuple[int, int, int]] = {"dmy": (0, 0, 0), "mdy": (0, 0, 0)}
    for message in _messages(file):
        if isinstance(message, Skipped) or _is_certain(message.start):
            continue
        a, b, year = int(message.start["a"]), int(message.start["b"]), int(message.start["c"])
        first, second = max(first, a), max(second, b)
        for order, date in (("dmy", (year, b, a)), ("mdy", (year, a, b))):
            disorder[order] += date < before[order]
            before[order] = date
    if first > 12 or second > 12 or not first:
        return "mdy" if first <= 12 < second else "dmy"
    if disorder["dmy"] != disorder["mdy"]:
        return "dmy" if disorder["dmy"] < disorder["mdy"] else "mdy"
    raise UnreadableFile(f"{file.name}: its dates may begin with the day or the month: say --dates dmy or --dates mdy")


def _is_certain(start: re.Match[str]) -> bool:
    """Whether a date can be read in one way: with the year first, or with points, as no locale has months first."""
    return len(start["a"]) > 2 or start["separator"].strip() == "."


def _time(start: re.Match[str], order: Order) -> str:
    """The time as it is written, in ISO 8601 without a zone.

    Raises:
        ValueError: there is no such date.
    """
    a, b, c = (int(start[name]) for name in "abc")
    if len(start["a"]) > 2:
        year, month, day = a, b, c
    else:
        year, (day, month) = c, (b, a) if order == "mdy" and not _is_certain(start) else (a, b)
    hour = int(start["hour"])
    if start["am"] or start["am2"]:
        hour %= 12
    elif start["pm"] or start["pm2"]:
        hour = hour % 12 + 12
    year += 2000 if year < 100 else 0
    return datetime(year, month, day, hour, int(start["minute"]), int(start["second"] or 0)).isoformat()


def _item(message: _Message, order: Order, file: ExportFile) -> Item:
    name, colon, first = message.lines[0].partition(": ")
    if not colon:
        if not name.endswith(":"):
            return Skipped("system messages")
        name = name[:-1]
    content = _content(first, message.lines[1:])
    if content is None:
        return Skipped("media and system messages")
    try:
        time = _time(message.start, order)
    except ValueError:
        return Bad(
            f"line {message.number:,}", f"there is no such date with {'day' if order == 'dmy' else 'month'} first"
        )
    name = _MARK.sub("", name).replace("\u202f", " ").replace("\u00a0", " ").strip().removeprefix("~").strip()
    return Said(
        place=f"line {message.number:,}",
        content=content,
        time=time,
        session=file.session,
        person=Person(name or "?"),
        title=file.session,
    )


def _content(first: str, rest: list[str]) -> str | None:
    """What was said, without what WhatsApp wrote; None where it wrote all of it."""
    bare = _MARK.sub("", first).strip()
    if bare.casefold().rstrip(".") in _DELETED:
        return None
    if _OMITTED.fullmatch(bare) or _ATTACHED.fullmatch(bare):
        caption = "\n".join(rest).strip()
        return None if not caption or _FILE_NAME.fullmatch(caption) else caption
    if first.startswith("\u200e"):  # before what iOS writes itself, in all languages
        return None
    text = "\n".join([first, *rest])
    return _MARK.sub("", _APPENDED.sub("", text.rstrip()))
