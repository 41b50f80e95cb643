"""Dates that a sentence names, in English and Chinese, reckoned from the day on which it was said."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from datetime import date, timedelta
from typing import Final

_ENGLISH_NUMBERS: Final = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS: Final = {
    **{word: n for n, word in enumerate(_ENGLISH_NUMBERS, start=1)},
    **{word: n for n, word in enumerate("一二三四五六七八九十", start=1)},
    "a": 1,
    "an": 1,
    "两": 2,
}
_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAYS_ZH: Final = "一二三四五六日"
_MONTHS: Final = tuple(calendar.month_name[month].lower() for month in range(1, 13))
_UNIT_DAYS: Final = {"day": 1, "week": 7, "天": 1, "周": 7, "星期": 7, "个星期": 7, "礼拜": 7, "个礼拜": 7}
_NUMBER: Final = rf"(?P<n>\d{{1,2}}|{'|'.join(_NUMBERS)})"
_NAMED: Final = rf"(?P<day>{'|'.join(_DAYS)})"

Reckon = Callable[[re.Match[str], date], date]


def date_in(sentence: str, at: date) -> str | None:
    """The first date that a sentence names, as YYYY-MM-DD; None without one, or with one that no calendar has."""
    for pattern, reckon in _RECKONED:
        if found := pattern.search(sentence):
            try:
                return reckon(found, at).isoformat()
            except (ValueError, OverflowError):
                return None
    return None


def _shifted(days: int) -> Reckon:
    return lambda _, at: at + timedelta(days)


def _number(found: re.Match[str]) -> int:
    text = found["n"].lower()
    return int(text) if text.isdigit() else _NUMBERS[text]


def _away(sign: int) -> Reckon:
    return lambda found, at: at + sign * timedelta(_number(found) * _UNIT_DAYS[found["unit"].lower()])


def _of_week(weeks: int) -> Reckon:
    """The weekday of this week, or of another one, from Monday on."""

    def reckon(found: re.Match[str], at: date) -> date:
        return at + timedelta(weeks * 7 + _weekday(found) - at.weekday())

    return reckon


def _weekday(found: re.Match[str]) -> int:
    day = found["day"].lower()
    return _DAYS.index(day) if day in _DAYS else _DAYS_ZH.index(day.replace("天", "日"))


def _coming(found: re.Match[str], at: date) -> date:
    return at + timedelta((_weekday(found) - at.weekday() - 1) % 7 + 1)


def _last(found: re.Match[str], at: date) -> date:
    return at - timedelta((at.weekday() - _weekday(found) - 1) % 7 + 1)


def _in_month(found: re.Match[str], at: date) -> date:
    month = found["month"].lower()
    return date(at.year, int(month) if month.isdigit() else _MONTHS.index(month) + 1, int(found["dom"]))


_WEEK_ZH: Final = r"(?:周|星期|礼拜)(?P<day>[一二三四五六日天])"
_RECKONED: Final[list[tuple[re.Pattern[str], Reckon]]] = [
    (re.compile(pattern, re.IGNORECASE), reckon)
    for pattern, reckon in (
        (r"\b(?P<iso>\d{4}-\d\d-\d\d)\b", lambda found, _: date.fromisoformat(found["iso"])),
        (rf"\b(?P<month>{'|'.join(_MONTHS)}) (?P<dom>\d{{1,2}})(?:st|nd|rd|th)?\b", _in_month),
        (rf"\b(?P<dom>\d{{1,2}})(?:st|nd|rd|th)? (?:of )?(?P<month>{'|'.join(_MONTHS)})\b", _in_month),
        (r"(?P<month>\d{1,2})月(?P<dom>\d{1,2})[日号]", _in_month),
        (r"\bday after tomorrow\b|(?<!大)后天", _shifted(2)),
        (r"\bday before yesterday\b|前天", _shifted(-2)),
        (r"\btomorrow\b|明天|明晚|明早", _shifted(1)),
        (r"\byesterday\b|\blast night\b|昨天|昨晚", _shifted(-1)),
        (rf"\bin {_NUMBER} (?P<unit>day|week)s?\b", _away(1)),
        (rf"\b{_NUMBER} (?P<unit>day|week)s? ago\b", _away(-1)),
        (rf"{_NUMBER}(?P<unit>天|个?星期|个?礼拜|周)(?:之|以)?后", _away(1)),
        (rf"{_NUMBER}(?P<unit>天|个?星期|个?礼拜|周)(?:之|以)?前", _away(-1)),
        (rf"\bnext {_NAMED}\b", _of_week(1)),
        (rf"下(?:个)?{_WEEK_ZH}", _of_week(1)),
        (rf"\blast {_NAMED}\b", _last),
        (rf"上(?:个)?{_WEEK_ZH}", _of_week(-1)),
        (rf"\b(?:this|on|coming) {_NAMED}\b", _coming),
        (rf"(?:这个?|本)?{_WEEK_ZH}", _coming),
        (r"\btoday\b|\btonight\b|今天|今晚", _shifted(0)),
    )
]
