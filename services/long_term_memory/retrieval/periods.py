"""Periods of every year: months, seasons, parts of the year, holidays; those of the lunar calendar too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

#: Moments of one time zone, from the first to before the second.
Span = tuple[datetime, datetime]

DAY: Final = timedelta(days=1)
#: New year's days of the lunar calendar from 2000 on, as days after 1 January.
_LUNAR_NEW_YEARS: Final = (
    35, 23, 42, 31, 21, 39, 28, 48, 37, 25, 44, 33, 22, 40, 30, 49, 38, 27, 46, 35,
    24, 42, 31, 21, 40, 28, 47, 36, 25, 43, 33, 22, 41, 30, 49, 38, 27, 45, 34, 23,
    42, 31, 21, 40, 29, 47, 36, 25, 44, 32, 22, 41, 31, 49, 38, 27, 45, 34, 23, 42,
)  # fmt: skip
#: Holidays by month and day of their first day, and how many days they last.
_HOLIDAYS: Final = {
    **{"CHRISTMAS": (12, 24, 3), "HALLOWEEN": (10, 31, 1), "VALENTINE": (2, 14, 1), "NEWYEAR": (12, 31, 3)},
    **{"NEWDAY": (1, 1, 1), "QINGMING": (4, 4, 3), "MAYDAY": (5, 1, 5), "NATIONAL": (10, 1, 7)},
}
#: Those of the lunar calendar by their days after the new year, how many days they last, and the day of the year before
#: which they never are: after a leap month they are a month later. The days of months are means, which makes the autumn
#: festival four days of which one is it (57 of the years 2000 to 2059), and the dragon boat festival three (59).
_LUNAR_HOLIDAYS: Final = {
    **{"LUNAR": (-1, 9, 0), "EVE": (-1, 1, 0), "LANTERN": (14, 1, 0)},
    **{"DRAGON": (121, 3, 147), "AUTUMN": (219, 4, 249)},
}
_LUNAR_MONTH_DAYS: Final = 29.5


def month_after(first: datetime) -> datetime:
    """The beginning of the month after that of a moment."""
    return (first.replace(day=1) + 32 * DAY).replace(day=1)


def _month(year: int, what: str, third: str | None) -> Span:
    begin = datetime(year, int(what), 1)
    days = {"1": (0, 10), "2": (10, 20), "3": (20, None)}.get(third or "", (0, None))
    return begin + (days[0] or 0) * DAY, begin + days[1] * DAY if days[1] else month_after(begin)


def _season(year: int, what: str, _: str | None) -> Span:
    month = 3 * int(what)
    return datetime(year, month, 1), datetime(year + month // 12, (month + 2) % 12 + 1, 1)


def _half(year: int, what: str, _: str | None) -> Span:
    first, months = {"0": (1, 2), "1": (1, 6), "3": (7, 6), "4": (11, 2)}[what]
    return datetime(year, first, 1), datetime(year + first // 7, (first + months - 1) % 12 + 1, 1)


def _quarter(year: int, what: str, _: str | None) -> Span:
    first = 3 * int(what) - 2
    return datetime(year, first, 1), datetime(year + first // 10, (first + 2) % 12 + 1, 1)


def _holiday(year: int, what: str, _: str | None) -> Span:
    if what in _HOLIDAYS:
        month, day, days = _HOLIDAYS[what]
        begin = datetime(year, month, day)
        return begin, begin + days * DAY
    after, days, earliest = _LUNAR_HOLIDAYS[what]
    if not 0 <= year - 2000 < len(_LUNAR_NEW_YEARS):
        raise ValueError("beyond the table")
    day_of_year: float = _LUNAR_NEW_YEARS[year - 2000] + after
    if day_of_year < earliest:
        day_of_year += _LUNAR_MONTH_DAYS
    begin = datetime(year, 1, 1) + int(day_of_year) * DAY
    return begin, begin + days * DAY


#: The span of a period in a year, by the letter of its symbol (`date_words`); of a month also of a third of it.
PERIODS: Final[dict[str, Callable[[int, str, str | None], Span]]] = {
    "M": _month,
    "S": _season,
    "F": _half,
    "J": _quarter,
    "H": _holiday,
}
