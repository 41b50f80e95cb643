"""The grammar of times: the symbols of a text (`date_words`), read as spans of time at a moment."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, time, timedelta
from typing import Final

from services.long_term_memory.retrieval.periods import DAY, PERIODS, Span, month_after

#: What a rule's groups matched, by the letter of their names.
_Parts = dict[str, str]

#: "A few" units ago is so many at most, and more than so many.
_FEW: Final = (7.0, 1.0)
#: Days of a unit, on average.
_DAYS: Final = {"UD": 1.0, "UW": 7.0, "UK": 7.0, "UM": 30.44, "UY": 365.25, "UN": 1.0, "UP": 1.0}
_SHORT_UNITS: Final = {"UH": timedelta(hours=1), "UI": timedelta(minutes=1)}

_OFF: Final = re.compile(r"OFF (?:P |N1 )*$")
_SINCE: Final = re.compile(r"SINCE (?:P |N1 )*$")
_RANGE: Final = re.compile(r"(?:_ )?TO (?:P |N1 )*")


class Reading:
    """Reads symbols at a moment."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._today = datetime.combine(now.date(), time())
        self._monday = self._today - self._today.weekday() * DAY

    def spans(self, symbols: str) -> list[list[Span]]:
        """For each time that the symbols name, what it may mean."""
        named: list[list[Span]] = []
        place, between = 0, ""
        while place < len(symbols):
            end, spans = self._first(symbols, place)
            if spans is None:
                end = symbols.index(" ", place) + 1
                between += symbols[place:end]
            else:
                if _RANGE.fullmatch(between) and named:
                    spans = [(first[0], last[1]) for first, last in zip(named.pop(), spans, strict=False)]
                named.append(self._changed(spans, between, symbols, end))
                between = ""
            place = end
        return [kept for spans in named if (kept := [span for span in spans if span[0] < span[1]])]

    def _first(self, symbols: str, place: int) -> tuple[int, list[Span] | None]:
        """What the first rule that applies reads, and where it ends; None where none does."""
        for pattern, read in _RULES:
            if found := pattern.match(symbols, place):
                parts = {name[0]: value for name, value in found.groupdict().items() if value}
                if (spans := read(self, parts)) is not None:
                    return found.end(), spans
        return place, None

    def _changed(self, spans: list[Span], before: str, symbols: str, end: int) -> list[Span]:
        """The spans, as a word before or after them changes them."""
        if _OFF.search(before) or symbols.startswith("END ", end):
            return []
        if _SINCE.search(before) or symbols.startswith(("SINCE ", "_ SINCE "), end):
            return [(begin, self._today + DAY) for begin, _ in spans[:1]]
        return spans

    def day(self, parts: _Parts) -> list[Span]:
        """A day relative to today."""
        return [_one_day(self._today + int(parts["n"]) * DAY)]

    def part_of_day(self, parts: _Parts) -> list[Span]:
        """Last night, until six in the morning; this morning or evening is today."""
        if parts["s"] == "0":
            return [_one_day(self._today)]
        return [(self._today - DAY, self._today + timedelta(hours=6))] if parts["u"] == "UN" else []

    def date(self, parts: _Parts) -> list[Span]:
        """One or several days of a month."""
        month, first = int(parts["m"]), int(parts["d"])
        last = int(parts.get("e", first))
        return self._occurrences(lambda year: (datetime(year, month, first), datetime(year, month, last) + DAY), parts)

    def day_of_month(self, parts: _Parts) -> list[Span]:
        """A day of a month relative to this one; none where the month is too short."""
        month, day = self._month(int(parts["s"])), int(parts["d"])
        return [_one_day(month.replace(day=day))] if 0 < day <= (month_after(month) - month).days else []

    def period(self, parts: _Parts) -> list[Span] | None:
        """A month, season, holiday or part of a year; a month by itself is none: "may" and "march" mean others."""
        kind, what = parts["w"][0], parts["w"][1:]
        if kind != "H" and not {"p", "y", "l", "s", "q"} & parts.keys():
            return None
        return self._occurrences(lambda year: PERIODS[kind](year, what, parts.get("t")), parts)

    def week(self, parts: _Parts) -> list[Span]:
        """A week relative to this one, or a day of it."""
        begin = self._monday + 7 * int(parts["s"]) * DAY
        return [_one_day(begin + (int(parts["w"]) - 1) * DAY)] if "w" in parts else [(begin, begin + 7 * DAY)]

    def weekday(self, parts: _Parts) -> list[Span]:
        """A weekday: this week's, the next, or the last, which is the one before today and that of last week."""
        shift = "-1" if "q" in parts else parts.get("s")
        days = [self._monday + (7 * weeks + int(parts["w"]) - 1) * DAY for weeks in (-1, 0, 1)]
        if shift == "0":
            days = days[1:2]
        elif shift == "1":
            days = [day for day in days[1:] if day > self._today]
        elif shift:
            days = [day for day in days[:2] if day < self._today]
        else:
            days = [day for day in days if abs((day - self._today).days) <= 7]
        return [_one_day(day) for day in days]

    def unit(self, parts: _Parts) -> list[Span] | None:
        """A weekend, month or year relative to this one; "the past ..." ends now."""
        unit, shift = parts["u"], parts.get("s")
        if "q" in parts:
            return [(self._before(1, unit), self._today + DAY)]
        if unit == "UK":
            saturdays = [self._monday + (7 * n + 5) * DAY for n in ([int(shift)] if shift else (-1, 0))]
            return [(saturday, saturday + 2 * DAY) for saturday in saturdays]
        if unit == "UM" and shift:
            month = self._month(int(shift))
            return [(month, month_after(month))]
        return [_whole_year(self._today.year + int(shift))] if unit == "UY" and shift else None

    def ago(self, parts: _Parts) -> list[Span]:
        """So long ago, give or take half a unit; of days, that day."""
        unit, number = parts["u"], float(parts.get("n", 1))
        most, least = (number + 0.5, number - 0.5) if number else _FEW
        if length := _SHORT_UNITS.get(unit):
            return [(self._now - most * length, self._now - least * length)]
        if unit == "UD" and number:
            return [_one_day(self._today - number * DAY)]
        return [(self._today - int(most * _DAYS[unit]) * DAY, self._today - int(least * _DAYS[unit]) * DAY)]

    def last_units(self, parts: _Parts) -> list[Span]:
        """So many units until today, or from today on."""
        number, unit = int(parts["n"]) or int(_FEW[0]), parts["u"]
        if "f" in parts:
            return [(self._today, self._today + int(number * _DAYS[unit] + 1) * DAY)]
        return [(self._before(number, unit), self._today + DAY)]

    def year(self, parts: _Parts) -> list[Span]:
        """A year by its number."""
        return [_whole_year(int(parts["y"]))]

    def _occurrences(self, make: Callable[[int], Span], parts: _Parts) -> list[Span]:
        """Those of the year that is named; or the last, this year's or the next.

        Where none of these is named, the last that has begun and, unless it is now, the next.
        """
        this_year, shift = self._today.year, "-1" if "q" in parts else parts.get("s")
        if named := parts.get("y"):
            years = [int(named)]
        elif "l" in parts:
            years = [this_year + int(parts["l"])]
        else:
            years = [this_year] if shift == "0" else list(range(this_year - 2, this_year + 3))
        spans = []
        for year in years:
            with suppress(ValueError):  # 29 February; what no year has is no time
                spans.append(make(year))
        if len(years) == 1:
            return spans
        past = [span for span in spans if (span[1] if shift else span[0]) <= self._today][-1:]
        coming = [span for span in spans if span[0] > self._today][:1]
        if shift:
            return past if shift == "-1" else coming
        return past if past and past[0][1] > self._today else past + coming

    def _before(self, number: int, unit: str) -> datetime:
        """The day so many units before today."""
        if unit not in {"UM", "UY"}:
            return self._today - int(number * _DAYS[unit]) * DAY
        return self._month(-number * (12 if unit == "UY" else 1)) + min(self._today.day - 1, 27) * DAY

    def _month(self, shift: int) -> datetime:
        """The beginning of a month relative to this one."""
        months = self._today.year * 12 + self._today.month - 1 + shift
        return datetime(months // 12, months % 12 + 1, 1)


def _one_day(day: datetime) -> Span:
    return day, day + DAY


def _whole_year(year: int) -> Span:
    return datetime(year, 1, 1), datetime(year + 1, 1, 1)


# Groups are named by a letter, and a digit where a rule has the letter twice: y year, l year relative to this one,
# m month, d and e days, w what, s shift (last, this, next), q past, f future, n number, u unit, t third, p preposition.
_YEAR: Final = r"(?:Y(?P<y{0}>\d+) (?:UY )?|L(?P<l{0}1>-?\d) UY |UY L(?P<l{0}2>-?\d) )"
_BEFORE: Final = rf"(?:(?:P )?{_YEAR.format(1)})?"
_AFTER: Final = rf"(?:(?:P )?{_YEAR.format(2)})?"
_RULES: Final = tuple(
    (re.compile(pattern), read)
    for pattern, read in (
        (
            rf"(?:W\d )?{_BEFORE}(?:P )?M(?P<m>\d+) [ON](?P<d>\d+) (?:(?:_ )?TO [ON](?P<e>\d+) )?(?:L(?P<s>-1) )?"
            rf"{_AFTER}",
            Reading.date,
        ),
        (rf"(?:W\d )?(?:P )?[ON](?P<d>\d+) (?:TO [ON](?P<e>\d+) )?M(?P<m>\d+) (?:L(?P<s>-1) )?{_AFTER}", Reading.date),
        (r"(?:[ON](?P<d>\d+) )L(?P<s>-?\d) UM |L(?P<s1>-?\d) UM (?:P )?O(?P<d1>\d+) ", Reading.day_of_month),
        (
            rf"{_BEFORE}(?P<p>P )?(?:L(?P<s>-?\d) |(?P<q>Q ))?(?P<w>[MSFHJ]\w+) (?:T(?P<t>\d) )?"
            rf"(?:L(?P<s1>-?\d) (?!U))?{_AFTER}",
            Reading.period,
        ),
        (r"L(?P<s>-?\d) UW (?:W(?P<w>\d) )?|(?:W(?P<w1>\d) )?(?:L(?P<s1>-?\d) UW |UW L(?P<s2>-?\d) )", Reading.week),
        (r"(?:L(?P<s>-?\d) |(?P<q>Q ))?W(?P<w>\d) (?:L(?P<s1>-?\d) )?", Reading.weekday),
        (r"(?:N1 )?N(?P<n>\d+) (?P<u>U[A-Z]) AGO |(?P<u1>U[A-Z]) AGO ", Reading.ago),
        (r"VOR (?:N1 (?=N))?N(?P<n>\d+) (?P<u>U[A-Z]) ", Reading.ago),
        (r"(?:L-1 |Q |(?P<f>L1 ))(?:N1 (?=N))?N(?P<n>\d+) (?P<u>U[DWMY]) ", Reading.last_units),
        (r"N(?P<n>\d+) (?:L-1 |Q )(?P<u>U[DWMY]) ", Reading.last_units),
        (r"L(?P<s>-1|0) (?P<u>U[NP]) ", Reading.part_of_day),
        (r"(?:P )?(?P<u>U[KMY]) L(?P<s>-?\d) |(?:L(?P<s1>-?\d) |(?P<q>Q )|P (?=UK ))(?P<u1>U[WKMY]) ", Reading.unit),
        (r"D(?P<n>-?\d) ", Reading.day),
        (r"P Y(?P<y>\d+) (?:UY )?", Reading.year),
    )
)
