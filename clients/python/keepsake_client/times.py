"""Times: the forms in which publishers write them, read as seconds since 1970.

`parse_timestamp` reads the time that a search is limited to, and raises; `time_of_event` dates an event, always.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, Final, NamedTuple

#: The first and the last second of the years 1 to 9999.
_FIRST_S: Final = -62_135_596_800
_LAST_S: Final = 253_402_300_799
#: Events are not dated before this (2000-01-01): such times are those of a clock that counts from a start, or unset.
EARLIEST_S: Final = 946_684_800
#: Nor further ahead of their arrival than this.
MAX_AHEAD_S: Final = 86_400
#: How far latency and a wrong clock may move a time without a zone from the whole half-hour.
ZONE_TOLERANCE_S: Final = 300
_HALF_HOUR_S: Final = 1_800
_MIN_ZONE_S: Final = -12 * 3_600
_MAX_ZONE_S: Final = 14 * 3_600
#: Nepal, Eucla, the Chatham Islands in winter and in summer.
_QUARTER_HOUR_ZONES_S: Final = (20_700, 31_500, 45_900, 49_500)
#: Longer texts are no times.
_MAX_CHARS: Final = 100

_UNREADABLE: Final = "must be a time, such as 1712345678 or 2024-04-05T12:00:00Z"

_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
#: Milliseconds as .NET and the JSON of old ASP write them.
_DOTNET: Final = re.compile(r"/Date\((-?\d+)(?:[+-]\d{4})?\)/", re.ASCII)
#: Dates and times in digits alone, which are as long as these; the longest ends in milliseconds.
_COMPACT: Final = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S", 17: "%Y%m%d%H%M%S"}
#: Words of Chinese, Japanese and Korean, after NFKC.
_TRANSLATED: Final = (
    (re.compile(r"\(?(?:星期|周|週|礼拜|禮拜)[一二三四五六日天]\)?"), " "),
    (re.compile(r"\([月火水木金土日월화수목금토일]\)|\(?[月火水木金土日월화수목금토일](?:曜日|요일)\)?"), " "),
    (re.compile(r"(\d)\s*[年년]\s*(\d{1,2})\s*[月월]\s*(\d{1,2})\s*[日号號일]?"), r"\1-\2-\3 "),
    (re.compile(r"上午|早上|凌晨|午前|오전|中午(?=\s*11)"), " am "),
    (re.compile(r"下午|中午|傍晚|晚上(?!\s*12)|午後|오후"), " pm "),
    (re.compile(r"(?<=\d)\s*[时時点點시]"), "h"),
    (re.compile(r"(?<=\d)\s*[分분]"), "m"),
    (re.compile(r"(?<=\d)\s*[秒초]"), "s"),
    (re.compile("[\u2010-\u2015\u2212]"), "-"),
    # As in the names of files.
    (re.compile(r"(\d{4}-\d\d-\d\d)[ _t](\d\d)([-._])(\d\d)\3(\d\d)(?!\d)"), r"\1 \2:\4:\5"),
)
_DAY_HALF: Final = re.compile(r"(?<![a-z])([ap])\.?\s?m\b\.?")
#: Times of day: with colons, with letters, or as "2 pm".
_CLOCKS: Final = tuple(
    re.compile(form)
    for form in (
        r"(?P<before>[ap]m)?\s*(?<!\d)(?P<hour>\d{1,2}):(?P<minute>\d{1,2})(?!\d)"
        r"(?::(?P<second>\d{1,2})(?!\d)(?:[.,:](?P<fraction>\d+))?)?\s*(?P<after>[ap]m\b)?",
        r"(?P<before>[ap]m)?\s*(?<!\d)(?P<hour>\d{1,2})\s*h(?:\s*(?P<minute>\d{1,2})(?:(?!\s*[\dm])|\s*m"
        r"(?:\s*(?P<second>\d{1,2})\s*s(?:\s*(?P<ms>\d{1,3})\s*ms)?)?))?(?![a-z])",
        r"(?:(?P<before>[ap]m)\s*|(?=\d{1,2}\s*[ap]m\b))(?<!\d)(?P<hour>\d{1,2})(?!\d)\s*(?P<after>[ap]m\b)?",
    )
)
_ZONE: Final = re.compile(
    r"(?:\s*(?P<name>utc|gmt|ut|z|[ecmp]dt|[emp]st|cet|cest|eet|eest|msk|jst|kst|hkt|sgt|aest|aedt)(?![a-z]))?"
    r"(?:\s*(?P<sign>[+-])(?P<hours>\d{1,2}):?(?P<minutes>\d{2})?(?![\d:/-]))?"
    # An offset with the zone's name after it: JavaScript's, Java's, Go's with its monotonic clock.
    r"(?(name)(?:\s*(?:\([^()]*\)|\[[^\[\]]*\]))?"
    r"|(?(sign)\s*(?:\([^()]*\)|\[[^\[\]]*\]|(?:[a-z]{2,5}|[+-]\d{2,4})(?:\s+m=[+-][\d.]+)?$)?))"
)
#: Names of zones that mean one, in hours: those of RFC 2822, but for CST, which is China's, too, and some more.
_ZONE_NAMES: Final = {
    **{"edt": -4, "est": -5, "cdt": -5, "mdt": -6, "mst": -7, "pdt": -7, "pst": -8},
    **{"cet": 1, "cest": 2, "eet": 2, "eest": 3, "msk": 3},
    **{"hkt": 8, "sgt": 8, "jst": 9, "kst": 9, "aest": 10, "aedt": 11},
}
_FILLERS: Final = re.compile(
    r"\b(?:mon|tue|tues|wed|wednes|thu|thur|thurs|fri|sat|satur|sun)(?:day)?\b\.?|\b(?:at|on|of|the)\b|[,@]|(?<=\d)t\s*$"
    r"|(?<=\d)(?:st|nd|rd|th)\b"
)
_S: Final = r"\s*[-/.\s]\s*"
_DATES: Final = tuple(
    re.compile(form)
    for form in (
        rf"(?P<year>\d{{4}}){_S}(?P<month>\d{{1,2}}){_S}(?P<day>\d{{1,2}})",
        rf"(?P<year>\d{{4}}){_S}(?P<name>[a-z]+)\.?{_S}(?P<day>\d{{1,2}})",
        rf"(?P<day>\d{{1,2}})(?:{_S})?(?P<name>[a-z]+)\.?{_S}(?P<year>\d{{4}}|\d{{2}})",
        rf"(?P<name>[a-z]+)\.?(?:{_S})?(?P<day>\d{{1,2}}){_S}(?P<year>\d{{4}})",
        r"(?P<first>\d{1,2})\s*(?P<between>[-/.])\s*(?P<second>\d{1,2})\s*(?P=between)\s*(?P<year>\d{4}|\d{2})",
        r"(?P<year>\d{4})-(?P<of_year>\d{3})",
    )
)
_MONTHS: Final = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)


class _Moment(NamedTuple):
    """Seconds since 1970, and whether the text named no zone."""

    seconds: float
    naive: bool


def parse_timestamp(value: Any, zone: tzinfo = UTC) -> float:
    """Seconds since 1970, from a number of seconds, ms, us or ns, or a date and time in any form of the contract.

    Args:
        zone: that of a text which names none.

    Raises:
        ValueError: the value is none of these, or outside the years 1 to 9999.
    """
    return _parse(value, zone).seconds


def time_of_event(value: Any, arrived_at: float, zone: tzinfo = UTC) -> tuple[float, bool]:
    """When an event was said, by what its publisher sent, and whether that is the time sent.

    A time before 2000, or more than a day ahead of the arrival, cannot be: the event is dated by its arrival. A text
    without a zone that lies ahead, and is the local time of some zone at the arrival, is the publisher's local time.
    """
    latest = arrived_at + MAX_AHEAD_S
    if type(value) in (int, float) and EARLIEST_S <= value <= latest:  # most events: seconds, nothing to read
        return float(value), True
    try:
        sent_at, naive = _parse(value, zone)
    except ValueError:
        return arrived_at, False
    said_at = sent_at
    if naive and sent_at - arrived_at > ZONE_TOLERANCE_S:
        as_utc = _parse(value, UTC).seconds
        offset = _zone_offset(as_utc - arrived_at)
        said_at = sent_at if offset is None else as_utc - offset
    if EARLIEST_S <= said_at <= latest:
        return said_at, said_at == sent_at
    return arrived_at, False


def _zone_offset(ahead: float) -> float | None:
    """The offset of a time zone, in seconds, by which a clock is ahead of UTC; None where no zone has it."""
    for offset in (round(ahead / _HALF_HOUR_S) * _HALF_HOUR_S, *_QUARTER_HOUR_ZONES_S):
        if _MIN_ZONE_S <= offset <= _MAX_ZONE_S and abs(ahead - offset) <= ZONE_TOLERANCE_S:
            return offset
    return None


def _parse(value: Any, zone: tzinfo) -> _Moment:
    if isinstance(value, str):
        return _parse_text(value, zone)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(_UNREADABLE)
    return _Moment(_from_number(value), naive=False)


def _from_number(value: float) -> float:
    # Seconds reach 10^11 in the year 5138, milliseconds reached it in 1973; and so on in steps of a thousand. The upper
    # bound is checked before the division: JSON has integers that no float can represent.
    size = abs(value)
    if size >= 1e21:
        raise ValueError("timestamp out of range")
    return _in_range(value / (1 if size < 1e11 else 1e3 if size < 1e14 else 1e6 if size < 1e17 else 1e9))


def _in_range(seconds: float) -> float:
    if not _FIRST_S <= seconds <= _LAST_S:  # NaN fails this too
        raise ValueError("timestamp out of range")
    return float(seconds)


def _parse_text(text: str, zone: tzinfo) -> _Moment:
    if len(text) > _MAX_CHARS:
        raise ValueError(_UNREADABLE)
    text = text.strip(" \t\r\n\"'")
    if found := _DOTNET.fullmatch(text):
        return _Moment(_in_range(int(found[1]) / 1000), naive=False)
    if _NUMBER.fullmatch(text):
        moment = _compact(text)
        if moment is None:
            return _Moment(_from_number(int(text) if text.isdecimal() else float(text)), naive=False)
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            try:
                moment = _any_form(unicodedata.normalize("NFKC", text).lower())
            except (ValueError, OverflowError):
                raise ValueError(_UNREADABLE) from None  # the standard library's messages quote the text
    try:
        naive = moment.tzinfo is None
        return _Moment(_in_range((moment.replace(tzinfo=zone) if naive else moment).timestamp()), naive)
    except OverflowError:  # of a time zone's rules, at the ends of the calendar
        raise ValueError("timestamp out of range") from None


def _compact(digits: str) -> datetime | None:
    """A date in digits alone, of this century and the last; None for other numbers."""
    form = _COMPACT.get(len(digits))
    if form is None or not digits.startswith(("19", "20")) or not digits.isdecimal():
        return None
    try:
        return datetime.strptime(digits[:14], form) + timedelta(milliseconds=int(digits[14:] or 0))
    except ValueError:
        return None


def _any_form(text: str) -> datetime:
    """A date and, mostly, a time of day, in the order and with the words that people and programs use."""
    for pattern, replacement in _TRANSLATED:
        text = pattern.sub(replacement, text)
    text = _DAY_HALF.sub(r"\1m", text)
    clock = next((found for form in _CLOCKS if (found := form.search(text))), None)
    if clock is None:
        return _date(text)
    zone = _ZONE.match(text, clock.end())
    assert zone is not None  # noqa: S101 - it matches the empty text
    moment = _date(f"{text[: clock.start()]} {text[zone.end() :]}") + _time_of_day(clock.groupdict())
    return moment.replace(tzinfo=_zone(zone))


def _time_of_day(clock: dict[str, str | None]) -> timedelta:
    hour, minute, second, ms = (int(clock.get(name) or 0) for name in ("hour", "minute", "second", "ms"))
    half = clock["before"] or clock.get("after")
    if half and hour <= 12:
        hour = hour % 12 + (12 if half == "pm" else 0)
    if hour > 24 or minute > 59 or second > 60 or (hour == 24 and (minute or second)):
        raise ValueError(_UNREADABLE)
    fraction = float(f"0.{clock.get('fraction') or 0}") + ms / 1000
    return timedelta(hours=hour, minutes=minute, seconds=min(second, 59) + fraction)  # 60 is a leap second


def _zone(found: re.Match[str]) -> tzinfo | None:
    if found["sign"]:
        offset = timedelta(hours=int(found["hours"]), minutes=int(found["minutes"] or 0))
        return timezone(-offset if found["sign"] == "-" else offset)
    if not found["name"]:
        return None
    return timezone(timedelta(hours=_ZONE_NAMES.get(found["name"], 0)))


def _date(text: str) -> datetime:
    text = _FILLERS.sub(" ", text).strip(" \t-/.")
    for form in _DATES:
        if found := form.fullmatch(text):
            return _as_date(found.groupdict())
    raise ValueError(_UNREADABLE)


def _as_date(parts: dict[str, str]) -> datetime:
    year = int(parts["year"])
    if len(parts["year"]) == 2:
        year += 2000 if year < 50 else 1900  # as RFC 2822 reads it
    if "of_year" in parts:
        return datetime.strptime(f"{year:04}-{parts['of_year']}", "%Y-%j")
    if "between" in parts:
        first, second = int(parts["first"]), int(parts["second"])
        if parts["between"] == "-" and len(parts["year"]) == 2:
            raise ValueError(_UNREADABLE)  # 23-04-21 may begin with the year
        # 4/5/2023 is in April, as JavaScript and Excel write it in English; 4.5.2023 is in May, as in German.
        day_first = first > 12 or parts["between"] == "."
        month, day = (second, first) if day_first else (first, second)
        return datetime(year, month, day)
    month = _month(parts["name"]) if "name" in parts else int(parts["month"])
    return datetime(year, month, int(parts["day"]))


def _month(name: str) -> int:
    for number, full in enumerate(_MONTHS, start=1):
        if len(name) >= 3 and full.startswith(name):
            return number
    raise ValueError(_UNREADABLE)
